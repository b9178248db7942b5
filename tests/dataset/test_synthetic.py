"""The built-in synthetic data: its rules, its shapes, its reproducibility."""

from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig, BertTokenizer

import run
from dataset.features import prepare_features
from dataset.pickles import load_pickle
from dataset.synthetic import SIZES, SYNTHETIC_FILE, generate, label_of, vocabulary
from tests.dataset.test_features import settings
from utils.errors import DataError

FOLDER = Path(__file__).resolve().parents[2] / "dataset/synthetic_bert"


@pytest.fixture(scope="module")
def content():
    return generate()


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("the movie was good .", 1.6),
        ("the movie was very good .", 2.0),  # 1.6 * 1.3 = 2.08
        ("the movie was not very good .", -1.2),  # 1.6 * 1.3 * -0.6 = -1.248
        ("um the plot is bad and this cast was nice .", -0.2),  # (-1.6 + 1.2) / 2
        ("this film was extremely wonderful .", 3.0),  # 4.5, clipped
        ("this film was not awful .", 1.6),  # 1.56
    ],
)
def test_labels_match_hand_computed_values(sentence, label):
    assert label_of(sentence) == pytest.approx(label)


def test_labels_follow_the_rules_and_are_distributed_like_mosi(content):
    for fields in content.values():
        assert fields["regression_labels"] == pytest.approx(
            [label_of(text) for text in fields["raw_text"]]
        )
    labels = content["train"]["regression_labels"]
    assert (
        labels.min() == -3
        and labels.max() == 3
        and abs(labels.mean()) < 0.2
        and 1.4 < labels.std() < 1.9
    )


def test_fields_have_published_shapes_and_types(content):
    videos = []
    for split, n in SIZES.items():
        fields = content[split]
        assert len(fields) == 9 and all(len(values) == n for values in fields.values())
        shapes = {
            "text_bert": (n, 3, 50),
            "text": (n, 50, 300),
            "audio": (n, 50, 5),
            "vision": (n, 50, 20),
            "regression_labels": (n,),
        }
        for name, shape in shapes.items():
            assert (
                fields[name].shape == shape
                and fields[name].dtype == np.float32
                and np.isfinite(fields[name]).all()
            )
        videos.append({name.split("$_$")[0] for name in fields["id"]})
        assert len(set(fields["id"])) == n
        padding = fields["text_bert"][:, 1] == 0
        assert (fields["text"][padding] == 0).all()
        for name in ("audio", "vision"):
            assert (fields[name][padding] == 0).all() and (fields[name][~padding] != 0).all()
    assert len(set.union(*videos)) == sum(map(len, videos))  # no video is in two splits


def test_synthetic_file_is_written_atomically_and_once(content, tmp_path):
    path = tmp_path / "new" / SYNTHETIC_FILE
    args = settings(path, dataset_name="synthetic", feature_dims=[300, 5, 20])
    prepare_features(args)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary is left
    assert all(
        np.array_equal(value, content["test"][name])
        for name, value in load_pickle(path)["test"].items()
    )
    path.write_bytes(b"the user's own")
    with pytest.raises(DataError):
        prepare_features(args)
    assert path.read_bytes() == b"the user's own"


def test_tokens_match_the_bert_tokenizer(content):
    assert (FOLDER / "vocab.txt").read_text().split("\n")[:-1] == vocabulary()
    assert BertConfig.from_pretrained(FOLDER).vocab_size == len(vocabulary())
    tokenizer = BertTokenizer.from_pretrained(FOLDER)
    sentences = [str(sentence) for sentence in content["test"]["raw_text"]]
    ids = tokenizer(sentences, padding="max_length", max_length=50, return_tensors="np")[
        "input_ids"
    ]
    assert np.array_equal(ids, content["test"]["text_bert"][:, 0])


@pytest.mark.slow
def test_synthetic_data_can_be_learned(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = run.DMD_run("dmd", "synthetic", verbose_level=0, figures=False)[1111]
    labels = {split: fields["regression_labels"] for split, fields in content.items()}
    baseline = np.abs(labels["test"] - labels["train"].mean()).mean()
    assert metrics["Acc_2"] >= 0.85 and metrics["MAE"] <= baseline / 2
