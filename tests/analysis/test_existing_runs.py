"""Runs listed and compared, and seeds summed up: real runs and commands, numbers worked out from their files."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import compare
from analysis import runs as list_of_runs
from tests.commands import call, files, metrics_of, refused, rows_of, train
from utils.metrics import CORE_METRICS

A, SECOND, B = (Path("result") / name for name in ("dmd-synthetic-1", "dmd-synthetic-2", "paper-synthetic-1"))
INTERVALS = Path("result/normal/synthetic-intervals.csv")


@pytest.fixture(scope="module")
def trained(make_folder) -> Path:
    """A folder with one command's two seeds, and a run with other settings."""
    with contextlib.chdir(folder := make_folder()):
        assert train("-s", "1", "2") == 0
        assert train("-s", "1", "--name", "paper", "--set", "objective=paper") == 0
    return folder


@pytest.fixture
def runs(trained, tmp_path, monkeypatch) -> Path:
    """A copy of them, as the working folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("pt"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv", dtype={"id": str}, keep_default_na=False)


def change(folder: Path, **columns) -> None:
    read(folder).assign(**columns).to_csv(folder / "predictions.csv", index=False)


def configure(folder: Path, **settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {key: settings.pop(key) for key in list(settings) if key in config}
    (folder / "config.json").write_text(json.dumps(config | {"settings": config["settings"] | settings}))


def test_files_of_a_run_over_two_seeds(trained, runs):
    for seed in (1, 2):
        left = {path.name for path in (trained / f"pt/dmd-synthetic-{seed}").iterdir()}
        assert left == {".lock", "1.pth", "2.pth", "best.pth", "config.json", "training-state.pt"}
        rows = rows_of(f"result/dmd-synthetic-{seed}/history.csv")
        assert [row["epoch"] for row in rows] == ["1", "2"]
        for graph in ("homo", "hetero"):
            values = [float(rows[0][name]) for name in rows[0] if name.startswith(f"edge/{graph}_")]
            assert len(values) == 6 and sum(values) == pytest.approx(1, abs=1e-5)
        assert {"loss/total", "loss/hetero/repr", "valid/Loss", "test/Corr", "train/MAE", "seconds"} <= set(rows[0])
        config = json.loads(Path(f"result/dmd-synthetic-{seed}/config.json").read_text())
        assert config["settings"]["nlevels"] == 1 and config["seed"] == seed and "torch" in config["versions"]
    seeds, table = rows_of("result/normal/synthetic-seeds.csv"), rows_of("result/normal/synthetic.csv")
    assert [row["seed"] for row in seeds][:2] == ["1", "2"]
    values = [float(row["MAE"]) for row in seeds[:2]]
    assert table[0]["MAE"] == str((round(float(np.mean(values)) * 100, 2), round(float(np.std(values)) * 100, 2)))


def test_run_adds_the_intervals_of_several_seeds(trained, runs, capsys):
    rows = pd.read_csv(INTERVALS)
    assert set(rows["Model"]) == {"dmd"} and set(rows["seeds"]) == {"1 2"} and tuple(rows["metric"]) == CORE_METRICS
    table = pd.read_csv("result/normal/synthetic.csv").iloc[0]
    for row in rows.itertuples():
        assert np.allclose(eval(table[row.metric]), (100 * row.mean, 100 * row.std), atol=0.011)
        assert row.low - 1e-4 <= row.mean <= row.high + 1e-4 and row.low < row.high
    shutil.copytree(trained / "pt", "pt")
    before = files()
    assert train("-s", "1", "2", "--resume") == 0
    assert files() == before  # no row is added twice
    assert ["mean", *rows["mean"].map("{:.4f}".format)] in [
        line.split(" - ")[2].split() for line in capsys.readouterr().out.splitlines()
    ]
    # The command gives the same intervals, also where files have other places.
    configure(SECOND, device="cuda:0 (H)", keep_checkpoints=1, featurePath="/elsewhere/aligned_50.pkl")
    assert call(compare, "--seeds", str(SECOND), str(A), "--output", "seeds.csv") == 0
    table = pd.read_csv("seeds.csv").set_index("seed")
    assert list(table.index) == ["2", "1", "mean", "std", "low", "high"]
    for row in rows.to_dict("records"):
        one, two = (metrics_of(folder.name)[row["metric"]] for folder in (A, SECOND))
        assert table[row["metric"]][["1", "2"]].tolist() == [one, two]
        assert table[row["metric"]]["std"] == pytest.approx(abs(one - two) / 2)
        assert [table[row["metric"]][s] for s in ("mean", "low", "high")] == pytest.approx(
            [row[s] for s in ("mean", "low", "high")], abs=6e-5
        )
    configure(SECOND, keep_checkpoints="all")
    (SECOND / "predictions.csv").unlink()
    assert train("-s", "1", "2", "--resume") == 0  # the runs are complete without intervals
    assert f"No intervals over the seeds: {SECOND}/predictions.csv" in capsys.readouterr().out


def test_two_runs(runs, capsys):
    assert call(compare, str(A), str(B), "--output", "out/pair.csv") == 0
    printed = capsys.readouterr().out
    assert f"A: {A}\nB: {B}\n10 utterances of test" in printed
    labels, first, second = read(A)["label"], read(A)["prediction"], read(B)["prediction"]
    rows = pd.read_csv("out/pair.csv").set_index("metric")
    assert tuple(rows.index) == CORE_METRICS and all(f"\n{metric} " in printed for metric in CORE_METRICS)
    mae = rows.loc["MAE"]
    difference = (first - labels).abs().mean() - (second - labels).abs().mean()
    assert mae["difference"] == pytest.approx(difference, abs=1e-6) and mae["low"] < difference < mae["high"]
    assert mae[["p", "only_B"]].isna().all() and mae[["utterances", "run_A", "run_B"]].tolist() == [10, str(A), str(B)]


def test_the_better_run_is_named_where_they_differ(runs, capsys):
    """B says the opposite of the label, A the label: 9 or more of 10 labels are not 0, and 2 / 2^9 < 0.05."""
    change(A, prediction=read(A)["label"])
    change(B, prediction=-read(B)["label"])
    for one, other, better in ((A, B, "A"), (B, A, "B"), (SECOND, SECOND, "neither")):
        assert call(compare, str(one), str(other), "--output", "pair.csv") == 0
        assert pd.read_csv("pair.csv")["better"].tolist() == [better] * 4


def test_utterances_are_paired_by_id(runs, capsys):
    ids = ["NA", "", "007", "7", "7", "1e5", 'é,"x"', "nan", "None", "a\nb"]  # 7 occurs twice
    change(A, id=ids)
    change(B, id=ids)
    assert call(compare, str(A), str(B)) == 0
    straight = capsys.readouterr().out
    read(B).iloc[[9, 8, 7, 6, 5, 3, 4, 2, 1, 0]].to_csv(B / "predictions.csv", index=False)
    assert call(compare, str(A), str(B)) == 0
    assert capsys.readouterr().out == straight
    read(A).iloc[:8].to_csv(A / "predictions.csv", index=False)
    read(B).iloc[:9].to_csv(B / "predictions.csv", index=False)  # without the first of A
    assert call(compare, str(A), str(B)) == 0
    assert "7 utterances of test that all runs have (of 8, 9)" in capsys.readouterr().out


PAIR, SEEDS = [str(A), str(B)], ["--seeds", str(A), str(SECOND)]
BAD = {
    "one run": (lambda: None, [str(A)], "1 runs"),
    "no run": (lambda: None, [str(A), "result/normal"], "result/normal/config.json: no run"),
    "no table": (lambda: (B / "predictions.csv").write_text(""), PAIR, "predictions.csv"),
    "no common utterance": (lambda: change(B, id="other"), PAIR, "less than 2"),
    "another label": (lambda: change(B, label=2.75), PAIR, "label"),
    "other settings": (lambda: None, ["--seeds", str(SECOND), str(B)], "has fusion gate"),
    "other data": (lambda: configure(SECOND, data={"featurePath": "0"}), SEEDS, "has data"),
    "no place for the output": (lambda: None, [*PAIR, "--output", "result"], "result"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_written(case, runs, capsys):
    damage, arguments, word = BAD[case]
    damage()
    assert word in refused(capsys, compare, "--output", "result/table.csv", *arguments)


def rows(*arguments: str) -> pd.DataFrame:
    assert call(list_of_runs, *arguments, "--output", "list.csv") == 0
    return pd.read_csv("list.csv").set_index("name")


def test_runs_and_seeds_best_first(runs, capsys):
    shutil.copytree("result/paper-synthetic-1", "result/begun-synthetic-1")
    Path("result/begun-synthetic-1/metrics.json").unlink()
    for folder, content in (("damaged", "{"), ("other", '{"name": "no run"}')):
        Path("result", folder).mkdir()
        Path("result", folder, "config.json").write_text(content)
    table, printed = rows(), capsys.readouterr()
    assert [line.split(":")[1] for line in printed.err.splitlines()] == [
        " result/damaged/config.json", " result/other/config.json"
    ]  # fmt: skip
    valid = table["valid_Loss"]
    assert valid.head(2).is_monotonic_increasing and list(valid.index[valid.isna()]) == ["begun"]
    stored = [metrics_of(f"dmd-synthetic-{seed}") for seed in (1, 2)]
    dmd = table.loc["dmd"]
    assert (dmd["dataset"], dmd["seeds"]) == ("synthetic", "1 2")
    for metric in ("valid_Loss", "Acc_2", "MAE", "Corr"):
        one, two = (result[metric] for result in stored)
        assert [dmd[metric], dmd[f"{metric}_std"]] == pytest.approx([(one + two) / 2, abs(one - two) / 2])
    assert f"{dmd['MAE']:.4f} ± {dmd['MAE_std']:.4f}" in printed.out
    paper = metrics_of("paper-synthetic-1")
    assert table.loc["paper", "MAE"] == paper["MAE"] and int(table.loc["paper", "epoch"]) == paper["epoch"]
    assert table["objective"].to_dict() | {"dmd": "release", "paper": "paper"} == table["objective"].to_dict()
    assert "batch_size" not in table
    unfinished = next(line for line in printed.out.splitlines() if line.split()[0] == "begun")
    assert unfinished.split()[-5:] == ["-"] * 5


def test_a_higher_accuracy_is_better_and_filters_hold(runs, capsys):
    for run, value in (("dmd-synthetic-1", 0.5), ("paper-synthetic-1", 0.7)):
        result = metrics_of(run) | {"valid_Acc_2": value}
        del result["valid_Loss"]
        Path("result", run, "metrics.json").write_text(json.dumps(result))
    shutil.rmtree("result/dmd-synthetic-2")
    assert list(rows().index) == ["paper", "dmd"]
    assert list(rows("result", "-d", "synthetic", "--name", "p*").index) == ["paper"]
    assert "objective" not in rows("--name", "dmd")  # one run differs from none
    for arguments in (["-d", "mosi"], ["--name", "x*"], ["nowhere"]):
        assert call(list_of_runs, *arguments) == 2
