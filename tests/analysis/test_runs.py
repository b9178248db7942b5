"""The list of runs, against the files that they have left."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analysis import runs as list_of_runs
from tests.commands import call


def rows(*arguments: str) -> pd.DataFrame:
    assert call(list_of_runs, *arguments, "--output", "list.csv") == 0
    return pd.read_csv("list.csv").set_index("name")


def metrics(run: str) -> dict:
    return json.loads(Path("result", run, "metrics.json").read_text())


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
    stored = [metrics(f"dmd-synthetic-{seed}") for seed in (1, 2)]
    dmd = table.loc["dmd"]
    assert (dmd["dataset"], dmd["seeds"]) == ("synthetic", "1 2")
    for metric in ("valid_Loss", "Acc_2", "MAE", "Corr"):
        one, two = (result[metric] for result in stored)
        assert [dmd[metric], dmd[f"{metric}_std"]] == pytest.approx([(one + two) / 2, abs(one - two) / 2])
    assert f"{dmd['MAE']:.4f} ± {dmd['MAE_std']:.4f}" in printed.out
    paper = metrics("paper-synthetic-1")
    assert table.loc["paper", "MAE"] == paper["MAE"] and int(table.loc["paper", "epoch"]) == paper["epoch"]
    assert table["objective"].to_dict() | {"dmd": "release", "paper": "paper"} == table["objective"].to_dict()
    assert "batch_size" not in table
    unfinished = next(line for line in printed.out.splitlines() if line.split()[0] == "begun")
    assert unfinished.split()[-5:] == ["-"] * 5


def test_a_higher_accuracy_is_better_and_filters_hold(runs, capsys):
    for run, value in (("dmd-synthetic-1", 0.5), ("paper-synthetic-1", 0.7)):
        result = metrics(run) | {"valid_Acc_2": value}
        del result["valid_Loss"]
        Path("result", run, "metrics.json").write_text(json.dumps(result))
    shutil.rmtree("result/dmd-synthetic-2")
    assert list(rows().index) == ["paper", "dmd"]
    assert list(rows("result", "-d", "synthetic", "--name", "p*").index) == ["paper"]
    assert "objective" not in rows("--name", "dmd")  # one run differs from none
    for arguments in (["-d", "mosi"], ["--name", "x*"], ["nowhere"]):
        assert call(list_of_runs, *arguments) == 2
