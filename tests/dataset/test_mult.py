"""Pickles in MulT's layout, as Python 2 and 3 write them: read, checked, trained on and scored."""

import csv
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

import run as run_command
import test as test_command
from analysis.statistics import group_by_video
from config import load_config
from dataset import check, glove, tokenize
from dataset.features import prepare_features
from tests.commands import SMALL, call, refused
from utils.errors import DataError

SIZES = {"train": 12, "valid": 6, "test": 6}
WIDTHS = {"mosi-glove": [300, 5, 20], "mosei-glove": [300, 74, 35]}
STEPS = {True: [9, 9, 9], False: [9, 15, 20]}  # by need_data_aligned
FILES = {
    ("mosi-glove", True): "dataset/MOSI/mosi_data.pkl",
    ("mosi-glove", False): "dataset/MOSI/mosi_data_noalign.pkl",
    ("mosei-glove", True): "dataset/MOSEI/mosei_senti_data.pkl",
    ("mosei-glove", False): "dataset/MOSEI/mosei_senti_data_noalign.pkl",
}


class Python2Pickler(pickle._Pickler):
    """Writes bytes as strings of Python 2."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def dump_as_python_2(content) -> bytes:
    """What Python 2 would write, with numpy's functions by their former names."""
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def make_content(dataset: str = "mosi-glove", aligned: bool = True) -> dict:
    """Two segments of each video; the first step of audio is the logarithm of silence."""
    rng = np.random.default_rng(0)
    content = {}
    for split, count in SIZES.items():
        arrays = []
        for steps, width in zip(STEPS[aligned], WIDTHS[dataset], strict=True):
            arrays.append(rng.standard_normal((count, steps, width)))
        text, audio, vision = arrays
        audio[:, 0] = -np.inf
        ids = []
        for row in range(count):
            start = 7.5 * row
            ids.append([f"{split}-{row // 2}", f"{start}", f"{start + 5}"])
        content[split] = {
            "text": text.astype(np.float32),
            "audio": audio,
            "vision": vision,
            "labels": rng.uniform(-3, 3, (count, 1, 1)),
            "id": np.array(ids, dtype="S20"),
        }
    return content


def write(content, path: str = FILES["mosi-glove", True]) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 4))
    return path


def read(dataset: str = "mosi-glove", aligned: bool = True):
    return prepare_features(load_config("dmd", dataset, "", {"need_data_aligned": aligned}))


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("dataset", "aligned"), FILES, ids=[Path(p).stem for p in FILES.values()])
@pytest.mark.parametrize("dump", [dump_as_python_2, pickle.dumps], ids=["Python 2", "Python 3"])
def test_each_file_is_read_with_its_section_of_the_config(dump, dataset, aligned):
    content = make_content(dataset, aligned)
    write(dump(content), FILES[dataset, aligned])
    features = read(dataset, aligned)
    assert (features.feature_dims, features.seq_lens) == (WIDTHS[dataset], STEPS[aligned])
    for name, count in SIZES.items():
        split, fields = features.splits[name], content[name]
        assert len(split) == count
        assert split.ids[:3] == [
            f"{name}-0$_$0.0_5.0", f"{name}-0$_$7.5_12.5", f"{name}-1$_$15.0_20.0",
        ]  # fmt: skip
        assert group_by_video(split.ids).videos == count // 2
        assert split.raw_text == [""] * count
        assert np.array_equal(split.labels, fields["labels"][:, 0, 0].astype(np.float32))
        assert not split.audio[:, 0].any()
        assert np.array_equal(split.audio[:, 1:], fields["audio"][:, 1:].astype(np.float32))
        assert np.array_equal(split.vision, fields["vision"].astype(np.float32))


@pytest.mark.parametrize("dataset", ["mosi", "mosei"])
def test_glove_sections_differ_from_bert_in_text_and_file_only(dataset):
    ours, theirs = load_config("dmd", f"{dataset}-glove"), load_config("dmd", dataset)
    differing = {key for key in ours if ours[key] != theirs[key]}
    assert differing == {"featurePath", "feature_dims", "use_bert", "dataset_name"}
    assert ours.use_bert is False
    assert ours.feature_dims == [300, *theirs.feature_dims[1:]]


