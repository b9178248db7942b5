"""Two runs compared, and seeds summed up: real runs, real commands, numbers worked out from their files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import compare
from tests.commands import call, files_below, one_line, train
from utils.metrics import CORE_METRICS

A, SECOND, B = (Path("result") / name for name in ("dmd-synthetic-1", "dmd-synthetic-2", "paper-synthetic-1"))
INTERVALS = Path("result/normal/synthetic-intervals.csv")


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv", dtype={"id": str}, keep_default_na=False)


def change(folder: Path, **columns) -> None:
    read(folder).assign(**columns).to_csv(folder / "predictions.csv", index=False)


def configure(folder: Path, **settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {key: settings.pop(key) for key in list(settings) if key in config}
    (folder / "config.json").write_text(json.dumps(config | {"settings": config["settings"] | settings}))


def test_run_adds_the_intervals_of_several_seeds(trained, runs, capsys):
    rows = pd.read_csv(INTERVALS)
    assert set(rows["Model"]) == {"dmd"} and set(rows["seeds"]) == {"1 2"} and tuple(rows["metric"]) == CORE_METRICS
    table = pd.read_csv("result/normal/synthetic.csv").iloc[0]
    for row in rows.itertuples():
        assert np.allclose(eval(table[row.metric]), (100 * row.mean, 100 * row.std), atol=0.011)
        assert row.low - 1e-4 <= row.mean <= row.high + 1e-4 and row.low < row.high
    shutil.copytree(trained / "pt", "pt")
    seeds, before = ["-s", "1", "2", "--set", "keep_checkpoints=1"], files_below(runs)
    assert train(*seeds, "--resume") == 0
    assert files_below(runs) == before  # no row is added twice
    assert ["mean", *rows["mean"].map("{:.4f}".format)] in [
        line.split(" - ")[2].split() for line in capsys.readouterr().out.splitlines()
    ]
    # The command gives the same intervals, also where files have other places.
    configure(SECOND, device="cuda:0 (H)", keep_checkpoints="all", featurePath="/elsewhere/aligned_50.pkl")
    assert call(compare, "--seeds", str(SECOND), str(A), "--output", "seeds.csv") == 0
    table = pd.read_csv("seeds.csv").set_index("seed")
    assert list(table.index) == ["2", "1", "mean", "std", "low", "high"]
    for row in rows.to_dict("records"):
        one, two = (json.loads((folder / "metrics.json").read_text())[row["metric"]] for folder in (A, SECOND))
        assert table[row["metric"]][["1", "2"]].tolist() == [one, two]
        assert table[row["metric"]]["std"] == pytest.approx(abs(one - two) / 2)
        assert [table[row["metric"]][s] for s in ("mean", "low", "high")] == pytest.approx(
            [row[s] for s in ("mean", "low", "high")], abs=6e-5
        )
    configure(SECOND, keep_checkpoints=1)
    (SECOND / "predictions.csv").unlink()
    assert train(*seeds, "--resume") == 0  # the runs are complete without intervals
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
    "no run": (lambda: None, [str(A), "result/normal"], "result/normal/config.json: No such file"),
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
    before = files_below(runs)
    assert call(compare, "--output", "result/table.csv", *arguments) == 2
    assert word in one_line(capsys)
    assert files_below(runs) == before
