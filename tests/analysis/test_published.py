"""Runs are compared with published ones, in the log and in the training figure."""

import contextlib
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

import run
from analysis import figures
from analysis.published import (
    RESULTS_FILE,
    RUNS_FILE,
    compare_with_published,
    published_results,
    published_runs,
    ranges_by_epoch,
)
from experiments.run_folder import RunFolder
from tests.commands import ROOT, TINY, call

BAND = "range, released code"


@pytest.fixture(scope="module")
def home(make_folder) -> Path:
    """A folder with a run of two epochs in the shapes of MOSI's published features."""
    with contextlib.chdir(folder := make_folder()):
        shutil.copytree(ROOT / "dataset/synthetic_bert", "wide")
        config = json.loads(Path("wide/config.json").read_text())
        config["hidden_size"] = 768
        config["num_hidden_layers"] = 1
        Path("wide/config.json").write_text(json.dumps(config))
        data = ["featurePath=SYNTHETIC/aligned_50.pkl", "pretrained=wide"]
        assert call(run, "-d", "mosi", *TINY, "--set", *data) == 0
    return folder


@pytest.fixture
def make_run(home, tmp_path):
    """Copies the results of that run with another history and other settings."""

    def make(history: pd.DataFrame | None = None, **settings) -> RunFolder:
        folder = tmp_path / "result" / "dmd-mosi-1111"
        shutil.copytree(home / "result/dmd-mosi-1111", folder, dirs_exist_ok=True)
        run_config = json.loads((folder / "run.json").read_text())
        run_config["settings"].update(settings)
        (folder / "run.json").write_text(json.dumps(run_config))
        if history is not None:
            history.to_csv(folder / "history.csv", index=False)
        return RunFolder(folder)

    return make


def course_of(name: str, dataset: str = "mosi", best_epoch: int = 1) -> pd.DataFrame:
    """The epochs of a published run as the history of a run."""
    rows = pd.read_csv(RUNS_FILE)
    rows = rows[(rows["run"] == name) & (rows["dataset"] == dataset)]
    return rows.drop(columns=["run", "dataset"]).assign(best_epoch=best_epoch)


def texts(svg: Path) -> list[str]:
    """The texts of a picture."""
    nodes = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    return [node.text for node in nodes]


def test_log_of_a_run_ends_with_the_comparison(home):
    record = RunFolder(home / "result/dmd-mosi-1111")
    lines = (home / "log/dmd-mosi.log").read_text().splitlines()
    line = lines[-1]
    assert compare_with_published(record) in line
    first, last = record.history["loss/total"].round(4)
    assert f"total_loss {first:.4f} outside [10.6731, 10.7034] in epoch 1, {last:.4f}" in line
    assert f"TEST MAE {record.metrics['MAE']:.4f} outside [0.7070, 0.7562] and Acc_2" in line


def test_published_run_is_inside_every_range(make_run):
    line = compare_with_published(make_run(course_of("ser-dmd-2023-a", best_epoch=25)))
    assert line == (
        "Against published runs of the released code: TEST MAE 0.7135 inside [0.7070, 0.7562] and "
        "Acc_2 0.8460 inside [0.8186, 0.8491] (13 runs); total_loss 10.7033 inside "
        "[10.6731, 10.7034] in epoch 1, 6.4305 inside [6.4069, 6.4995] in epoch 5, 3.1256 inside "
        "[3.1256, 3.2327] in epoch 35 (up to 3 runs, seed 1111). See docs/results.md."
    )


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        pytest.param("test/MAE", 0.7069, "MAE 0.7069 outside [0.7070, 0.7562]", id="MAE-below"),
        pytest.param("test/Acc_2", 0.86, "Acc_2 0.8600 outside [0.8186, 0.8491]", id="Acc_2-above"),
        pytest.param("test/Acc_2", 0.84914, "Acc_2 0.8491 inside", id="equal-in-four-digits"),
        pytest.param("test/Acc_2", float("nan"), "Acc_2 nan outside", id="undefined"),
        pytest.param("loss/total", 7.0, "7.0000 outside [6.4069, 6.4995] in epoch 5", id="loss"),
    ],
)
def test_value_beyond_the_published_ones_is_outside(make_run, column, value, expected):
    history = course_of("ser-dmd-2023-a", best_epoch=5)
    history.loc[history["epoch"] == 5, column] = value
    assert expected in compare_with_published(make_run(history))