IDS = {
    "numbers": (np.array([["v", 1.5, 2]] * 12, object), "v$_$1.5_2"),
    "lists": ([[b"v", "1", b"2"]] * 12, "v$_$1_2"),
    "one column": (np.array([[b"v"]] * 12), "v"),
    "strings": (["v$_$3"] * 12, "v$_$3"),
    "bytes": (np.array([b"v[3]"] * 12), "v[3]"),
    "absent": (None, "train-0"),
}


@pytest.mark.parametrize("case", IDS)
@pytest.mark.parametrize("dump", [dump_as_python_2, pickle.dumps], ids=["Python 2", "Python 3"])
def test_ids_of_other_types_become_strings(dump, case):
    ids, expected = IDS[case]
    content = make_content()
    if ids is None:
        del content["train"]["id"]
    else:
        content["train"]["id"] = ids
    write(dump(content))
    assert read().splits["train"].ids[0] == expected


def test_utterances_without_ids_are_numbered_in_each_split():
    content = make_content()
    for fields in content.values():
        del fields["id"]
    write(content)
    splits = read().splits
    assert splits["valid"].ids == [f"valid-{row}" for row in range(6)]
    assert group_by_video(splits["test"].ids).videos == 0


def without_bert() -> dict:
    """A file in MMSA's layout, with BERT features as text."""
    content = make_content()
    for fields in content.values():
        fields["regression_labels"] = fields.pop("labels").reshape(-1)
        fields["text"] = np.ones((len(fields["id"]), 9, 768), np.float32)
        fields["raw_text"] = ["a text"] * len(fields["id"])
    return content


