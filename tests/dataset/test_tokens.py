"""Tokens of another vocabulary than the encoder's are reported by dataset.check and run.py."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from easydict import EasyDict

from dataset import check
from dataset.features import SPLITS, FeatureSet, take_features
from dataset.synthetic import SPECIAL_TOKENS
from dataset.tokens import check_tokens
from tests.commands import ROOT, call, train, write_pickle

BERT = ROOT / "dataset/synthetic_bert"


@pytest.fixture
def other(tmp_path) -> Path:
    """An encoder with the same special tokens, and the same words in another order."""
    folder = Path(shutil.copytree(BERT, tmp_path / "other"))
    words = (BERT / "vocab.txt").read_text().split()
    count = len(SPECIAL_TOKENS)
    (folder / "vocab.txt").write_text("\n".join(words[:count] + words[count:][::-1]) + "\n")
    return folder


def read(corpus: dict, **changes) -> FeatureSet:
    """The corpus, with these fields changed in all splits."""
    content = {
        split: {field: np.copy(values) for field, values in corpus[split].items()}
        for split in SPLITS
    }
    for fields in content.values():
        for field, change in changes.items():
            fields[field] = change(fields[field])
    args = EasyDict(
        featurePath="a.pkl", use_bert=True, need_data_aligned=False, feature_dims=[64, 5, 20]
    )
    return take_features({"a.pkl": content}, args, ["a.pkl"] * 3)


def settings(pretrained: Path | str, use_bert: bool = True) -> EasyDict:
    return EasyDict(pretrained=str(pretrained), use_bert=use_bert)


def cut(tokens: np.ndarray) -> np.ndarray:
    """At most six tokens, the last of which is [SEP]."""
    short = tokens[:, :, :6].copy()
    long = short[:, 1, 5] == 1
    short[long, 0, 5] = 3
    return short


def pad_in_front(tokens: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((len(tokens), 3, 4), np.float32), tokens], axis=2)


@pytest.mark.parametrize(
    "change", [lambda tokens: tokens, cut, pad_in_front], ids=["as it is", "cut", "padded"]
)
def test_tokens_of_the_encoder_agree(corpus, change):
    assert check_tokens(read(corpus, text_bert=change), settings(BERT)) is None


@pytest.mark.parametrize(
    "change", [lambda tokens: tokens, cut, pad_in_front], ids=["as it is", "cut", "padded"]
)
def test_tokens_of_another_vocabulary_are_reported(corpus, other, change):
    warning = check_tokens(read(corpus, text_bert=change), settings(other))
    assert warning.startswith("a.pkl: ") and "\n" not in warning
    assert (
        "(first id 2) than pretrained=" in warning and "0 of 20 sampled utterances agree" in warning
    )
    assert f"python -m dataset.tokenize a.pkl --pretrained {other} -o OUT.pkl" in warning


def test_warning_names_the_file_of_the_text(corpus, other):
    features = read(corpus)
    features = FeatureSet(
        features.path, features.splits, [64, 5, 20], [50] * 3, text_path="my text.pkl"
    )
    assert "dataset.tokenize 'my text.pkl' --pretrained" in check_tokens(features, settings(other))


def test_warning_requires_that_less_than_half_agree(corpus):
    def keep_only(count):
        def change(tokens):
            tokens[count:, 0] = np.where(
                tokens[count:, 0] > 4, 93 - tokens[count:, 0], tokens[count:, 0]
            )
            return tokens[:20]

        return {field: (lambda values: values[:20]) for field in corpus["train"]} | {
            "text_bert": change
        }

    assert check_tokens(read(corpus, **keep_only(10)), settings(BERT)) is None
    assert "9 of 20" in check_tokens(read(corpus, **keep_only(9)), settings(BERT))


def test_nothing_is_reported_without_raw_text_or_a_tokenizer_or_bert(corpus, other):
    blank = read(corpus, raw_text=lambda texts: np.full(len(texts), " "))
    assert check_tokens(blank, settings(other)) is None
    features = read(corpus)
    assert check_tokens(features, settings("nobody/has-this-model")) is None
    assert check_tokens(features, settings(other, use_bert=False)) is None
    (other / "vocab.txt").unlink()
    assert check_tokens(features, settings(other)) is None


def test_check_reports_another_vocabulary_as_error(folder, other, capsys):
    file = "dataset/SYNTHETIC/aligned_50.pkl"
    command = [check, file, "-d", "synthetic", "--set"]
    assert call(*command, f"pretrained={BERT}") == 0
    assert "another vocabulary" not in capsys.readouterr().out
    assert call(*command, f"pretrained={other}") == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]
    assert "another vocabulary" in line and f"dataset.tokenize {file} --pretrained {other}" in line
    assert call(*command, f"pretrained={other}", "use_bert=false", "feature_dims=[300,5,20]") == 0
    capsys.readouterr()
    assert call(check, file, "--set", f"pretrained={other}") == 2
    assert "-d" in capsys.readouterr().err


def test_training_warns_once(folder, other, capsys):
    assert (
        train("--set", f"pretrained={other}", "--epochs", "1", "-s", "1", "2", "--name", "x") == 0
    )
    for text in (capsys.readouterr().out, Path("log/x-synthetic.log").read_text()):
        (line,) = [line for line in text.splitlines() if "another vocabulary" in line]
        assert "WARNING" in line and "dataset.tokenize" in line
    assert train("--epochs", "1") == 0
    assert "another vocabulary" not in capsys.readouterr().out


def test_warning_in_training_names_the_replaced_text_file(folder, other, corpus, capsys):
    write_pickle(Path("text.pkl"), corpus)
    assert train("--set", f"pretrained={other}", "--epochs", "1", "-Ft", "text.pkl") == 0
    assert "text.pkl: 'text_bert' has tokens of another vocabulary" in capsys.readouterr().out
