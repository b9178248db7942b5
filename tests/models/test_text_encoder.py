"""The text encoder is loaded from the usual kinds of files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from models.text_encoder import TextEncoder, load_tokenizer
from utils.errors import ConfigError

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
}
TOKENS = torch.tensor([[[5, 6, 7, 0], [1, 1, 1, 0], [0, 0, 0, 0]]])


@pytest.fixture
def bert(tmp_path) -> Path:
    """A folder with weights."""
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def hidden(folder: Path, tokens: torch.Tensor = TOKENS, kind: str = "bert") -> torch.Tensor:
    return TextEncoder(str(folder), finetune=False, width=16, kind=kind).eval()(tokens)


def test_weights_in_half_precision_are_read_as_float32(bert):
    expected = hidden(bert)
    BertModel.from_pretrained(bert).half().save_pretrained(bert)
    assert json.loads((bert / "config.json").read_text())["dtype"] == "float16"
    encoder = TextEncoder(str(bert), finetune=True, width=16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    torch.testing.assert_close(hidden(bert), expected, rtol=0.01, atol=0.01)


def test_missing_weights_are_rejected_except_for_the_unused_pooler(bert):
    expected = hidden(bert)
    weights = {
        name: value
        for name, value in load_file(bert / "model.safetensors").items()
        if "pooler" not in name
    }
    save_file(weights, bert / "model.safetensors")
    torch.testing.assert_close(hidden(bert), expected, rtol=0, atol=0)
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, bert / "model.safetensors")
    with pytest.raises(ConfigError, match="encoder.layer.0.output.dense.weight"):
        hidden(bert)


@pytest.mark.parametrize("with_weights", [True, False])
def test_roberta_ignores_padding(tmp_path, with_weights):
    model = RobertaModel(
        RobertaConfig(**SIZES, type_vocab_size=1, max_position_embeddings=12, pad_token_id=1)
    ).eval()
    (model if with_weights else model.config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="roberta"):
        hidden(tmp_path)  # `transformers` is bert by default
    # padding has the id 1
    tokens = torch.tensor([[[0, 6, 7, 2, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]]])
    for kind in ("roberta", "auto"):
        torch.manual_seed(1)
        padded = hidden(tmp_path, tokens, kind)
        torch.manual_seed(1)
        torch.testing.assert_close(hidden(tmp_path, tokens[..., :4], kind), padded[:, :4])
        if with_weights:
            positions = torch.tensor([[2, 3, 4, 5, 1, 1]])
            expected = model(
                tokens[:, 0], attention_mask=tokens[:, 1], position_ids=positions
            ).last_hidden_state
            torch.testing.assert_close(padded, expected)


def test_encoder_that_cannot_be_loaded_gives_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (lambda name: TextEncoder(name, True, 16), load_tokenizer):
        for name in ("no-such/bert", str(tmp_path)):
            with pytest.raises(ConfigError, match="pretrained: cannot load") as error:
                load(name)
            assert "\n" not in str(error.value)
