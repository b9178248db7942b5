"""Pictures and report of a run."""

import contextlib
import json
import re
import shutil
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

import run
from analysis import figures
from analysis.plots import embed_features
from experiments.run_folder import FIGURES, RunFolder
from tests.commands import TINY, call, files, refused
from trainers.evaluate import HEADS, Inspection
from utils.log import start_log

NAME = "a<b>&'c' $x$"  # of a run; a file's name may hold all of it
RUN = f"{NAME}-synthetic-1111"
BEST = Path("pt", RUN, "best.pth")
OWN = [name for name in FIGURES if name != "robustness"]  # which its own command draws
DRAWN = {f"{name}.{kind}" for name in OWN for kind in ("png", "svg")}


@pytest.fixture(scope="module")
def home(make_folder) -> Path:
    """A folder with a run that has drawn itself."""
    with contextlib.chdir(folder := make_folder()):
        assert call(run, "-d", "synthetic", *TINY, "--name", NAME) == 0
    return folder


@pytest.fixture
def copied(home, tmp_path, monkeypatch) -> Path:
    """The result folder of a copy of that run, which is not drawn yet."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(f"result/{RUN}/figures")
    Path(f"result/{RUN}/report.html").unlink()
    return Path(f"result/{RUN}")


def texts(svg: Path) -> str:
    """All text of a picture."""
    return "\n".join(
        node.text or "" for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    )


def test_run_and_command_draw_the_same_figures(home, copied, capsys):
    folder = home / "result" / RUN
    assert {path.name for path in (folder / "figures").iterdir()} == DRAWN
    best = json.loads((folder / "metrics.json").read_text())["epoch"]
    expected = {
        "training": [
            "epoch",
            "train",
            "valid",
            "test",
            f"best epoch {best}",
            "Acc_2 (share of utterances)",
            NAME,
        ],
        "edges": [
            "V→L",
            "A→L",
            "L→V",
            "A→V",
            "L→A",
            "V→A",
            "Homogeneous graph",
            "Heterogeneous graph",
        ],
        "features": [
            "specific, text",
            "common, audio",
            "true sentiment (-3 … 3)",
            "t-SNE of 10 of 10 utterances",
        ],
        "predictions": ["true class", "predicted class", "true sentiment (-3 … 3)", "Acc_7 = "],
        "heads": [*HEADS, "all, fused", "homo text", "hetero audio", "Acc_2", "Acc_7"],
    }
    for name, labels in expected.items():
        found = texts(folder / f"figures/{name}.svg")
        assert [label for label in labels if label not in found] == [], name
    capsys.readouterr()
    assert call(figures, str(copied)) == 0 and capsys.readouterr().out.count("\n") == len(DRAWN) + 1
    # the restored model may round otherwise, which moves a point by nothing that is seen
    for name in expected:
        assert texts(copied / f"figures/{name}.svg") == texts(folder / f"figures/{name}.svg"), name


def test_embedding_uses_evenly_spaced_utterances():
    generator = np.random.default_rng(0)
    features = {m: generator.normal(size=(21, 5)).astype(np.float32) for m in "lva"}
    inspection = Inspection(np.arange(21.0), {}, features, features)
    (points, labels), (again, _) = (embed_features(inspection, max_utterances=11) for _ in range(2))
    assert (
        labels.tolist() == list(range(0, 21, 2))
        and [plane.shape for plane in points.values()] == [(11, 2)] * 6
    )
    assert all((again[key] == plane).all() for key, plane in points.items())
    # one utterance, and no difference at all
    same = {m: np.ones((1, 5), np.float32) for m in "lva"}
    assert all(
        (plane == 0).all()
        for plane in embed_features(Inspection(np.zeros(1), {}, same, same))[0].values()
    )


def test_report_is_self_contained_and_escapes(home, copied):
    config = json.loads((copied / "run.json").read_text())
    config["settings"]["pretrained"] = "<script>alert('1 & 2')</script>"
    (copied / "run.json").write_text(json.dumps(config))
    figures.draw(RunFolder(copied), None, "no <i>checkpoint</i>")
    drawn, ours = (
        (folder / "report.html").read_text() for folder in (home / "result" / RUN, copied)
    )
    for source in (drawn, ours):
        assert (
            source.startswith("<!DOCTYPE html>")
            and f"Run {RUN}" in unescape(source)
            and RUN not in source
        )
        assert not re.search(r"<(script|link|iframe|object|a|b|i)\b|https?:|url\(|@import", source)
        assert all(start == "data:" for start in re.findall(r'src="(.{5})', source))
    assert drawn.count("<img ") == 5 and "learning_rate" in drawn
    record = RunFolder(home / "result" / RUN)
    assert f"<td>{record.metrics['MAE']:.5g}</td></tr>" in drawn
    assert "<script>alert('1 & 2')</script>" in unescape(
        ours
    ) and "no <i>checkpoint</i>" in unescape(ours)


def test_figures_without_checkpoint_show_the_history(copied, capsys):
    for file in (copied / "run.json", BEST.parent / "run.json"):
        file.write_text(file.read_text().replace("aligned_50.pkl", "moved.pkl"))
    assert call(figures, str(copied)) == 0
    message, word = capsys.readouterr().err, "no such feature file"
    assert (
        message.count("\n") == 1
        and message.startswith("Figures of features, predictions and heads are missing: ")
        and word in message
    )
    names = {"training.png", "training.svg", "edges.png", "edges.svg"}
    assert {path.name for path in (copied / "figures").iterdir()} == names
    assert word in (copied / "report.html").read_text()


def test_bad_input_gives_one_line_and_writes_nothing(copied, capsys):
    for arguments in (
        [str(copied), "--checkpoint", "none.pth"],
        [str(copied), "--device", "tpu"],
        ["result/none"],
    ):
        assert arguments[-1] in refused(capsys, figures, *arguments)


def test_figures_of_one_epoch_with_undefined_metric_or_missing_files(copied, capsys):
    history = pd.read_csv(copied / "history.csv").head(1)
    history.assign(best_epoch=1, **{"valid/Acc_2": float("nan")}).to_csv(
        copied / "history.csv", index=False
    )
    BEST.unlink()
    assert call(figures, str(copied)) == 0 and "No such file" in capsys.readouterr().err
    assert "best epoch 1" in texts(copied / "figures/training.svg")
    assert "<td>-</td>" in (copied / "report.html").read_text()
    (copied / "history.csv").unlink()
    assert call(figures, str(copied)) == 2


def test_drawing_changes_no_result_and_its_errors_are_warnings(home, copied):
    before = files()
    (copied / "figures").write_text("in the way")
    start_log(Path("log/run.log"), verbose_level=0)
    figures.draw_after_training(RunFolder(copied, Path("pt") / copied.name), torch.device("cpu"))
    assert re.search(
        r"No figures \(.*figures.*\)\. To try again: python -m", Path("log/run.log").read_text()
    )
    (copied / "figures").unlink()
    assert files() == before
    shutil.copytree(home / "result" / RUN, copied, dirs_exist_ok=True)
    arguments = ["-d", "synthetic", *TINY, "--name", NAME, "--no-figures", "--overwrite"]
    assert call(run, *arguments) == 0  # which removes the earlier ones
    assert list((copied / "figures").iterdir()) == [] and not (copied / "report.html").exists()
    assert (copied / "metrics.json").read_bytes() == (
        home / "result" / RUN / "metrics.json"
    ).read_bytes()
