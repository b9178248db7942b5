"""List and compare runs, and summarize seeds: real runs and commands, values from their files."""

import contextlib
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import run as training
from analysis import compare, figures
from analysis import runs as list_of_runs
from experiments.run_folder import RunFolder
from tests.commands import (
    ROOT,
    SMALL,
    TINY,
    call,
    files,
    metrics_of,
    refused,
    rows_of,
    train,
    write_pickle,
)
from utils.metrics import CORE_METRICS

A, SECOND, B = (
    Path("result") / name for name in ("dmd-synthetic-1", "dmd-synthetic-2", "paper-synthetic-1")
)
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
    """A copy of the runs, as the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("pt"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv", dtype={"id": str}, keep_default_na=False)


def change(folder: Path, **columns) -> None:
    read(folder).assign(**columns).to_csv(folder / "predictions.csv", index=False)


def configure(folder: Path, **settings) -> None:
    config = json.loads((folder / "run.json").read_text())
    config |= {key: settings.pop(key) for key in list(settings) if key in config}
    (folder / "run.json").write_text(
        json.dumps(config | {"settings": config["settings"] | settings})
    )


def test_run_over_two_seeds_writes_all_files(trained, runs):
    for seed in (1, 2):
        left = {path.name for path in (trained / f"pt/dmd-synthetic-{seed}").iterdir()}
        assert left == {".lock", "1.pth", "2.pth", "best.pth", "run.json", "training-state.pt"}
        rows = rows_of(f"result/dmd-synthetic-{seed}/history.csv")
        assert [row["epoch"] for row in rows] == ["1", "2"]
        for graph in ("homo", "hetero"):
            values = [float(rows[0][name]) for name in rows[0] if name.startswith(f"edge/{graph}_")]
            assert len(values) == 6 and sum(values) == pytest.approx(1, abs=1e-5)
        assert {
            "loss/total",
            "loss/hetero/repr",
            "valid/Loss",
            "test/Corr",
            "train/MAE",
            "seconds",
        } <= set(rows[0])
        config = json.loads(Path(f"result/dmd-synthetic-{seed}/run.json").read_text())
        assert (
            config["settings"]["nlevels"] == 1
            and config["seed"] == seed
            and "torch" in config["versions"]
        )
    seeds, table = (
        rows_of("result/normal/synthetic-seeds.csv"),
        rows_of("result/normal/synthetic.csv"),
    )
    assert [row["seed"] for row in seeds][:2] == ["1", "2"]
    values = [float(row["MAE"]) for row in seeds[:2]]
    assert table[0]["MAE"] == str(
        (round(float(np.mean(values)) * 100, 2), round(float(np.std(values)) * 100, 2))
    )


def test_run_adds_the_intervals_of_several_seeds(trained, runs, capsys):
    rows = pd.read_csv(INTERVALS)
    assert (
        set(rows["Model"]) == {"dmd"}
        and set(rows["seeds"]) == {"1 2"}
        and tuple(rows["metric"]) == CORE_METRICS
    )
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
    configure(
        SECOND, device="cuda:0 (H)", keep_checkpoints=1, featurePath="/elsewhere/aligned_50.pkl"
    )
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


def test_comparison_of_two_runs_is_printed_and_saved(runs, capsys):
    assert call(compare, str(A), str(B), "--output", "out/pair.csv") == 0
    printed = capsys.readouterr().out
    assert f"A: {A}\nB: {B}\n10 test utterances" in printed
    labels, first, second = read(A)["label"], read(A)["prediction"], read(B)["prediction"]
    rows = pd.read_csv("out/pair.csv").set_index("metric")
    assert tuple(rows.index) == CORE_METRICS and all(
        f"\n{metric} " in printed for metric in CORE_METRICS
    )
    mae = rows.loc["MAE"]
    difference = (first - labels).abs().mean() - (second - labels).abs().mean()
    assert (
        mae["difference"] == pytest.approx(difference, abs=1e-6)
        and mae["low"] < difference < mae["high"]
    )
    assert list(rows) == [
        "A",
        "B",
        "difference",
        "low",
        "high",
        "p",
        "better",
        "run_A",
        "run_B",
        "utterances",
        "videos",
    ]
    assert mae[["run_A", "run_B", "utterances", "videos"]].tolist() == [str(A), str(B), 10, 1]
    assert "all of one video" in printed and "resamples of the utterances" in printed


def test_comparisons_and_intervals_are_over_videos(runs, capsys):
    """10 utterances are clips of two videos. Swapping both is as extreme as swapping none, so p is
    about 1 / 2.
    """
    ids = [f"{video}$_${clip}" for video in ("x", "y") for clip in range(5)]
    change(A, id=ids, prediction=read(A)["label"])
    change(B, id=ids, prediction=-read(B)["label"])
    assert call(compare, str(A), str(B), "--output", "pair.csv") == 0
    printed, rows = capsys.readouterr().out, pd.read_csv("pair.csv")
    assert "10 test utterances that all runs share (of 10, 10), of 2 videos." in printed
    assert "Only 2 videos: p cannot fall below 5 %" in printed
    assert set(rows["videos"]) == {2} and set(rows["better"]) == {"neither"}
    assert rows["p"].between(0.48, 0.52).all()

    change(SECOND, id=ids)
    assert call(compare, "--seeds", str(A), str(SECOND), "--output", "seeds.csv") == 0
    assert "of 2 videos." in capsys.readouterr().out
    table = pd.read_csv("seeds.csv").set_index("seed")
    errors = [(read(folder)["prediction"] - read(folder)["label"]).abs() for folder in (A, SECOND)]
    of_videos = (sum(errors) / 2).groupby([0] * 5 + [1] * 5).mean()
    # A quarter of the resamples draws the one video twice.
    assert table.loc[["low", "high"], "MAE"].tolist() == pytest.approx(sorted(of_videos), abs=1e-6)
    assert train("-s", "1", "2", "--resume") == 0
    assert (
        "10 test utterances that all runs share (of 10, 10), of 2 videos."
        in capsys.readouterr().out
    )


def test_better_run_is_named_if_runs_differ(runs, capsys):
    """B predicts the opposite of the label, A the label. All are clips of one video, so utterances
    are swapped: 9 or more of 10 labels are not 0, and 2 / 2^9 < 0.05."""
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
    assert "7 test utterances that all runs share (of 8, 9)" in capsys.readouterr().out


PAIR, SEEDS = [str(A), str(B)], ["--seeds", str(A), str(SECOND)]
BAD = {
    "one run": (lambda: None, [str(A)], "1 runs"),
    "no run": (lambda: None, [str(A), "result/normal"], "result/normal/run.json: missing"),
    "no table": (lambda: (B / "predictions.csv").write_text(""), PAIR, "predictions.csv"),
    "no common utterance": (lambda: change(B, id="other"), PAIR, "fewer than 2 shared"),
    "another label": (lambda: change(B, label=2.75), PAIR, "label"),
    "other settings": (lambda: None, ["--seeds", str(SECOND), str(B)], "has fusion gate"),
    "other data": (lambda: configure(SECOND, data={"featurePath": "0"}), SEEDS, "has data"),
    "no place for the output": (lambda: None, [*PAIR, "--output", "result"], "result"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_writes_nothing(case, runs, capsys):
    damage, arguments, word = BAD[case]
    damage()
    assert word in refused(capsys, compare, "--output", "result/table.csv", *arguments)


def rows(*arguments: str) -> pd.DataFrame:
    assert call(list_of_runs, *arguments, "--output", "list.csv") == 0
    return pd.read_csv("list.csv").set_index("name")


def test_runs_are_listed_best_first(runs, capsys):
    shutil.copytree("result/paper-synthetic-1", "result/begun-synthetic-1")
    Path("result/begun-synthetic-1/metrics.json").unlink()
    for folder, content in (("damaged", "{"), ("other", '{"name": "no run"}')):
        Path("result", folder).mkdir()
        Path("result", folder, "run.json").write_text(content)
    table, printed = rows(), capsys.readouterr()
    assert [line.split(":")[1] for line in printed.err.splitlines()] == [
        " result/damaged/run.json",
        " result/other/run.json",
    ]
    valid = table["valid_Loss"]
    assert valid.head(2).is_monotonic_increasing and list(valid.index[valid.isna()]) == ["begun"]
    stored = [metrics_of(f"dmd-synthetic-{seed}") for seed in (1, 2)]
    dmd = table.loc["dmd"]
    assert (dmd["dataset"], dmd["seeds"]) == ("synthetic", "1 2")
    for metric in ("valid_Loss", "Acc_2", "MAE", "Corr"):
        one, two = (result[metric] for result in stored)
        assert [dmd[metric], dmd[f"{metric}_std"]] == pytest.approx(
            [(one + two) / 2, abs(one - two) / 2]
        )
    assert f"{dmd['MAE']:.4f} ± {dmd['MAE_std']:.4f}" in printed.out
    paper = metrics_of("paper-synthetic-1")
    assert (
        table.loc["paper", "MAE"] == paper["MAE"]
        and int(table.loc["paper", "epoch"]) == paper["epoch"]
    )
    assert (
        table["objective"].to_dict() | {"dmd": "release", "paper": "paper"}
        == table["objective"].to_dict()
    )
    assert "batch_size" not in table
    unfinished = next(line for line in printed.out.splitlines() if line.split()[0] == "begun")
    assert unfinished.split()[-5:] == ["-"] * 5


def test_accuracy_is_sorted_descending_and_filters_apply(runs, capsys):
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


def test_readable_table_keeps_the_numbers_of_its_source():
    """Shortening the table for the terminal does not change the table for --output."""
    results = {"valid_Loss": 1.23456, "MAE": 0.98765, "Corr": 0.5}
    row = {"name": "a", "dataset": "mosi", "epoch": "3", "learning_rate": "0.000123456"}
    table = list_of_runs.table_of(
        [row | results | {"seeds": "1"}, row | results | {"seeds": "2", "MAE": 0.98765 + 2e-3}]
    )
    before = table.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pandas 2 warns of assignments to what may be a view
        shown = list_of_runs.readable(table)
    assert table.equals(before)
    assert shown["MAE"].tolist() == ["0.9887 ± 0.0010"] and shown["valid_Loss"].tolist() == [
        "1.2346 ± 0.0000"
    ]
    assert list(shown) == ["name", "dataset", "seeds", "epoch", "valid_Loss", "MAE"]
    trials = [{**row, "seeds": "-", "learning_rate": f"0.{n}00123456"} for n in range(2)]
    shown = list_of_runs.readable(list_of_runs.table_of([{**one, **results} for one in trials]))
    assert sorted(shown["learning_rate"]) == ["0.0001234…", "0.1001…"]


@pytest.fixture
def own_data(corpus, folder) -> str:
    """A config file with the small corpus as a data set whose name has a hyphen."""
    config = json.loads((ROOT / "config/config.json").read_text())
    for section in (config["datasetCommonParams"], config["dmd"]["datasetParams"]):
        section["my-data"] = section["synthetic"]
    Path("own.json").write_text(json.dumps(config))
    Path("space.json").write_text('{"gamma": [0.1]}')
    return "own.json"


def test_trials_on_a_data_set_with_a_hyphen_are_listed_under_its_name(own_data, capsys):
    sweep = ["-c", own_data, "-d", "my-data", "--name", "a-b", *SMALL, "--epochs", "1"]
    assert call(training, *sweep, "--tune", "1", "--search", "space.json") == 0
    assert rows_of("result/tune/a-b-my-data.csv")[0]["dataset"] == "my-data"
    table = rows("-d", "my-data")
    assert list(table.index) == ["a-b trial 0"] and table["dataset"].tolist() == ["my-data"]
    assert list(rows("--name", "a-b trial*").index) == ["a-b trial 0"]
    assert call(list_of_runs, "-d", "data") == 2


def test_trials_of_an_older_table_without_data_set_are_listed_by_its_file_name(folder, capsys):
    Path("result/tune").mkdir(parents=True)
    Path("result/tune/a-b-synthetic.csv").write_text(
        "number,state,valid_Loss,params_gamma,user_attrs_best_epoch\n"
        "0,COMPLETE,1.5,0.1,2.0\n1,PRUNED,1.75,0.2,\n2,FAIL,,0.3,\n"
    )
    table = rows()
    assert list(table.index) == ["a-b trial 0", "a-b trial 1 (pruned)", "a-b trial 2 (fail)"]
    assert table["dataset"].tolist() == ["synthetic"] * 3 and table["epoch"].tolist() == [
        "2",
        "-",
        "-",
    ]
    assert table["valid_Loss"].tolist()[:2] == [1.5, 1.75] and table["gamma"].tolist() == [
        0.1,
        0.2,
        0.3,
    ]


def strict_json(path: Path) -> dict:
    def refuse(constant: str):
        raise ValueError(f"{path}: {constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.slow
def test_undefined_metrics_are_null_in_metrics_json_and_nan_when_read(folder, corpus, capsys):
    """If every test label is 0, Acc_2 and the correlation are undefined."""
    neutral = {**corpus["test"], "regression_labels": np.zeros(10, np.float32)}
    write_pickle(Path("dataset/SYNTHETIC/aligned_50.pkl"), {**corpus, "test": neutral})
    command = ["-d", "synthetic", *TINY]
    assert call(training, *command) == 0
    folder = Path("result/dmd-synthetic-1111")
    stored = strict_json(folder / "metrics.json")
    assert [stored[name] for name in ("Acc_2", "F1_score", "Corr")] == [None] * 3 and stored[
        "MAE"
    ] > 0
    assert (folder / "report.html").exists()  # drawn at the end
    metrics = RunFolder(folder).metrics
    assert np.isnan([metrics[name] for name in ("Acc_2", "F1_score", "Corr")]).all()

    table, printed = rows(), capsys.readouterr().out
    assert (
        table.loc["dmd", ["Acc_2", "Corr"]].isna().all()
        and table.loc["dmd", "MAE"] == stored["MAE"]
    )
    line = printed.splitlines()[-1].split()
    assert line[0] == "dmd" and line[-4:-1] == ["-", "-", f"{stored['Acc_7']:.4f}"]
    before = files()
    assert call(training, *command, "--resume", "--no-figures") == 0
    assert files() == before  # the result that was read back adds no other row
    assert call(figures, str(folder)) == 0


def test_invalid_metrics_json_gives_one_line(runs, capsys):
    (A / "metrics.json").write_text("[1]")
    assert f"{A}/metrics.json: cannot be read (expected a JSON object)" in refused(
        capsys, compare, str(A), str(B)
    )
