"""Two runs compared, and seeds summed up: real runs, real commands, numbers worked out from their files."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis import compare
from tests.commands import ROOT, call, files_below, train, write_pickle

A, SECOND, B = (Path("result") / name for name in ("dmd-synthetic-1", "dmd-synthetic-2", "paper-synthetic-1"))
INTERVALS = Path("result/normal/synthetic-intervals.csv")


@pytest.fixture(scope="module")
def home(tmp_path_factory, corpus) -> Path:
    """A folder with one command's two seeds, and a run of other settings."""
    folder = tmp_path_factory.mktemp("trained")
    write_pickle(folder / "dataset/SYNTHETIC/aligned_50.pkl", corpus)
    with contextlib.chdir(folder):
        assert train("-s", "1", "2", "--set", "keep_checkpoints=1") == 0
        assert train("-s", "1", "--name", "paper", "--set", "objective=paper", "--set", "keep_checkpoints=1") == 0
    return folder


@pytest.fixture
def runs(home, tmp_path, monkeypatch) -> Path:
    """A copy of them, as the working folder."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("pt"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def columns(folder: Path) -> np.ndarray:
    """Labels and predictions of a run."""
    return np.array([[float(row["label"]), float(row["prediction"])] for row in rows_of(folder / "predictions.csv")]).T


def edit(folder: Path, change) -> None:
    """Rewrite predictions.csv row by row."""
    path = folder / "predictions.csv"
    write_rows(path, [change(row) for row in rows_of(path)])


def configure(folder: Path, **changed) -> None:
    config = json.loads((folder / "config.json").read_text())
    settings = {key: changed.pop(key) for key in list(changed) if key in config["settings"]}
    (folder / "config.json").write_text(json.dumps(config | changed | {"settings": config["settings"] | settings}))


def test_run_adds_the_intervals_of_several_seeds(runs, capsys):
    rows = rows_of(INTERVALS)
    assert [(row["Model"], row["seeds"], row["metric"]) for row in rows] == [
        ("dmd", "1 2", metric) for metric in ("Acc_2", "F1_score", "Acc_7", "MAE")
    ]  # and none of the run of one seed
    [table, _] = rows_of(Path("result/normal/synthetic.csv"))
    for row in rows:
        mean, std, low, high = (float(row[name]) for name in ("mean", "std", "low", "high"))
        assert np.allclose(eval(table[row["metric"]]), (100 * mean, 100 * std), atol=0.011)
        assert low - 1e-4 <= mean <= high + 1e-4 and low < high
    seeds = ["-s", "1", "2", "--set", "keep_checkpoints=1"]
    before = files_below(runs)
    assert train(*seeds, "--resume") == 0
    assert files_below(runs) == before
    logged = [line.split(" - ")[2].split() for line in capsys.readouterr().out.splitlines()]
    assert ["mean", *(f"{float(row['mean']):.4f}" for row in rows)] in logged
    assert ["2", *(f"{json.loads((SECOND / 'metrics.json').read_text())[row['metric']]:.4f}" for row in rows)] in logged
    (SECOND / "predictions.csv").unlink()  # as an earlier version left it
    INTERVALS.unlink()
    assert train(*seeds, "--resume") == 0
    assert f"No intervals over the seeds: {SECOND}/predictions.csv: no such file" in capsys.readouterr().out
    assert not INTERVALS.exists()


def test_two_runs_by_a_process_of_its_own(runs):
    done = subprocess.run(
        [sys.executable, "-m", "analysis.compare", A, B, "--output", "out/pair.csv"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (labels, first), (_, second) = columns(A), columns(B)
    rows = {row["metric"]: row for row in rows_of(Path("out/pair.csv"))}
    assert list(rows) == ["Acc_2", "F1_score", "Acc_7", "MAE"] and os.listdir("out") == ["pair.csv"]
    difference = np.abs(first - labels).mean() - np.abs(second - labels).mean()
    assert float(rows["MAE"]["difference"]) == pytest.approx(difference, abs=1e-6)
    assert float(rows["MAE"]["low"]) < difference < float(rows["MAE"]["high"])
    right_a, right_b = (np.rint(x.clip(-3, 3)) == np.rint(labels) for x in (first, second))
    assert int(rows["Acc_7"]["only_A"]) == (right_a & ~right_b).sum()
    assert (rows["MAE"]["p"], rows["MAE"]["only_B"], rows["MAE"]["utterances"]) == ("", "", "10")
    assert (rows["MAE"]["run_A"], rows["MAE"]["run_B"]) == (str(A), str(B))
    assert f"A: {A}\nB: {B}\n10 utterances of test.\n" in done.stdout
    for metric in rows:
        assert f"\n{metric}: " in done.stdout
    assert "4 metrics are tested at 5 % each" in done.stdout and "these two trained models" in done.stdout


def test_a_run_against_its_copy_shows_no_difference(runs, capsys):
    shutil.copytree(A, "result/copy")
    assert call(compare, str(A), "result/copy") == 0
    out = capsys.readouterr().out
    assert out.count("no difference is shown at 5 %") == 4 and "is better" not in out
    assert out.count("(McNemar's p = 1)") == 2


def test_a_real_difference_is_told_with_its_direction(runs, capsys):
    """B says the opposite of the label, A the label: 9 or more of 10 labels are not 0, and 2 / 2^9 < 0.05."""
    edit(A, lambda row: row | {"prediction": row["label"]})
    edit(B, lambda row: row | {"prediction": str(-float(row["label"]))})
    assert call(compare, str(A), str(B)) == 0
    printed = capsys.readouterr()
    assert printed.out.count("A is better by") == 4 and "Acc_2: A is better by 1.0000 at 5 %" in printed.out
    assert call(compare, str(B), str(A)) == 0
    assert capsys.readouterr().out.count("B is better by") == 4
    # Such predictions are not those of metrics.json, which is said of each.
    warnings = printed.err.splitlines()
    assert [line.split(": ")[1] for line in warnings] == [str(A), str(B)]
    assert "predictions.csv gives Acc_2 1.0, but metrics.json says" in warnings[0]


def test_seeds_of_one_configuration(runs, capsys):
    assert call(compare, "--seeds", str(SECOND), str(A), "--output", "seeds.csv") == 0
    rows = {row["seed"]: row for row in rows_of(Path("seeds.csv"))}
    assert list(rows) == ["2", "1", "mean", "std", "low", "high"]
    stored = [json.loads((folder / "metrics.json").read_text()) for folder in (A, SECOND)]
    for row in rows_of(INTERVALS):  # which run.py has written of the same
        metric, (one, two) = row["metric"], (metrics[row["metric"]] for metrics in stored)
        assert (float(rows["1"][metric]), float(rows["2"][metric])) == (one, two)
        assert float(rows["std"][metric]) == pytest.approx(abs(one - two) / 2)
        for name in ("mean", "std", "low", "high"):
            assert float(rows[name][metric]) == pytest.approx(float(row[name]), abs=6e-5)
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.startswith("10 utterances of test.\n") and "ddof 0" in printed.out


def test_utterances_are_paired_by_id(runs, capsys):
    assert call(compare, str(A), str(B)) == 0
    straight = capsys.readouterr().out
    write_rows(B / "predictions.csv", rows_of(B / "predictions.csv")[::-1])
    assert call(compare, str(A), str(B)) == 0
    assert capsys.readouterr().out == straight  # B in another order
    for folder, start in ((A, 0), (B, 1)):
        rows = sorted(rows_of(folder / "predictions.csv"), key=lambda row: row["id"])
        write_rows(folder / "predictions.csv", rows[start : start + 8])
    assert call(compare, str(A), str(B)) == 0
    assert f"7 utterances of test; not in all runs: 1 of {A}, 1 of {B}.\n" in capsys.readouterr().out


def test_ids_that_repeat_or_look_like_numbers_or_nothing(runs, capsys):
    ids = iter(["NA", "", "007", "7", "7", "1e5", "é,\"x\"", "nan", "None", "a\nb"] * 2)  # fmt: skip
    for folder in (A, B):
        edit(folder, lambda row: row | {"id": next(ids)})
    assert call(compare, str(A), str(B)) == 0  # the same utterances in the same order
    assert "10 utterances of test." in capsys.readouterr().out
    write_rows(B / "predictions.csv", rows_of(B / "predictions.csv")[::-1])
    assert call(compare, str(A), str(B)) == 2
    assert "utterance '7' occurs twice" in capsys.readouterr().err


def test_other_circumstances_are_a_warning(runs, capsys):
    configure(SECOND, device="cuda:0 (H)", ranks=2, keep_checkpoints="all", featurePath="/elsewhere/aligned_50.pkl")
    assert call(compare, "--seeds", str(A), str(SECOND)) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and all(line.startswith(f"Warning: {SECOND}: ") for line in warnings)
    assert "device is cuda:0 (H), but cpu" in warnings[0] and "ranks is 2, but 1" in warnings[1]


def replace(folder: Path, text: str):
    return lambda: (folder / "predictions.csv").write_text(text)


def cell(column: str, text: str):
    """Put a text in that column of the last utterance of B."""
    rows = rows_of(B / "predictions.csv")
    write_rows(B / "predictions.csv", [*rows[:-1], rows[-1] | {column: text}])


def pipe(name: str = "predictions.csv"):
    (B / name).unlink()
    os.mkfifo(B / name)


def describe(**changes):
    """Change entries of B's config.json."""
    description = json.loads((B / "config.json").read_text())
    (B / "config.json").write_text(json.dumps(description | changes))


