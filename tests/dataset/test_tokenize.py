"""python -m dataset.tokenize: encoders of four kinds, and each kind of mistake."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig, DebertaV2Config, GPT2Config, MPNetConfig, RobertaConfig

from dataset import tokenize
from dataset.pickles import load_pickle
from dataset.synthetic import vocabulary
from tests.commands import call, refused, train, write_pickle

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "mpnet": MPNetConfig,
    "deberta-v2": DebertaV2Config,
    "gpt2": GPT2Config,
}
PAD = 1
SOURCE = "dataset/SYNTHETIC/aligned_50.pkl"


def make_encoder(kind: str, pad_token: str | None = "<pad>") -> Path:
    """A folder with the configuration of an encoder, and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", *reversed(vocabulary())]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    # An encoder may come with its own padding and truncation.
    tokenizer.enable_padding(direction="left", length=20)
    tokenizer.enable_truncation(20)
    folder = Path(kind)
    config = CONFIGS[kind](**SIZES, vocab_size=len(words), pad_token_id=PAD)
    config.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad_token, padding_side="left"
    )
    fast.save_pretrained(folder)
    return folder


def tokenized(capsys, *arguments: str) -> tuple[dict, list[str]]:
    """The new content, and the words of the command line to train on it."""
    capsys.readouterr()
    assert call(tokenize, SOURCE, "-o", "out.pkl", "--overwrite", *arguments) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "train with" in line]
    return load_pickle("out.pkl"), shlex.split(line.partition("train with ")[2])


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "deberta-v2"])
def test_every_kind_of_encoder_trains_with_the_printed_flags(kind, folder, capsys):
    encoder = make_encoder(kind)
    content, words = tokenized(capsys, "--pretrained", str(encoder))
    ids = json.loads((encoder / "tokenizer.json").read_text())["model"]["vocab"]
    for split, fields in load_pickle(SOURCE).items():
        assert fields.keys() == content[split].keys()
        for key in fields.keys() - {"text_bert"}:
            assert np.array_equal(fields[key], content[split][key]), key
        tokens = content[split]["text_bert"]
        assert tokens.shape == (len(fields["id"]), 3, 50) and tokens.dtype == np.float32
        for row, text in zip(tokens, fields["raw_text"], strict=True):
            expected = [0]
            for word in str(text).split():
                expected.append(ids[word])
            expected.append(2)
            padding = 50 - len(expected)
            assert row[0].tolist() == expected + [PAD] * padding
            assert row[1].tolist() == [1] * len(expected) + [0] * padding
            assert not row[2].any()
    transformers = kind if kind in ("bert", "roberta") else "auto"
    for setting in (
        "need_data_aligned=true",
        f"transformers={transformers}",
        f"pretrained={kind}",
        "feature_dims=[16,5,20]",
        f"featurePath={folder}/out.pkl",
    ):
        assert words[words.index(setting) - 1] == "--set"
    assert train(*words, "--epochs", "1") == 0
    assert "another vocabulary" not in capsys.readouterr().out


def test_text_steps_that_differ_from_audio_and_vision_are_unaligned(folder, capsys):
    content, words = tokenized(
        capsys, "--pretrained", str(make_encoder("mpnet")), "--text-steps", "6"
    )
    tokens = content["train"]["text_bert"]
    assert tokens.shape == (24, 3, 6)
    assert (tokens[:, 0, 5] == 2).any()  # truncated texts keep their last token
    assert "need_data_aligned=false" in words


def test_provenance_names_the_new_vocabulary(folder, corpus, capsys):
    before = "--pool-to 50, standardized True, vocabulary 30522, rates None"
    write_pickle(Path(SOURCE), {**corpus, "provenance": before})
    content, _ = tokenized(capsys, "--pretrained", str(make_encoder("bert")))
    size = len(vocabulary()) + 4
    assert content["provenance"] == before.replace("30522", str(size))


def change_split(split: str, **changes) -> None:
    """Replace fields of a split in the source, or remove those that are None."""
    content = load_pickle(SOURCE)
    for field, value in changes.items():
        if value is None:
            del content[split][field]
        else:
            content[split][field] = value
    write_pickle(Path(SOURCE), content)


def blank_all() -> None:
    for split, count in (("train", 24), ("valid", 10), ("test", 10)):
        change_split(split, raw_text=[" "] * count)


BAD = {
    "no raw_text": (
        lambda: change_split("valid", raw_text=None),
        "aligned_50.pkl: split 'valid' lacks the field 'raw_text'",
    ),
    "texts of other utterances": (
        lambda: change_split("test", raw_text=["good"] * 9),
        "'audio' of split 'test' is (10, 50, 5); expected (N, steps, width) with N = 9",
    ),
    "no text at all": (blank_all, "'raw_text' is empty in all utterances"),
    "texts that are none": (
        lambda: change_split("train", raw_text=5),
        "'raw_text' of split 'train' is not a list of strings",
    ),
    "no splits": (lambda: write_pickle(Path(SOURCE), {"a": 1}), "none of the splits train, valid"),
    "no pickle": (lambda: Path(SOURCE).write_bytes(b"<html>"), "it is a web page"),
    "existing output": (lambda: Path("out.pkl").write_bytes(b"x"), "out.pkl already exists"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_writes_nothing(case, folder, capsys):
    change, words = BAD[case]
    change()
    arguments = (SOURCE, "-o", "out.pkl", "--pretrained", str(make_encoder("bert")))
    assert words in refused(capsys, tokenize, *arguments)


@pytest.mark.parametrize(
    ("kind", "pad_token", "steps", "words"),
    [
        ("roberta", "<pad>", "63", "--text-steps: 63 is out of range"),
        ("mpnet", "<pad>", "63", "'mpnet' accepts 3 to 62 tokens"),
        ("bert", "<pad>", "2", "accepts 3 to 64 tokens"),
        ("gpt2", None, "50", "--pretrained: 'gpt2' has no padding token"),
    ],
    ids=["roberta", "mpnet", "too few", "no padding token"],
)
def test_unsupported_steps_and_encoders_give_one_line(
    kind, pad_token, steps, words, folder, capsys
):
    encoder = make_encoder(kind, pad_token)
    arguments = (SOURCE, "-o", "out.pkl", "--pretrained", str(encoder), "--text-steps", steps)
    assert words in refused(capsys, tokenize, *arguments)


def test_error_about_a_missing_tokenizer_names_the_flag(folder, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = (SOURCE, "-o", "out.pkl", "--pretrained", "nobody/has-this")
    assert "--pretrained: cannot load 'nobody/has-this'" in refused(capsys, tokenize, *arguments)
