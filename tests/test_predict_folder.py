"""test.py --features FOLDER: files of one or several utterances in every layout; broken ones."""

from pathlib import Path

import numpy as np
import pytest

import test as test_command
from dataset.loose import fit_features, fit_tokens
from tests.commands import call, metrics_of, refused, rows_of, train, write_pickle
from utils.errors import DataError

BEST = "pt/dmd-synthetic-1111/best.pth"
RESULT = Path("result/dmd-synthetic-1111/predictions.csv")
FIELDS = ("text", "text_bert", "audio", "vision", "raw_text", "id", "regression_labels")


@pytest.fixture
def loose(trained) -> Path:
    """An empty folder, next to a trained run."""
    path = trained / "loose"
    path.mkdir()
    return path


def utterances(corpus, rows) -> dict:
    """The fields of test utterances; for a number, of one utterance without the utterance axis."""
    return {field: corpus["test"][field][rows] for field in FIELDS}


def write_each(folder: Path, corpus, rows=range(10)) -> None:
    for row in rows:
        write_pickle(folder / f"u{row}.pkl", utterances(corpus, row))


def predict(*arguments: str) -> int:
    """The exit status of predicting on the folder `loose`."""
    return call(test_command, BEST, "--features", "loose", *arguments)


def is_that_of_the_run(path: str | Path) -> bool:
    """Whether ids, labels and predictions equal those of the run, digit for digit."""
    rows = rows_of(path)
    for row in rows:
        row.pop("raw_text")
    return rows == rows_of(RESULT)


def predicted(path: str | Path) -> list[float]:
    return [float(row["prediction"]) for row in rows_of(path)]


def test_file_for_each_utterance_gives_the_predictions_of_the_run(loose, corpus, capsys):
    write_each(loose, corpus)
    assert predict("--predictions", "out.csv") == 0
    output = capsys.readouterr()
    assert is_that_of_the_run("out.csv") and output.err == ""
    assert f"MAE: {metrics_of('dmd-synthetic-1111')['MAE']:.4f}" in output.out
    assert "10 of 10 utterances have labels" in output.out

    metrics = test_command.DMD_test(BEST, features="loose")
    whole = test_command.DMD_test(BEST)
    assert metrics == whole


def test_text_features_are_predicted_on(folder, corpus, tmp_path):
    without_bert = ["--set", "use_bert=false", "feature_dims=[300,5,20]"]
    assert train(*without_bert) == 0
    for row in range(10):
        fields = utterances(corpus, row)
        fields.pop("text_bert")
        write_pickle(folder / "loose" / f"u{row}.pkl", fields)
    assert predict("--predictions", "out.csv") == 0
    assert is_that_of_the_run("out.csv")


def as_split(name: str):
    def change(fields: dict) -> dict:
        return {name: fields}

    return change


def as_lists(fields: dict) -> dict:
    changed = {}
    for field, value in fields.items():
        changed[field] = value.tolist()
    return changed


def as_objects(fields: dict) -> dict:
    """Arrays of objects, in which each sequence has its own length."""
    changed = dict(fields)
    for field in ("audio", "vision"):
        sequences = np.empty(len(fields[field]), object)
        for row, sequence in enumerate(fields[field]):
            steps = np.flatnonzero(sequence.any(axis=1))[-1] + 1
            sequences[row] = sequence[:steps]
        changed[field] = sequences
    return changed


def with_other_splits(fields: dict) -> dict:
    first = {field: value[:1] for field, value in fields.items()}
    return {"train": first, "valid": first, "test": fields}


def with_labels_of_another_name(fields: dict) -> dict:
    labels = fields.pop("regression_labels")
    return {**fields, "labels": labels[:, None, None]}


def with_bytes(fields: dict) -> dict:
    for field in ("raw_text", "id"):
        fields[field] = [str(value).encode() for value in fields[field]]
    return fields


