"""python -m dataset.glove on small files of vectors, with numbers computed by hand."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from dataset import glove
from dataset.glove import split_words
from dataset.pickles import load_pickle
from dataset.synthetic import vocabulary
from tests.commands import call, refused, train, write_pickle

VECTORS = {
    "the": (1, 2),
    "The": (3, 4),
    "movie": (5, 6),
    "n't": (7, 8),
    "do": (9, 1),
    ". . .": (0, 5),
    ".": (2, 2),
}
ARGUMENTS = ["--vectors", "vectors.txt", "--pickle", "in.pkl", "-o", "out.pkl"]


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [f"{word} {a} {b}\n" for word, (a, b) in VECTORS.items()]
    Path("vectors.txt").write_text("".join(lines), encoding="utf-8")
    texts = {
        "train": ["The THE movie.", "don't xyzzy XYZZY plugh xyzzy"],
        "valid": ["the"],
        "test": [""],
    }
    rng = np.random.default_rng(0)
    write_pickle(Path("in.pkl"), {
        split: {
            "raw_text": np.array(lines), "id": [f"{split}{i}" for i in range(len(lines))],
            "text_bert": np.ones((len(lines), 3, 5), np.float32), "text": "to be replaced",
            "audio": rng.standard_normal((len(lines), 7, 3)).astype(np.float32),
            "vision": rng.standard_normal((len(lines), 6, 4)).astype(np.float32),
            "regression_labels": np.zeros(len(lines), np.float32), "remark": {"of": ["anything"]},
        } for split, lines in texts.items()
    })  # fmt: skip
    return tmp_path


def test_text_is_split_into_words():
    assert split_words("I don't KNOW, it's John's; we're (um) well-made…") == [
        "I", "do", "n't", "KNOW", ",", "it", "'s", "John", "'s", ";", "we", "'re", "(", "um", ")",
        "well", "-", "made", "…",
    ]  # fmt: skip
    assert split_words("CAN’T isn’t rock'n'roll") == [
        "CA",
        "N'T",
        "is",
        "n't",
        "rock",
        "'",
        "n",
        "'",
        "roll",
    ]


def test_every_vector_matches_hand_computed_values(data, capsys):
    assert call(glove, *ARGUMENTS) == 0
    before, after = load_pickle("in.pkl"), load_pickle("out.pkl")
    text = after["train"]["text"]
    assert text.shape == (2, 5, 2) and text.dtype == np.float32  # 5 steps, as text_bert has
    # The, THE -> the, movie, ., padding
    assert text[0].tolist() == [
        [3, 4],
        [1, 2],
        [5, 6],
        [2, 2],
        [0, 0],
    ]
    # Do, n't, and three unknown ones
    assert text[1].tolist() == [
        [9, 1],
        [7, 8],
        [0, 0],
        [0, 0],
        [0, 0],
    ]
    assert (
        after["valid"]["text"][0].tolist() == [[1, 2], *[[0, 0]] * 4]
        and not after["test"]["text"].any()
    )
    for split, fields in before.items():
        assert fields.keys() == after[split].keys()
        for key in fields.keys() - {"text"}:
            assert np.array_equal(fields[key], after[split][key]), key
    printed = capsys.readouterr().out
    # The THE movie . do n't xyzzy XYZZY plugh xyzzy the: 11 words
    assert (
        "4 of 11 words (36.4%)" in printed
        and "xyzzy 2, XYZZY 1, pl" in printed
        and "cut: 1." in printed
    )
    assert "--set use_bert=false --set 'feature_dims=[2,3,4]' --set featurePath=" in printed
    rewrite(lambda fields: fields.pop("text_bert"))
    assert call(glove, *ARGUMENTS, "--overwrite") == 0
    assert load_pickle("out.pkl")["train"]["text"].shape == (2, 50, 2)


def write_vectors(text: str | bytes) -> None:
    Path("vectors.txt").write_bytes(text.encode() if isinstance(text, str) else text)


def rewrite(change) -> None:
    content = load_pickle("in.pkl")
    for fields in content.values():
        change(fields)
    write_pickle(Path("in.pkl"), content)


BAD = {
    "too few numbers": (
        lambda: write_vectors("a 1 2\nthe 1\n"),
        "vectors.txt: expected a word and 2 numbers",
    ),
    "binary": (lambda: write_vectors(bytes(range(256))), "vectors.txt: contains none of the"),
    "NaN in the pickle": (
        lambda: rewrite(lambda f: f.update(audio=f["audio"] * np.nan)),
        "out.pkl: 'audio' of",
    ),
    "texts of others": (
        lambda: rewrite(lambda f: f.update(raw_text=["the"] * 9)),
        "split 'train' has 9",
    ),
    "it exists": (lambda: Path("out.pkl").write_bytes(b"x"), "--output: out.pkl already exists"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_writes_nothing(case, data, capsys):
    change, words = BAD[case]
    change()
    assert words in refused(capsys, glove, *ARGUMENTS)


def test_glove_features_can_be_trained_on(folder, capsys):
    rng = np.random.default_rng(0)
    words = vocabulary()[5::2]
    Path("vectors.txt").write_text(
        "".join(
            f"{word} {' '.join(f'{x:.4f}' for x in rng.standard_normal(300))}\n" for word in words
        )
    )
    content = pickle.loads(Path("dataset/SYNTHETIC/aligned_50.pkl").read_bytes())
    for fields in content.values():
        del fields["text"]
    write_pickle(Path("in.pkl"), content)
    settings = ["--set", "use_bert=false", "--set", "feature_dims=[300,5,20]"]
    message = refused(capsys, train, "--set", f"featurePath={folder}/in.pkl", *settings)
    assert "lacks the field 'text'" in message and "dataset.glove" in message
    assert call(glove, *ARGUMENTS) == 0
    assert "feature_dims=[300,5,20]" in capsys.readouterr().out
    assert train("--set", f"featurePath={folder}/out.pkl", *settings, "--epochs", "1") == 0
