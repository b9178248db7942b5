"""Each way a feature pickle can be right or wrong, on real files."""

import pickle
import tracemalloc

import numpy as np
import pytest
from easydict import EasyDict

from dataset.features import PUBLISHED_SHA256, prepare_features
from utils.errors import DataError

SIZES = {"train": 6, "valid": 3, "test": 4}


def make_content(t_audio=8, t_vision=8, d_audio=5) -> dict:
    rng = np.random.default_rng(0)

    def fields(split, n):
        tokens = np.zeros((n, 3, 8), np.float32)
        tokens[:, 0, :5], tokens[:, 1, :5] = 7, 1
        return {
            "raw_text": np.array([f"sentence {i}" for i in range(n)], dtype=object),
            "id": [f"{split}$_${i}" for i in range(n)],
            "text": rng.standard_normal((n, 8, 12)).astype(np.float32),
            "text_bert": tokens,
            "audio": rng.standard_normal((n, t_audio, d_audio)),
            "vision": rng.standard_normal((n, t_vision, 4)).astype(np.float32),
            "regression_labels": rng.uniform(-3, 3, n),
        }

    return {split: fields(split, n) for split, n in SIZES.items()}


def write(path, content) -> str:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    return str(path)


def settings(path, **changes) -> EasyDict:
    args = {"dataset_name": "mosi", "featurePath": str(path), "feature_dims": [12, 5, 4]}
    return EasyDict(args | {"use_bert": False, "need_data_aligned": True} | changes)


def test_features_have_expected_sizes_types_and_order(tmp_path):
    path = write(tmp_path / "a.pkl", make_content(t_audio=20, t_vision=30))
    for use_bert, width, shape in ((False, 12, (6, 8, 12)), (True, 768, (6, 3, 8))):
        args = settings(
            path, use_bert=use_bert, need_data_aligned=False, feature_dims=[width, 5, 4]
        )
        features = prepare_features(args)
        assert (features.feature_dims, features.seq_lens) == ([width, 5, 4], [8, 20, 30])
        assert {name: len(split) for name, split in features.splits.items()} == SIZES
        train = features.splits["train"]
        assert {getattr(train, f).dtype for f in ("text", "audio", "vision", "labels")} == {
            np.dtype(np.float32)
        }
        assert (
            train.text.shape == shape
            and train.ids[1] == "train$_$1"
            and train.raw_text[1] == "sentence 1"
        )


def test_single_split_is_read_and_minus_infinity_in_audio_becomes_zero(
    tmp_path,
):
    content = {"test": make_content()["test"]}
    content["test"]["audio"][0, 0, 0] = -np.inf
    features = prepare_features(settings(write(tmp_path / "a.pkl", content)), splits=("test",))
    assert list(features.splits) == ["test"] and features.splits["test"].audio[0, 0, 0] == 0


def test_replaced_features_may_have_another_width_but_not_other_utterances(tmp_path):
    path, other = write(tmp_path / "a.pkl", make_content()), make_content(d_audio=9)
    file = write(tmp_path / "b.pkl", other)
    for replaced in (
        {"feature_A": file},
        {"feature_T": file, "feature_A": file, "feature_V": file},
    ):
        assert prepare_features(settings(path), **replaced).feature_dims == [12, 9, 4]
    other["valid"]["id"][1] = "stranger$_$1"
    with pytest.raises(DataError, match="b.pkl: split 'valid' does not have the same utterances"):
        prepare_features(settings(path), feature_A=write(tmp_path / "b.pkl", other))


def change(split, field, value):
    def apply(content):
        array = content[split][field]
        content[split][field] = value(array) if callable(value) else value

    return apply


def set_item(split, field, index, value):
    def apply(content):
        content[split][field][index] = value

    return apply


WRONG = {
    "missing split": (lambda c: c.pop("valid"), "split 'valid' lacks the field 'id'"),
    "missing field": (lambda c: c["test"].pop("vision"), "lacks the field 'vision'"),
    "N of a field": (
        change("train", "audio", lambda a: a[:-1]),
        "'audio' of split 'train' is .* N = 6",
    ),
    "N of labels": (
        change("train", "regression_labels", lambda a: a[:-1]),
        "'regression_labels' of split 'train' is .* N = 6",
    ),
    "N of raw_text": (change("train", "raw_text", lambda a: a[:-1]), "5 'raw_text'"),
    "width of a split": (
        change("valid", "audio", lambda a: np.repeat(a, 2, 2)),
        "size of 'audio' differs between splits",
    ),
    "NaN": (
        set_item("train", "vision", (2, 0, 0), np.nan),
        r"'vision' of split 'train' .* 1 utterances: train\$_\$2",
    ),
    "+inf in audio": (
        set_item("train", "audio", (2, 0, 0), np.inf),
        "'audio' of split 'train' is NaN or infinite",
    ),
    "label": (
        set_item("valid", "regression_labels", 2, 3.5),
        r"'regression_labels' .* valid\$_\$2",
    ),
    "no numbers": (change("train", "audio", ["x"] * 6), "not an array of numbers"),
    "empty split": (lambda c: c.update(valid={k: v[:0] for k, v in c["valid"].items()}), "N = 0"),
    "no texts": (change("test", "raw_text", None), "not a list of strings"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_file_gives_one_line(case, tmp_path):
    apply, pattern = WRONG[case]
    content = make_content()
    apply(content)
    with pytest.raises(DataError, match=pattern) as error:
        prepare_features(settings(write(tmp_path / "wrong.pkl", content)))
    assert "wrong.pkl" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "changes", "pattern"),
    [
        (make_content(t_audio=9), {}, "unaligned"),
        (make_content(), {"feature_dims": [12, 74, 4]}, r"Set feature_dims=\[12,5,4\]"),
        ([1, 2], {}, "holds a list"),
        (pickle.dumps(make_content())[:-200], {}, "not a readable pickle"),
    ],
    ids=["unaligned", "other widths", "list", "truncated"],
)
def test_wrong_content_gives_one_line(content, changes, pattern, tmp_path):
    with pytest.raises(DataError, match=pattern) as error:
        prepare_features(settings(write(tmp_path / "wrong.pkl", content), **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("index", "value"),
    [((0, 0, 0), 1.5), ((0, 2, 0), 7)],
    ids=["fraction as token id", "7 as segment id"],
)
def test_tokens_must_be_ids(index, value, tmp_path):
    content = make_content()
    content["train"]["text_bert"][index] = value
    with pytest.raises(DataError, match="token ids"):
        prepare_features(settings(write(tmp_path / "a.pkl", content), use_bert=True))


def test_error_about_a_missing_file_gives_its_source(tmp_path):
    with pytest.raises(DataError) as error:
        prepare_features(settings(tmp_path / "none.pkl"))
    for word in (
        str(tmp_path / "none.pkl"),
        PUBLISHED_SHA256["mosi", True],
        "MMSA",
        "--dataset synthetic",
    ):
        assert word in str(error.value)


@pytest.mark.parametrize(("protocol", "dtype"), [(4, "f4"), (4, "f8"), (5, "f8")])
def test_large_file_is_in_memory_once(tmp_path, protocol, dtype):
    """The peak of memory while loading, over the arrays."""
    content = make_content()
    for split in SIZES:
        content[split]["vision"] = np.ones((SIZES[split], 5000, 40), dtype)
    (tmp_path / "large.pkl").write_bytes(pickle.dumps(content, protocol))
    tracemalloc.start()
    features = prepare_features(
        settings(tmp_path / "large.pkl", need_data_aligned=False, feature_dims=[12, 5, 40])
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 1.8 * sum(split.vision.nbytes for split in features.splits.values())