LAYOUTS = {
    "flat": dict,
    "test": as_split("test"),
    "only train": as_split("train"),
    "all splits": with_other_splits,
    "lists": as_lists,
    "arrays of objects": as_objects,
    "labels": with_labels_of_another_name,
    "bytes": with_bytes,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_file_with_several_utterances_is_predicted(layout, loose, corpus):
    write_pickle(loose / "all.pickle", LAYOUTS[layout](utterances(corpus, slice(None))))
    assert predict("--predictions", "out.csv") == 0
    assert is_that_of_the_run("out.csv")


def test_single_utterance_may_have_an_utterance_axis(loose, corpus):
    for row in range(10):
        write_pickle(loose / f"u{row}.pkl", {"test": utterances(corpus, slice(row, row + 1))})
    assert predict("--predictions", "out.csv") == 0
    assert is_that_of_the_run("out.csv")


def test_missing_ids_are_made_from_file_names(loose, corpus):
    several, one = utterances(corpus, slice(0, 3)), utterances(corpus, 3)
    for fields in (several, one):
        fields.pop("id")
        fields.pop("raw_text")
    write_pickle(loose / "b.many.pkl", several)
    write_pickle(loose / "a clip.PKL", one)
    write_pickle(loose / "c.pkl", {"test": utterances(corpus, slice(4, 5))})
    assert predict("--predictions", "out.csv") == 0
    rows = rows_of("out.csv")
    names = ["a clip", "b.many-0", "b.many-1", "b.many-2", corpus["test"]["id"][4]]
    assert [row["id"] for row in rows] == names
    assert [row["raw_text"] for row in rows] == [""] * 4 + [corpus["test"]["raw_text"][4]]
    expected = predicted(RESULT)
    order = [expected[row] for row in (3, 0, 1, 2, 4)]
    assert predicted("out.csv") == pytest.approx(order, abs=1e-6)


def test_labeled_utterances_are_scored_and_the_others_have_an_empty_label(loose, corpus, capsys):
    write_each(loose, corpus, range(4))
    for row in range(4, 10):
        fields = utterances(corpus, row)
        fields.pop("regression_labels")
        write_pickle(loose / f"u{row}.pkl", fields)
    metrics = test_command.DMD_test(BEST, features="loose", predictions="out.csv")
    rows = rows_of("out.csv")
    assert [row["label"] != "" for row in rows] == [True] * 4 + [False] * 6
    errors = [abs(float(row["label"]) - float(row["prediction"])) for row in rows[:4]]
    assert metrics["MAE"] == pytest.approx(np.mean(errors), abs=1e-4)
    assert "4 of 10 utterances have labels" in capsys.readouterr().out


def test_without_any_label_nothing_is_scored(loose, corpus, capsys):
    fields = utterances(corpus, slice(None))
    fields.pop("regression_labels")
    write_pickle(loose / "a.pkl", fields)
    assert "--predictions" in refused(capsys, test_command, BEST, "--features", "loose")
    assert test_command.DMD_test(BEST, features="loose", predictions="out.csv") == {}
    assert predicted("out.csv") == predicted(RESULT)


def test_shorter_sequences_are_padded_and_longer_ones_cut(loose, corpus, capsys):
    for row in range(10):
        fields = utterances(corpus, row)
        real = int(fields["text_bert"][1].sum())
        fields["text_bert"] = fields["text_bert"][:, :real]
        fields["audio"] = np.concatenate([fields["audio"], np.zeros((30, 5), np.float32)])
        fields["vision"] = fields["vision"][:real]
        write_pickle(loose / f"u{row}.pkl", fields)
    assert predict("--predictions", "out.csv") == 0
    assert is_that_of_the_run("out.csv")
    assert "were cut" not in capsys.readouterr().out  # only padding was

    fields["audio"][60] = 1
    write_pickle(loose / "u9.pkl", fields)
    assert predict("--predictions", "out.csv", "--overwrite") == 0
    assert is_that_of_the_run("out.csv")
    assert "1 sequences were cut at the end" in capsys.readouterr().out


def test_text_that_is_cut_still_ends_with_its_last_token():
    tokens = np.array([[101, 5, 6, 7, 102, 0], [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]])
    assert fit_tokens(tokens, 4, 0).tolist() == [[101, 5, 6, 102], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert fit_tokens(tokens, 5, 0).tolist() == tokens[:, :5].tolist()
    assert fit_tokens(tokens[:, :2], 4, 1)[0].tolist() == [101, 5, 1, 1]  # RoBERTa pads with 1
    assert fit_features(np.ones((1, 2)), 2).tolist() == [[1, 1], [0, 0]]


def test_silence_of_minus_infinity_is_zero(loose, corpus):
    fields = utterances(corpus, 0)
    fields["audio"][-1] = 0
    write_pickle(loose / "a.pkl", fields)
    fields["audio"] = fields["audio"].copy()
    fields["audio"][-1] = -np.inf
    write_pickle(loose / "b.pkl", fields)
    assert predict("--predictions", "out.csv") == 0
    first, second = predicted("out.csv")
    assert first == pytest.approx(second, abs=1e-6)


def test_repeated_ids_have_a_row_each_and_give_a_warning(loose, corpus, capsys):
    for name in ("a", "b"):
        write_pickle(loose / f"{name}.pkl", utterances(corpus, 0))
    assert predict("--predictions", "out.csv") == 0
    name = corpus["test"]["id"][0]
    assert [row["id"] for row in rows_of("out.csv")] == [name, name]
    assert f"1 ids occur more than once, with a row for each occurrence: {name}" in (
        capsys.readouterr().out
    )


def test_batch_may_span_files_and_a_file_batches(loose, corpus):
    for name, rows in (("a", slice(0, 1)), ("b", slice(1, 8)), ("c", slice(8, 10))):
        write_pickle(loose / f"{name}.pkl", utterances(corpus, rows))
    assert predict("--predictions", "out.csv", "--set", "eval_batch_size=3") == 0
    assert call(test_command, BEST, "--predictions", "all.csv", "--set", "eval_batch_size=3") == 0
    assert Path("out.csv").read_bytes() == Path("all.csv").read_bytes()


def widen(fields: dict) -> None:
    fields["audio"] = np.repeat(fields["audio"], 2, axis=-1)


def drop_vision(fields: dict) -> None:
    fields.pop("vision")


def put_nan(fields: dict) -> None:
    fields["vision"][3, 1] = np.nan


def put_nan_after_the_steps_of_the_model(fields: dict) -> None:
    fields["vision"] = np.concatenate([fields["vision"], np.full((9, 20), np.nan, np.float32)])


def put_unknown_token(fields: dict) -> None:
    fields["text_bert"][0, 2] = 30000


def put_mask_of_2(fields: dict) -> None:
    fields["text_bert"][1, 2] = 2


def transpose_tokens(fields: dict) -> None:
    fields["text_bert"] = fields["text_bert"].T


def flatten_audio(fields: dict) -> None:
    fields["audio"] = fields["audio"][0]


def empty_audio(fields: dict) -> None:
    fields["audio"] = fields["audio"][:0]


def no_utterances(fields: dict) -> None:
    for field in FIELDS:
        fields[field] = np.asarray(fields[field])[None][:0]


def two_of_audio(fields: dict) -> None:
    fields["audio"] = np.stack([fields["audio"]] * 2)


def two_ids(fields: dict) -> None:
    fields["id"] = ["a", "b"]


def two_labels(fields: dict) -> None:
    fields["regression_labels"] = [1, 2]


def label_of_5(fields: dict) -> None:
    fields["regression_labels"] = 5


def label_of_words(fields: dict) -> None:
    fields["labels"] = {"M": 1}
    fields.pop("regression_labels")


def words_for_audio(fields: dict) -> None:
    fields["audio"] = ["loud", "soft"]


def a_number_for_audio(fields: dict) -> None:
    fields["audio"] = 3


def huge_audio(fields: dict) -> None:
    fields["audio"] = np.full((50, 5), 3e38, np.float32)


BROKEN = {
    "another width": (widen, "'audio' is 10 wide, but the checkpoint expects 5"),
    "a missing field": (drop_vision, "lacks 'vision'; it has"),
    "NaN": (put_nan, "'vision' is NaN or infinite"),
    "NaN that is cut": (put_nan_after_the_steps_of_the_model, "'vision' is NaN or infinite"),
    "a token of another vocabulary": (put_unknown_token, "token ids up to 30000"),
    "an invalid mask": (put_mask_of_2, "'text_bert' is not token ids, attention masks"),
    "tokens as columns": (transpose_tokens, "'text_bert' is (50, 3) for an utterance"),
    "one step without its axis": (flatten_audio, "'audio' is (5,); expected (N, steps, width), or"),
    "no steps": (empty_audio, "'audio' is (0, 5) for an utterance; expected (steps, 5)"),
    "no utterances": (no_utterances, "at least 1"),
    "more audio than text": (two_of_audio, "'text_bert' has 1 utterances, but 'audio' has 2"),
    "more ids than utterances": (two_ids, "'id' has 2 utterances"),
    "more labels than utterances": (two_labels, "'regression_labels' is (2,)"),
    "a label out of range": (label_of_5, "'regression_labels' is not a number in [-3, 3]"),
    "labels that are no numbers": (label_of_words, "'labels' is not an array of numbers"),
    "words": (words_for_audio, "'audio' is not an array of numbers"),
    "a number": (a_number_for_audio, "'audio' is (); expected (N, steps, width)"),
    "features out of range": (huge_audio, "is not finite"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_is_named_and_the_others_are_predicted(case, loose, corpus, capsys):
    change, reason = BROKEN[case]
    write_each(loose, corpus)
    fields = {field: np.copy(value) for field, value in utterances(corpus, 4).items()}
    change(fields)
    write_pickle(loose / "u4.pkl", fields)
    assert predict("--predictions", "out.csv") == 2
    output = capsys.readouterr()
    lines = [line for line in output.out.splitlines() if "[ERROR]" in line]
    assert len(lines) == 1 and "loose/u4.pkl: " in lines[0] and reason in lines[0]
    assert output.err.count("\n") == 1
    assert "1 of 10 files are broken and were skipped: u4.pkl." in output.err
    expected = predicted(RESULT)
    del expected[4]
    assert predicted("out.csv") == pytest.approx(expected, abs=1e-6)


def test_unreadable_files_are_named_and_the_others_are_predicted(loose, corpus, capsys):
    write_each(loose, corpus, range(2))
    (loose / "a page.pkl").write_text("<html>Sign in</html>")
    (loose / "empty.pkl").write_bytes(b"")
    (loose / "half.pickle").write_bytes((loose / "u0.pkl").read_bytes()[:900])
    (loose / "gone.pkl").symlink_to("nowhere")
    write_pickle(loose / "list.pkl", [1])
    write_pickle(loose / "other.pkl", {"dev": utterances(corpus, 0)})
    with pytest.raises(DataError) as error:
        test_command.DMD_test(BEST, features="loose", predictions="out.csv")
    names = "a page.pkl, empty.pkl, gone.pkl, half.pickle, list.pkl, other.pkl"
    assert f"6 of 8 files are broken and were skipped: {names}." in str(error.value)
    log = capsys.readouterr().out
    for reason in (
        "a page.pkl: not a readable pickle: it is a web page",
        "empty.pkl: not a readable pickle: the file is empty",
        "gone.pkl: cannot be read (No such file or directory)",
        "half.pickle: not a readable pickle: it ends early",
        "list.pkl: not a readable pickle (it holds a list)",
        "other.pkl: has neither the fields text_bert, audio, vision nor the split 'test'; "
        "it has ['dev']",
    ):
        assert log.count(reason) == 1
    assert predicted("out.csv") == pytest.approx(predicted(RESULT)[:2], abs=1e-6)


def test_nothing_is_written_if_all_files_are_broken(loose, capsys):
    write_pickle(loose / "a.pkl", {})
    message = refused(capsys, test_command, BEST, "--features", "loose", "--predictions", "out.csv")
    assert "1 of 1 files are broken and were skipped: a.pkl." in message


def test_folder_without_pickles_is_refused(loose, corpus, capsys):
    write_pickle(loose / ".hidden.pkl", utterances(corpus, 0))
    write_pickle(loose / "a.txt", utterances(corpus, 0))
    write_pickle(loose / "folder.pkl" / "a.pkl", utterances(corpus, 0))
    message = refused(capsys, test_command, BEST, "--features", "loose", "--predictions", "out.csv")
    assert "loose: has no pickles. Expected .pkl or .pickle files" in message


def test_hidden_and_other_files_are_ignored(loose, corpus):
    write_each(loose, corpus)
    for name in (".hidden.pkl", "._u0.pkl", "notes.txt", "u0.pkl.part"):
        (loose / name).write_text("no pickle")
    assert predict("--predictions", "out.csv") == 0
    assert is_that_of_the_run("out.csv")


def test_existing_predictions_are_not_replaced(loose, corpus, capsys):
    write_each(loose, corpus, range(1))
    Path("out.csv").write_text("mine")
    arguments = [BEST, "--features", "loose", "--predictions", "out.csv"]
    assert "--overwrite" in refused(capsys, test_command, *arguments)


def test_files_that_were_built_in_another_way_than_the_training_data_are_broken(
    loose, corpus, capsys
):
    description = Path("pt/dmd-synthetic-1111/run.json")
    description.write_text(
        description.read_text().replace('"provenance": ""', '"provenance": "--pool-to 5"')
    )
    write_pickle(loose / "a.pkl", utterances(corpus, 0))
    content = {"test": utterances(corpus, slice(1, 2)), "provenance": "--pool-to 7"}
    write_pickle(loose / "b.pkl", content)
    assert predict("--predictions", "out.csv") == 2
    assert "b.pkl: was built with --pool-to 7, but the training data with --pool-to 5" in (
        capsys.readouterr().out
    )
    assert len(rows_of("out.csv")) == 1
