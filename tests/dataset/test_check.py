"""python -m dataset.check on files with known anomalies."""

import pickle

import numpy as np
import pytest

from dataset import check
from dataset.check import check_content
from dataset.pickles import write_pickle
from dataset.synthetic import generate
from tests.commands import call, refused


@pytest.fixture
def content() -> dict:
    rng = np.random.default_rng(0)

    def fields(split, n):
        tokens = np.zeros((n, 3, 6), np.float32)
        tokens[:, 0, :4], tokens[:, 1, :4] = 100, 1
        modalities = {
            key: rng.standard_normal((n, 6, 4)).astype(np.float32)
            for key in ("text", "audio", "vision")
        }
        return modalities | {
            "id": [f"{split}{i // 2}$_${i}" for i in range(n)], "text_bert": tokens,
            "raw_text": ["a word"] * n, "regression_labels": np.linspace(-3, 3, n),
        }  # fmt: skip

    return {split: fields(split, n) for split, n in (("train", 7), ("valid", 4), ("test", 4))}


@pytest.fixture
def said(tmp_path, content, capsys):
    def findings(*options: str) -> dict[str, str]:
        """-> {text of a finding: its level}"""
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
        call(check, str(tmp_path / "a.pkl"), *options)
        return {line[6:]: line[:5].strip() for line in capsys.readouterr().out.splitlines()}

    return findings


def level_of(findings: dict[str, str], words: str) -> str:
    (level,) = {level for text, level in findings.items() if words in text}
    return level


def test_good_file_has_no_errors(said):
    findings = said()
    assert "error" not in findings.values()
    for words in (
        "train: text (7, 6, 4) float32, audio (7, 6, 4) float32",
        "rounded: -3: 1, -2: 1, -1: 1, +0: 1, +1: 1, +2: 1, +3: 1",
        "'text_bert': 4 to 4 of 6 steps, median 4; padded in front in 0 and after in 7",
        "use_bert=true: can be trained on",
        "use_bert=false: can be trained on",
    ):
        assert level_of(findings, words) == "ok"
    assert level_of(said("-d", "mosi"), "Set feature_dims=[768,4,4]") == "error"


def test_vocabulary_that_is_only_on_the_hub_is_not_checked(content):
    findings = check_content("a.pkl", content, None, False, "bert-base-cased")
    assert "note" in [
        f.level
        for f in findings
        if "vocabulary of bert-base-cased is not on this machine" in f.text
    ]


CASES = {
    "dead modality": (lambda c: c["train"]["vision"].fill(0), "note", "are all zero"),
    "constant features": (
        lambda c: c["train"]["audio"][:, :, 1:3].fill(5),
        "note",
        "never change: [1, 2]",
    ),
    "padding": (
        lambda c: c["train"]["audio"][:, :2].fill(0),
        "ok",
        "padded in front in 7 and after in 0",
    ),
    "twice": (
        lambda c: c["train"]["id"].__setitem__(1, "train0$_$0"),
        "note",
        "train: 1 ids occur more than once",
    ),
    "leak": (
        lambda c: c["test"]["id"].__setitem__(0, "train0$_$0"),
        "error",
        "train and test share 1 utterances",
    ),
    "video": (
        lambda c: c["test"]["id"].__setitem__(0, "train0$_$9"),
        "note",
        "train and test share 1 videos (train0)",
    ),
    "video with a separator": (
        lambda c: [c[split]["id"].__setitem__(0, f"a$_$b$_${split}") for split in c],
        "note",
        "train and test share 1 videos (a$_$b)",
    ),
    "tokens": (
        lambda c: c["valid"]["text_bert"][0, 0, :1].fill(30522),
        "error",
        "1 ids are outside it",
    ),
    "labels": (
        lambda c: c["train"]["regression_labels"].__setitem__(2, 3.5),
        "error",
        "train1$_$2",
    ),
    "no vision": (lambda c: c["valid"].pop("vision"), "error", "lacks the field 'vision'"),
    "no split": (lambda c: c.pop("test"), "error", "split 'test' lacks the field 'id'"),
}


@pytest.mark.parametrize("case", CASES)
def test_check_reports_anomalies(case, content, said):
    change, level, words = CASES[case]
    change(content)
    assert level_of(said(), words) == level


def test_file_to_predict_on_may_lack_labels_and_splits(tmp_path, content, said):
    del content["test"]["regression_labels"], content["train"], content["valid"]
    findings = said("--to-predict")
    assert (
        "error" not in findings.values()
        and level_of(findings, "use_bert=true: can be predicted on") == "ok"
    )
    assert call(check, str(tmp_path / "a.pkl"), "--to-predict") == 0
    assert call(check, str(tmp_path / "a.pkl")) == 2


def test_synthetic_data_pass_and_a_leak_exits_with_status_2(tmp_path, content, said, capsys):
    write_pickle(tmp_path / "synthetic.pkl", generate())
    assert call(check, str(tmp_path / "synthetic.pkl"), "-d", "synthetic") == 0
    printed = capsys.readouterr().out
    assert all(line.startswith(("ok ", "note ")) for line in printed.splitlines())
    assert "ids up to 88; the vocabulary of dataset/synthetic_bert has 89 entries" in printed
    assert "SHA-256" in printed
    content["test"]["id"][0] = content["train"]["id"][0]
    said()
    refused(capsys, check, str(tmp_path / "a.pkl"))