@pytest.mark.parametrize(
    ("epochs", "compared"),
    [(1, [1]), (3, [1, 3]), (5, [1, 5]), (12, [1, 5, 12]), (31, [1, 5, 28]), (60, [1, 5, 35])],
    ids=["1 epoch", "3 epochs", "5 epochs", "12 epochs", "31 epochs", "60 epochs"],
)
def test_last_epoch_is_one_that_two_published_runs_have(make_run, epochs, compared):
    history = course_of("ser-dmd-2023-a").set_index("epoch").reindex(range(1, epochs + 1)).ffill()
    line = compare_with_published(make_run(history.reset_index()))
    assert [int(epoch) for epoch in re.findall(r"in epoch (\d+)", line)] == compared


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"need_data_aligned": False}, id="unaligned"),
        pytest.param({"use_bert": False}, id="no-bert"),
        pytest.param({"feature_dims": [384, 5, 20]}, id="other-width"),
        pytest.param({"dataset_name": "synthetic"}, id="other-data"),
    ],
)
def test_run_with_other_data_is_not_compared(make_run, settings):
    assert compare_with_published(make_run(**settings)) == ""


def test_figure_of_a_run_with_other_data_shows_no_published_run(make_run):
    other = make_run(need_data_aligned=False)
    figures.draw(other, None)
    drawn = texts(other.results / "figures/training.svg")
    assert BAND not in drawn and "ser-dmd-2023-a" not in drawn


@pytest.mark.parametrize("settings", [{"ort": "feature"}, {"homo_weight": 0.0}], ids=str)
def test_total_loss_of_another_objective_is_not_compared(make_run, settings):
    line = compare_with_published(make_run(**settings))
    assert "TEST MAE" in line and "total_loss" not in line


def test_ports_are_drawn_but_not_in_the_range(make_run):
    settings = make_run().run_config["settings"]
    histories = published_runs(settings)
    ranges = ranges_by_epoch("mosi", histories, "loss/total")
    port = histories["jubaer36-2025"].set_index("epoch")["loss/total"]
    assert port[1] > ranges.loc[1, "high"] and port[5] < ranges.loc[5, "low"]
    assert list(ranges.index) == [*range(1, 29), 35]
    assert ranges_by_epoch("mosi", {"jubaer36-2025": histories["jubaer36-2025"]}, "epoch").empty


def test_figure_shows_published_runs_and_their_range(home):
    folder = home / "result/dmd-mosi-1111"
    drawn = texts(folder / "figures/training.svg")
    released = ["reproduction-report-2023", "ser-dmd-2023-a", "ser-dmd-2023-b"]
    for label in [*released, "jubaer36-2025 (port)", BAND, "train", "valid", "test"]:
        assert drawn.count(label) == 1, label
    assert BAND not in texts(folder / "figures/edges.svg")
    assert (folder / "report.html").read_text().count("<img ") == 5


def test_mosei_is_compared_with_the_port_that_exists(make_run):
    settings = {"dataset_name": "mosei", "feature_dims": [768, 74, 35]}
    mosei = make_run(course_of("jubaer36-2025", "mosei", best_epoch=13), **settings)
    assert compare_with_published(mosei) == (
        "No published run of the released code on mosei is known. TEST of this run: MAE 0.5372, "
        "Acc_2 0.8462; of jubaer36-2025 (port, L_ort over the width): MAE 0.5372, Acc_2 0.8462. "
        "See docs/results.md."
    )


def test_figure_of_mosei_has_no_range(make_run):
    mosei = make_run(dataset_name="mosei", feature_dims=[768, 74, 35])
    figures.draw(mosei, None)
    drawn = texts(mosei.results / "figures/training.svg")
    assert "jubaer36-2025 (port)" in drawn and BAND not in drawn


def test_results_page_shows_every_published_run_and_their_mean():
    page = (ROOT / "docs/results.md").read_text()
    for row in pd.read_csv(RESULTS_FILE).itertuples():
        (line,) = [
            line for line in page.splitlines() if line.startswith(f"| `{row.run}`, {row.dataset} ")
        ]
        for value in (row.Acc_2, row.F1_score, row.Acc_7, row.MAE):
            assert pd.isna(value) or f" {value:.4f} " in line, (row.run, value)
    results = published_results("mosi").dropna(subset=["Acc_2", "F1_score", "Acc_7", "MAE"])
    released = results[results["is_released"]]
    assert len(released) == 13
    for metric in ("Acc_2", "F1_score", "Acc_7", "MAE"):
        scores = released[metric]
        assert f" {scores.mean():.4f} ± {scores.std():.4f} " in page
        assert f" {scores.min():.4f} to {scores.max():.4f} " in page