PAIR, SEEDS = [str(A), str(B)], ["--seeds", str(A), str(SECOND)]
HEAD = "id,label,prediction\n"
BAD = {
    "no runs": (lambda: None, [], "needs two runs, not 0"),
    "one run": (lambda: None, [str(A)], "needs two runs, not 1"),
    "three runs": (lambda: None, [*PAIR, str(SECOND)], "not 3. Several seeds of one take --seeds"),
    "one seed": (lambda: None, ["--seeds", str(A)], "at least two seeds"),
    "no such folder": (lambda: None, [str(A), "result/none"], "result/none: no such folder"),
    "no run": (lambda: None, [str(A), "result/normal"], "result/normal: not the result folder of a run"),
    "the same run": (lambda: None, [str(A), f"{A}/"], "named twice"),
    "the same run by a link": (lambda: Path("link").symlink_to(A), [str(A), "link"], "named twice"),
    "unfinished": (lambda: [(B / name).unlink() for name in ("predictions.csv", "metrics.json")], PAIR, "not finished"),
    "no predictions": (lambda: (B / "predictions.csv").unlink(), PAIR, "predictions.csv: no such file"),
    "checkpoints": (lambda: (B / "history.csv").rename(B / "1.pth"), PAIR, "Name the run's result folder"),
    "nested settings": (lambda: (B / "config.json").write_text("[" * 200_000), PAIR, "nested too deeply"),
    "a pipe for settings": (lambda: pipe("config.json"), PAIR, "config.json: not a readable"),
    "other features": (lambda: describe(features={"bogus": "x"}), PAIR, "it holds no config.json"),
    "broken metrics": (lambda: (B / "metrics.json").write_text("{"), PAIR, "metrics.json: not a readable"),
    "a pipe for a file": (pipe, PAIR, "not a readable table (OSError)"),
    "nothing in it": (replace(B, ""), PAIR, "not a readable table"),
    "not text": (lambda: (B / "predictions.csv").write_bytes(b"\xff\xfe\x00" * 99), PAIR, "not a readable table"),
    "missing column": (replace(B, "id,label\na,1\n"), PAIR, "lacks the column 'prediction'"),
    "too many fields": (replace(B, HEAD + "a,1,2,3\n"), PAIR, "more fields"),
    "no utterance": (replace(B, HEAD), PAIR, "holds no utterance"),
    "no common utterance": (replace(B, HEAD + "a,1,2\nb,1,2\n"), PAIR, "they share no utterance"),
    "a word for a number": (lambda: cell("prediction", "high"), PAIR, "'high', but should be a finite number"),
    "NaN": (lambda: cell("prediction", "nan"), PAIR, "'nan', but should be"),
    "cut short": (lambda: cell("prediction", ""), PAIR, "'', but should be"),
    "infinite": (lambda: cell("label", "1e39"), PAIR, "the label of utterance"),
    "control characters": (lambda: cell("label", "\x1b[2J\n1"), PAIR, "the label of utterance"),
    "another label": (lambda: cell("label", "2.75"), PAIR, "is 2.75, but"),
    "other settings": (lambda: None, ["--seeds", str(SECOND), str(B)], "has fusion gate"),
    "longer": (lambda: configure(SECOND, max_epochs=9), SEEDS, "has max_epochs 9"),
    "other data": (lambda: configure(SECOND, data={"featurePath": "0"}), SEEDS, "has data"),
    "other precision": (lambda: configure(SECOND, precision="bf16"), SEEDS, "has precision bf16"),
    "no seed": (lambda: configure(SECOND, seed=None), SEEDS, "names no seed"),
    "a seed twice": (lambda: configure(SECOND, seed=1), SEEDS, "has the seed 1, as"),
    "no place for the output": (lambda: None, [*PAIR, "--output", "result"], "--output: cannot write result"),
}  # fmt: skip


def test_bad_input_is_one_line_and_nothing_written(home, tmp_path, monkeypatch, capsys):
    for case, (damage, arguments, word) in BAD.items():
        folder = tmp_path / case
        shutil.copytree(home / "result", folder / "result")
        monkeypatch.chdir(folder)
        damage()
        before = files_below(folder)
        assert call(compare, "--output", "result/table.csv", *arguments) == 2, case
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and word in printed.err and printed.out == "", (case, printed)
        assert "\x1b" not in printed.err
        assert files_below(folder) == before, case
