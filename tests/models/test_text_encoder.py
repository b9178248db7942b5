"""What BERT is made of: files as they come."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from models.text_encoder import BertTextEncoder
from utils.errors import ConfigError

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}


@pytest.fixture
def bert(tmp_path) -> Path:
    """A folder with weights."""
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def hidden(folder: Path) -> torch.Tensor:
    tokens = torch.tensor([[[5, 6, 7, 0], [1, 1, 1, 0], [0, 0, 0, 0]]])
    return BertTextEncoder(str(folder), finetune=False, width=16).eval()(tokens)


def test_weights_in_half_precision_are_read_as_float32(bert):
    expected = hidden(bert)
    BertModel.from_pretrained(bert).half().save_pretrained(bert)
    assert json.loads((bert / "config.json").read_text())["dtype"] == "float16"
    encoder = BertTextEncoder(str(bert), finetune=True, width=16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    torch.testing.assert_close(hidden(bert), expected, rtol=0.01, atol=0.01)


def test_without_its_pooler_a_bert_is_whole(bert):
    expected = hidden(bert)
    weights = load_file(bert / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "pooler" not in name}, bert / "model.safetensors")
    torch.testing.assert_close(hidden(bert), expected, rtol=0, atol=0)


def test_missing_weights_are_not_made_up(bert):
    weights = load_file(bert / "model.safetensors")
    removed = "encoder.layer.0.output.dense.weight"
    save_file({name: value for name, value in weights.items() if name != removed}, bert / "model.safetensors")
    with pytest.raises(ConfigError, match=f"lacks 1 weights of a BERT, such as {removed}"):
        hidden(bert)


def test_another_kind_of_model_is_refused(tmp_path):
    RobertaModel(RobertaConfig(**SIZES)).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="is a roberta. Choose a BERT"):
        hidden(tmp_path / "other")