def test_mult_pickles_can_be_trained_on_and_scored(capsys):
    write(make_content())
    assert call(run_command, "-d", "mosi-glove", *SMALL, "--epochs", "1") == 0
    checkpoint = "pt/dmd-mosi-glove-1111/best.pth"
    assert call(test_command, checkpoint, "--predictions", "out.csv") == 0
    with open("out.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows[:2]] == ["test-0$_$0.0_5.0", "test-0$_$7.5_12.5"]
    trained = capsys.readouterr().out
    assert "Acc_2" in trained
    # A file to predict on, with one split and without labels.
    unlabeled = {"test": make_content()["test"]}
    del unlabeled["test"]["labels"]
    write(unlabeled, "new.pkl")
    arguments = (checkpoint, "--features", "new.pkl", "--predictions", "new.csv")
    assert call(test_command, *arguments) == 0
    with open("new.csv") as file:
        again = list(csv.DictReader(file))
    assert [row["prediction"] for row in again] == [row["prediction"] for row in rows]
    assert [row["id"] for row in again] == [row["id"] for row in rows]


def test_other_data_sets_and_layouts_are_refused_with_a_remedy(capsys):
    file = write(make_content())
    setting = f"featurePath={Path(file).resolve()}"
    message = refused(capsys, run_command, "-d", "mosi", *SMALL, "--set", setting)
    assert "mosi_data.pkl: is in MulT's layout" in message
    assert "-d mosi-glove or -d mosei-glove" in message
    write(without_bert())
    message = refused(capsys, run_command, "-d", "mosi-glove", *SMALL)
    assert "'text' is 768 wide, not 300" in message
    assert "MMSA pickles contain BERT features instead of GloVe vectors" in message
    assert "dataset.glove" in message and "feature_dims=[768,5,20]" in message
    Path(file).unlink()
    message = refused(capsys, run_command, "-d", "mosi-glove", *SMALL)
    assert "no such feature file. The authors of MulT share it" in message


def test_tokens_and_glove_need_texts(capsys):
    file = write(make_content())
    message = refused(capsys, tokenize, file, "-o", "out.pkl", "--pretrained", "any")
    assert "split 'train' lacks the field 'raw_text'" in message
    Path("vectors.txt").write_text("a 1 2\n")
    arguments = ("--pickle", file, "--vectors", "vectors.txt", "-o", "out.pkl")
    assert "'raw_text' of split 'train'" in refused(capsys, glove, *arguments)


def set_item(split: str, field: str, index, value):
    def change(content: dict) -> None:
        content[split][field][index] = value

    return change


def set_field(split: str, field: str, value):
    def change(content: dict) -> None:
        content[split][field] = value

    return change


WRONG = {
    "emotions of IEMOCAP": (
        set_field("train", "labels", np.zeros((12, 4, 2))),
        r"'labels' of split 'train' is \(12, 4, 2\); expected \(N, 1, 1\)",
    ),
    "labels of different lengths": (
        set_field("train", "labels", [[1], [1, 2]]),
        "'labels' of split 'train' is not an array of numbers",
    ),
    "one label": (set_field("train", "labels", 2.0), r"'labels' of split 'train' is \(\)"),
    "labels that are texts": (set_field("train", "labels", ["a"] * 12), "not an array of numbers"),
    "too few labels": (set_field("test", "labels", np.zeros((5, 1, 1))), r"with N = 6"),
    "label out of range": (
        set_item("valid", "labels", 1, 3.5),
        r"not a number in \[-3, 3\] in 1 utterances: valid-0\$_\$7.5_12.5",
    ),
    "NaN in vision": (set_item("test", "vision", (0, 0, 0), np.nan), "'vision' .* is NaN or inf"),
    "+inf in audio": (set_item("test", "audio", (0, 0, 0), np.inf), "'audio' .* is NaN or inf"),
    "too few ids": (set_field("train", "id", [["v", "0", "1"]]), "with N = 1, as 'id' has"),
    "no text": (lambda content: content["valid"].pop("text"), "'valid' lacks the field 'text'"),
    "no split": (lambda content: content.pop("test"), "split 'test' lacks the field 'id'"),
    "array of arrays": (
        set_field("train", "audio", np.array([np.zeros((2, 5)), None] * 6, object)),
        "'audio' of split 'train' is not an array of numbers",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_file_gives_one_line(case):
    change, pattern = WRONG[case]
    content = make_content()
    change(content)
    write(content)
    with pytest.raises(DataError, match=pattern) as error:
        read()
    assert "mosi_data.pkl" in str(error.value) and "\n" not in str(error.value)


def findings(capsys, *arguments: str) -> dict[str, str]:
    """Level by text of each line of dataset.check."""
    capsys.readouterr()
    call(check, *arguments)
    levels = {}
    for line in capsys.readouterr().out.splitlines():
        levels[line[6:]] = line[:5].strip()
    return levels


def level_of(levels: dict[str, str], words: str) -> str:
    (level,) = [level for text, level in levels.items() if words in text]
    return level


def test_check_recognizes_the_layout(capsys):
    file = write(make_content())
    for arguments in ((file,), (file, "-d", "mosi-glove")):
        levels = findings(capsys, *arguments)
        assert "error" not in levels.values()
        assert level_of(levels, "MulT's layout") == "ok"
        assert level_of(levels, "ids of video, start and end are joined") == "ok"
        assert level_of(levels, "use_bert=false: can be trained on") == "ok"
        assert level_of(levels, "Numbers of utterances differ from MulT's files") == "note"
    assert level_of(findings(capsys, file, "-d", "mosi"), "no tokens for use_bert=true") == "error"
    assert level_of(findings(capsys, file, "-d", "mosei-glove"), "Set feature_dims=") == "error"
    write(without_bert())
    assert level_of(findings(capsys, file, "-d", "mosi-glove"), "instead of GloVe") == "error"
    content = make_content()
    del content["test"]["id"]
    write(content)
    assert level_of(findings(capsys, file), "are named train-0, train-1") == "ok"


def test_check_recognizes_the_sizes_of_the_published_files(capsys):
    content = {}
    for split, count in (("train", 1284), ("valid", 229), ("test", 686)):
        content[split] = {"labels": np.zeros((count, 1, 1))}
        for key in ("text", "audio", "vision"):
            content[split][key] = np.ones((count, 1, 1), np.float32)
    levels = findings(capsys, write(content))
    assert level_of(levels, "Numbers of utterances as in MulT's files: mosi-glove.") == "ok"
