"""python -m dataset.build: real files, numbers computed by hand, and each kind of mistake."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from transformers import RobertaConfig

import test as test_command
from config import load_config
from dataset import build
from dataset.pickles import load_pickle
from dataset.sources import pool
from tests.commands import ROOT, call, files, refused, rows_of, train, write_pickle

BERT = "dataset/synthetic_bert"
ROWS = [  # id, split, label, text
    ["v1$_$0", "train", "1.5", "the movie was good ."],
    ["v1$_$1", "train", "-3", "this film was not awful , and the plot is very very bad"],
    ["v2$_$0", "valid", "0", "The Movie"],
    ["v3.b", "test", "2", "unheard, the movie"],
]
LENGTHS = {"v1$_$0": 2, "v1$_$1": 5, "v2$_$0": 7, "v3.b": 1}
ARGUMENTS = ["--text", "T.csv", "--audio", "audio", "--vision", "vision", "-o", "my.pkl"]
TOKENS = ["--pretrained", BERT]
ON_MY_DATA = [
    "-d",
    "my",
    "-c",
    "own.json",
    "--set",
    "dst_feature_dim_nheads=[8,2]",
    "--epochs",
    "1",
]


def write_table(rows, header=("id", "split", "label", "text")) -> None:
    with open("T.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def audio_of(name: str) -> np.ndarray:
    """(length, 2): 1, 2, 3, … and ten times that."""
    return np.arange(1, LENGTHS[name] + 1)[:, None] * [1.0, 10.0]


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_table(ROWS)
    for name in LENGTHS:
        for folder in ("audio", "vision"):
            os.makedirs(folder, exist_ok=True)
        np.save(f"audio/{name}.npy", audio_of(name))
        Path(f"vision/{name}.csv").write_text(
            "".join(f"{step},0.5,-{step}\n" for step in range(1, LENGTHS[name] + 1))
        )
    return tmp_path


def made(*arguments: str, file: str = "my.pkl") -> dict:
    assert call(build, *ARGUMENTS, *TOKENS, *arguments) == 0
    return load_pickle(file)


def test_every_field_matches_hand_computed_values(data, capsys):
    content = made("--text-steps", "8")
    del content["provenance"], content["standardized"]
    assert {split: fields["id"] for split, fields in content.items()} == {
        "train": ["v1$_$0", "v1$_$1"], "valid": ["v2$_$0"], "test": ["v3.b"],
    }  # fmt: skip
    words = (ROOT / BERT / "vocab.txt").read_text().split()
    expected = ["[CLS]", "the", "movie", "was", "good", ".", "[SEP]"]
    tokens = content["train"]["text_bert"]
    assert tokens.shape == (2, 3, 8) and tokens.dtype == np.float32
    assert tokens[0].tolist() == [[*map(words.index, expected), 0], [1] * 7 + [0], [0] * 8]
    cut = ["[CLS]", "this", "film", "was", "not", "awful", ",", "[SEP]"]
    assert tokens[1].tolist() == [[*map(words.index, cut)], [1] * 8, [0] * 8]
    # 1: [UNK]
    assert content["test"]["text_bert"][0, 0, :4].tolist() == [
        2,
        1,
        words.index(","),
        words.index("the"),
    ]
    # The longest of train has 5 steps: the valid one of 7 loses its end.
    assert content["train"]["audio"][0].tolist() == [[1, 10], [2, 20], [0, 0], [0, 0], [0, 0]]
    assert content["valid"]["audio"][0].tolist() == [[1, 10], [2, 20], [3, 30], [4, 40], [5, 50]]
    assert content["test"]["vision"][0].tolist() == [[1, 0.5, -1], *[[0, 0, 0]] * 4]
    lengths = [(fields["audio_lengths"], fields["vision_lengths"]) for fields in content.values()]
    assert lengths == [([2, 5], [2, 5]), ([5], [5]), ([1], [1])]
    assert content["train"]["regression_labels"] == [1.5, -3]
    assert content["valid"]["raw_text"] == ["The Movie"]
    assert {content[s][key].dtype for s in content for key in ("audio", "vision")} == {
        np.dtype(np.float32)
    }
    printed = capsys.readouterr().out
    assert "train 2, valid 1, test 1 utterances" in printed
    assert "Longer sequences that were cut: audio 1, vision 1, text_bert 1." in printed
    assert [p.name for p in data.iterdir() if p.name.endswith(("tmp", ".pkl"))] == ["my.pkl"]


def test_pooling_matches_hand_computed_averages(data):
    sequence = np.array([[1.0], [2], [3], [4], [5], [6], [7]])
    # Steps of zeros do not count
    assert pool(np.array([[2.0], [0], [0], [0], [3]]), 3).tolist() == [
        [2],
        [0],
        [3],
    ]
    # Parts begin at floor(0·7/3), floor(1·7/3), floor(2·7/3) = 0, 2, 4.
    assert pool(sequence, 3).tolist() == [[1.5], [3.5], [6]]
    assert pool(sequence, 7) is sequence and pool(sequence, 50) is sequence
    content = made("--pool-to", "3")
    assert content["train"]["audio"][0].tolist() == [[1, 10], [2, 20], [0, 0]]  # shorter: as it is
    # From 0, 1, 3 of 5
    assert content["train"]["audio"][1].tolist() == [
        [1, 10],
        [2.5, 25],
        [4.5, 45],
    ]
    assert content["valid"]["vision"][0].tolist() == [
        [1.5, 0.5, -1.5],
        [3.5, 0.5, -3.5],
        [6, 0.5, -6],
    ]
    assert content["valid"]["vision_lengths"] == [3]


def test_fixed_steps_silence_and_text_features(data, capsys):
    arguments = [*ARGUMENTS, "--text-features", "audio", "--text-steps", "4"]
    assert call(build, *arguments, "--pool-to", "4") == 0
    content, printed = load_pickle("my.pkl"), capsys.readouterr().out
    assert "text_bert" not in content["train"]
    assert content["train"]["text"][1].tolist() == audio_of("v1$_$1")[:4].tolist()
    assert '"feature_dims": [2, 2, 3]' in printed and "--set use_bert=false" in printed
    silent = audio_of("v1$_$1")
    silent[0, 1] = -np.inf
    np.save("audio/v1$_$1.npy", silent)
    content = made("--audio-steps", "6", "--vision-steps", "4", "--overwrite")
    assert content["train"]["audio"].shape == (2, 6, 2) and content["train"]["vision"].shape == (
        2,
        4,
        3,
    )
    assert content["train"]["audio"][1, 0].tolist() == [1, 0]


def test_file_to_predict_on_is_standardized_like_train(data, capsys):
    # A step of zeros is no data; what never changes becomes zero
    moving = np.array([[1, 7], [0, 0], [3, 7], [5, 7]])
    np.save("audio/v1$_$1.npy", moving)
    np.save("audio/v2$_$0.npy", np.full((4, 2), 9.0))
    Path("features.json").write_text('{"rates (Hz)": {"audio": 20}}')
    content = made("--standardize")
    # Of the first feature, in train; of the second: 10, 20, 7, 7, 7
    values = np.array([1, 2, 1, 3, 5])
    mean, scale = values.mean(), values.std()
    audio = content["train"]["audio"]
    np.testing.assert_allclose(audio[0, :2, 0], ([1, 2] - mean) / scale, rtol=1e-6)
    np.testing.assert_allclose(audio[1, [0, 2, 3], 0], ([1, 3, 5] - mean) / scale, rtol=1e-6)
    assert not audio[0, 2:].any() and not audio[1, 1].any()
    assert not content["train"]["vision"][:, :, 1].any()  # 0.5 in all steps
    np.testing.assert_allclose(content["valid"]["audio"][0, :, 0], (9 - mean) / scale, rtol=1e-6)
    np.testing.assert_allclose(content["standardized"]["audio"]["mean"], [mean, 10.2], rtol=1e-6)

    write_table([[row[0], row[3]] for row in ROWS], ("id", "text"))
    arguments = [
        *ARGUMENTS[:-1],
        "new.pkl",
        *TOKENS,
        "--unlabeled",
        "--audio-steps",
        "4",
        "--vision-steps",
        "5",
    ]
    assert "train split" in refused(capsys, build, *arguments, "--standardize")
    assert call(build, *arguments, "--standardize", "my.pkl") == 0
    new = load_pickle("new.pkl")
    assert new["provenance"] == content["provenance"] and content["provenance"].endswith(
        "rates {'audio': 20}"
    )
    assert all(
        np.array_equal(new["test"][key][:2], content["train"][key]) for key in ("audio", "vision")
    )
    arguments[3:6:2] = "vision", "audio"
    assert "expected 2 columns" in refused(
        capsys, build, *arguments, "--standardize", "my.pkl", "--overwrite"
    )


def entry(printed: str) -> dict:
    """The line that is to be pasted, as it is, before another entry."""
    (line,) = [line for line in printed.splitlines() if line.startswith('"my')]
    return json.loads("{" + line + '"other": {}}')


def configured(printed: str) -> None:
    config = json.loads((ROOT / "config/config.json").read_text())
    config["datasetCommonParams"] |= entry(printed)
    Path("own.json").write_text(json.dumps(config))


def test_printed_config_entry_is_complete(data, capsys):
    made("--text-steps", "12", "--audio-steps", "3")
    configured(capsys.readouterr().out)
    args = load_config("dmd", "My", "own.json")  # capitals do not matter
    assert (args.dataset_name, args.need_data_aligned, args.feature_dims) == (
        "my",
        False,
        [64, 2, 3],
    )
    assert (args.conv1d_kernel_size_l, args.conv1d_kernel_size_a, args.pretrained) == (5, 3, BERT)
    assert args.featurePath == str(data / "my.pkl")


def test_roberta_accepts_fewer_tokens_than_it_has_positions(data, capsys):
    os.mkdir("roberta")
    RobertaConfig(
        vocab_size=300, hidden_size=8, max_position_embeddings=22, pad_token_id=1
    ).save_pretrained("roberta")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz,.", "\u0120"]
    Path("roberta/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    Path("roberta/merges.txt").write_text("#version: 0.2\n")
    arguments = [*ARGUMENTS, "--pretrained", "roberta", "--text-steps"]
    assert "accepts 3 to 20 tokens" in refused(capsys, build, *arguments, "21")
    assert call(build, *arguments, "20") == 0
    assert entry(capsys.readouterr().out)["my"]["unaligned"]["transformers"] == "roberta"
    assert load_pickle("my.pkl")["valid"]["text_bert"][0, 0, -1] == 1


def test_built_files_train_and_predict_without_labels(data, capsys):
    made("--pool-to", "5")
    configured(capsys.readouterr().out)
    assert train(*ON_MY_DATA) == 0
    checkpoint = "pt/dmd-my-1111/best.pth"
    assert call(test_command, checkpoint, "--split", "train", "--predictions", "own.csv") == 0
    write_table([[row[0], row[3]] for row in ROWS[:2]], ("id", "text"))
    for name in ("v2$_$0", "v3.b"):
        os.remove(f"audio/{name}.npy")
        os.remove(f"vision/{name}.csv")
    arguments = [*ARGUMENTS[:-1], "new.pkl", *TOKENS, "--unlabeled", "--pool-to"]
    assert call(build, *arguments, "5") == 0
    assert "test.py CHECKPOINT --features new.pkl" in capsys.readouterr().out
    assert "regression_labels" not in load_pickle("new.pkl")["test"]
    assert call(test_command, checkpoint, "--features", "new.pkl", "--predictions", "new.csv") == 0
    printed = capsys.readouterr().out
    assert "Acc_2" not in printed and "new.pkl: no labels" in printed and "SHA-256" not in printed
    own, new = map(rows_of, ("own.csv", "new.csv"))
    assert [row["label"] for row in new] == ["", ""] and [row["id"] for row in new] == [
        "v1$_$0",
        "v1$_$1",
    ]
    for ours, theirs in zip(own, new, strict=True):
        assert float(ours["prediction"]) == pytest.approx(float(theirs["prediction"]), abs=1e-6)

    assert "--predictions" in refused(capsys, test_command, checkpoint, "--features", "new.pkl")
    assert call(build, *arguments, "4", "--overwrite") == 0
    wide = load_pickle("my.pkl")
    wide["test"]["audio"] = wide["test"]["audio"].repeat(2, axis=2)
    write_pickle(Path("wide.pkl"), wide)
    write_pickle(Path("scaled.pkl"), load_pickle("my.pkl") | {"provenance": "--pool-to 7"})
    for words, *more in (
        ("--text-steps 50 --audio-steps 5 --vision-steps 5", "new.pkl", "--predictions", "x.csv"),
        ("audio, vision are [4, 3] wide", "wide.pkl"),
        (
            "built with --pool-to 7, but the training data with --pool-to 5, standardized",
            "scaled.pkl",
        ),
        ("split 'valid' lacks the field", "new.pkl", "--split", "valid"),
    ):
        assert words in refused(capsys, test_command, checkpoint, "--features", *more)
    before = files()
    # With labels: scored
    assert call(test_command, checkpoint, "--features", "my.pkl", "--split", "valid") == 0
    assert "VAL-(dmd)" in capsys.readouterr().out and files() == before


def test_files_of_earlier_versions_are_supported(data, capsys):
    content = made("--pool-to", "5", "--standardize")
    configured(capsys.readouterr().out)
    old = {split: content[split] for split in ("train", "valid", "test")}
    old["standardised"] = content["standardized"]
    old["made"] = (
        content["provenance"].replace("pool-to", "average").replace("standardized", "standardised")
    )
    write_pickle(Path("my.pkl"), old)
    arguments = [*ARGUMENTS[:-1], "new.pkl", *TOKENS, "--pool-to", "5"]
    assert call(build, *arguments, "--standardize", "my.pkl") == 0
    new = load_pickle("new.pkl")
    assert np.array_equal(new["test"]["audio"], content["test"]["audio"])

    assert train(*ON_MY_DATA) == 0
    arguments = ["pt/dmd-my-1111/best.pth", "--features"]
    assert call(test_command, *arguments, "new.pkl") == 0
    write_pickle(Path("other.pkl"), old | {"made": old["made"].replace("5", "7")})
    message = refused(capsys, test_command, *arguments, "other.pkl")
    assert "built with --pool-to 7" in message and "training data with --pool-to 5" in message


RENAMED = {
    "--average": ["--pool-to", "5"],
    "--standardise": ["--standardize"],
    "--unlabelled": ["--unlabeled"],
}


@pytest.mark.parametrize("old", RENAMED)
def test_renamed_flag_reports_its_new_name(old, data, capsys):
    new, *values = RENAMED[old]
    assert f"{old} is now {new}. See" in refused(capsys, build, *ARGUMENTS, *TOKENS, old, *values)
    assert call(build, *ARGUMENTS, *TOKENS, new, *values) == 0


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


ONE = "audio/v1$_$0.npy"
BAD = {  # what is done to the files, further arguments, words of the error
    "no file for an id": (lambda: os.remove(ONE), [], "1 of 4 (v1$_$0)"),
    "label is a word": (
        lambda: write_table([["v1$_$0", "train", "good", "x"], *ROWS[1:]]),
        [],
        "not a number in [-3, 3]",
    ),
    "label column": (
        lambda: write_table([[*r[:2], r[3]] for r in ROWS], ("id", "split", "text")),
        [],
        "--unlabeled",
    ),
    "no valid": (
        lambda: write_table([*ROWS[:2], ["v2$_$0", "train", "0", "x"], ROWS[3]]),
        [],
        "split 'valid'",
    ),
    "no text": (
        lambda: write_table([*ROWS[:3], ["v3.b", "test", "2", " "]]),
        [],
        "no text in 1 rows (v3.b). The words",
    ),
    "no table": (lambda: os.remove("T.csv"), [], "belong in the column text"),
    "standardized as another": (
        lambda: write_pickle(Path("o.pkl"), {}),
        ["--standardize", "o.pkl"],
        "trained on",
    ),
    "no rows": (lambda: write_table([]), [], "T.csv: the table has no rows"),
    "missing columns": (
        lambda: write_table(ROWS, ("name", "split", "label", "words")),
        [],
        "columns id,sp",
    ),
    "bare comma": (
        lambda: Path("T.csv").write_text("id,split,label,text\na,train,1,well, no"),
        [],
        "double quotes",
    ),
    "other width": (
        lambda: np.save(ONE, np.zeros((4, 5))),
        [],
        "5 columns in all files; 3 files have another number (v1$_$1, v2$_$0, v3.b)",
    ),
    "NaN": (
        lambda: np.save(ONE, np.array([[1, np.nan]])),
        [],
        "'audio' of split 'train' is NaN or infinite in 1 utt",
    ),
    "pickled objects": (
        lambda: np.save(ONE, np.array([[Trap()]])),
        [],
        "v1$_$0.npy: expected a table of numbers",
    ),
    "no steps at all": (lambda: None, ["--vision-steps", "0"], "--vision-steps"),
    "steps unknown": (
        lambda: write_table([[r[0], "test", *r[2:]] for r in ROWS]),
        [],
        "--audio-steps: missing",
    ),
    "output is a folder": (
        lambda: None,
        ["-o", "audio", "--overwrite"],
        "--output: audio already exists",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_writes_nothing(case, data, capsys):
    change, arguments, words = BAD[case]
    change()
    assert words in refused(capsys, build, *ARGUMENTS, *TOKENS, *arguments)


def test_existing_file_is_replaced_only_by_a_valid_one_with_overwrite(data, capsys):
    Path("my.pkl").write_bytes(b"earlier")
    assert "--overwrite" in refused(capsys, build, *ARGUMENTS, *TOKENS)
    os.mkdir("bert")  # whose vocabulary names more tokens than it has: only dataset.check sees it
    settings = json.loads((ROOT / BERT / "config.json").read_text())
    Path("bert/config.json").write_text(json.dumps(settings | {"vocab_size": 20}))
    Path("bert/vocab.txt").write_text((ROOT / BERT / "vocab.txt").read_text())
    assert "are outside it" in refused(
        capsys, build, *ARGUMENTS, "--pretrained", "bert", "--overwrite"
    )
    assert len(made("--overwrite")["train"]["id"]) == 2
