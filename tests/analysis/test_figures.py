"""Pictures and report of a run."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import run
from analysis import figures, plots
from analysis.record import read_run
from config import config_from_resolved
from dataset.loaders import make_loaders
from tests.commands import ROOT, TINY, call, files_below, write_pickle
from trainers.checkpoint import load_weights
from trainers.heads import HEADS, Inspection, embed
from trainers.setup import build_model, prepare_features
from utils.seed import random_state

NAME = "a<b>&'c' $x$"  # of a run; a file's name may hold all of it
RUN = f"{NAME}-synthetic-1111"
DRAWN = {f"{name}.{kind}" for name in figures.CAPTIONS for kind in ("png", "svg")}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def home(tmp_path_factory, corpus) -> Path:
    """A folder with a run that has drawn itself; tests copy it, or leave it as it is."""
    folder = tmp_path_factory.mktemp("drawn")
    write_pickle(folder / "dataset/SYNTHETIC/aligned_50.pkl", corpus)
    with contextlib.chdir(folder):
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
    return "\n".join(node.text or "" for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text"))


def test_a_run_draws_itself(home):
    folder = home / "result" / RUN
    assert {path.name for path in (folder / "figures").iterdir()} == DRAWN
    assert all((folder / f"figures/{name}.png").read_bytes()[:4] == b"\x89PNG" for name in figures.CAPTIONS)
    best = json.loads((folder / "metrics.json").read_text())["epoch"]
    expected = {
        "training": ["epoch", "train", "valid", "test", f"best epoch {best}", "Acc_2 (share of utterances)", NAME],
        "edges": ["V→L", "A→L", "L→V", "A→V", "L→A", "V→A", "Homogeneous graph", "Heterogeneous graph"],
        "features": ["specific, text", "common, audio", "true sentiment (-3 … 3)", "t-SNE of all 10 utterances"],
        "predictions": ["true class", "predicted class", "true sentiment (-3 … 3)", "Acc_7 = "],
        "heads": [*HEADS, "all, fused", "homo text", "hetero audio", "Acc_2", "Acc_7"],
    }
    for name, labels in expected.items():
        found = texts(folder / f"figures/{name}.svg")
        assert [label for label in labels if label not in found] == [], name


def test_drawing_changes_nothing_else(home, copied):
    assert call(run, "-d", "synthetic", *TINY, "--name", "plain", "--no-figures") == 0
    plain, drawn = Path("result/plain-synthetic-1111"), home / "result" / RUN
    assert not (plain / "figures").exists() and not (plain / "report.html").exists()
    assert (plain / "metrics.json").read_bytes() == (drawn / "metrics.json").read_bytes()
    for name in ("1.pth", "2.pth", "best.pth"):
        theirs = torch.load(home / "pt" / RUN / name)
        assert all(torch.equal(value, theirs[key]) for key, value in torch.load(f"pt/{plain.name}/{name}").items())

    files = files_below(Path())
    args = config_from_resolved(json.loads((copied / "config.json").read_text())["settings"])
    features = prepare_features(args)
    model, loader = build_model(args, features), make_loaders(features, 8, 8, seed=0)["test"]
    state = random_state()
    figures.draw_after_training(copied, Path("best.pth"), model, loader, torch.device("cpu"))
    now = random_state()
    assert torch.equal(now.pop("torch"), state.pop("torch")) and str(now) == str(state)
    after = files_below(Path())
    assert {name: after[name] for name in files} == files
    new = {Path(name).name for name in after.keys() - files.keys()}
    assert new == DRAWN | {"report.html"}


def test_the_command_draws_what_the_run_drew_without_a_display(home, copied):
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"MPLBACKEND": "TkAgg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    drawn = subprocess.run(
        [sys.executable, "-m", "analysis.figures", str(copied)], env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert len(drawn.stdout.splitlines()) == len(DRAWN) + 1
    for name in figures.CAPTIONS:
        ours, theirs = (folder / "figures" / f"{name}.svg" for folder in (copied, home / "result" / RUN))
        # The restored model may round otherwise in the last bit, which moves a point by nothing that is seen.
        same = texts if name in figures.NEED_CHECKPOINT else Path.read_bytes
        assert same(ours) == same(theirs), name


def test_a_single_epoch_and_an_undefined_metric(home, tmp_path):
    history = read_run(home / "result" / RUN).history.head(1).assign(**{"valid/Acc_2": float("nan")})
    with plots.own_style():
        figure = plots.training_curves("one", history, 1, "Loss")
        left, right = figure.axes[-1].get_xlim()
        assert [tick for tick in figure.axes[-1].get_xticks() if left <= tick <= right] == [1]
        (tmp_path / "one.svg").write_bytes(plots.render(figure, "one")["svg"])
    assert "best epoch 1" in texts(tmp_path / "one.svg")


def test_confusion_by_hand():
    """True -3 3 0 0.5 -1.2 2.4 as classes: -3 3 0 0 -1 2 (a half goes to the even side)."""
    labels = np.array([-3, 3, 0, 0.5, -1.2, 2.4])
    predicted = np.array([-4, 1.6, 0.4, 1.5, -0.7, 2.5])  # -3 2 0 2 -1 2
    inspection = Inspection(labels, {"output_logit": predicted}, {}, {})
    expected = np.zeros((7, 7), int)
    for true, said in ((-3, -3), (3, 2), (0, 0), (0, 2), (-1, -1), (2, 2)):
        expected[true + 3, said + 3] += 1
    assert (plots.confusion(inspection) == expected).all()
    metrics = inspection.head_metrics()["output_logit"]
    # Not 0 are five labels; all their signs are right. 4 of 6 classes are.
    assert (metrics["Acc_2"], metrics["Acc_7"]) == (1.0, round(4 / 6, 4))


def test_heads_against_the_model_utterance_by_utterance(copied):
    record = read_run(copied)
    inspection = figures.inspect_checkpoint(record, Path("pt") / RUN / "best.pth", torch.device("cpu"))
    args = config_from_resolved(record.config["settings"])
    features = prepare_features(args)
    model, part = build_model(args, features).eval(), features.splits["test"]
    load_weights(model, Path("pt") / RUN / "best.pth")
    with torch.no_grad():
        outputs = [
            model(*(torch.from_numpy(getattr(part, name)[i : i + 1]) for name in ("text", "audio", "vision")))
            for i in range(len(part))
        ]
    assert len(inspection.heads) == 8 and len(part) == 10
    for head, predicted in inspection.heads.items():
        direct = np.array([float(output.flat()[head]) for output in outputs])
        assert predicted == pytest.approx(direct, abs=1e-5)
        polar = [(p > 0) == (y > 0) for p, y in zip(direct, part.labels, strict=True) if y != 0]
        classes = [round(min(max(p, -3), 3)) == round(min(max(y, -3), 3)) for p, y in zip(direct, part.labels.tolist(),
                   strict=True)]  # fmt: skip
        metrics = inspection.head_metrics()[head]
        assert metrics["Acc_2"] == round(float(np.mean(polar)), 4)
        assert metrics["Acc_7"] == round(float(np.mean(classes)), 4)
    assert inspection.head_metrics()["output_logit"]["MAE"] == record.metrics["MAE"]
    specific = torch.cat([output.specific["a"].mean(dim=1) for output in outputs])
    assert torch.allclose(torch.from_numpy(inspection.specific["a"]), specific, atol=1e-5)


def test_the_embedding_takes_so_many_utterances_at_equal_distances():
    generator = np.random.default_rng(0)
    features = {m: generator.normal(size=(21, 5)).astype(np.float32) for m in "lva"}
    inspection = Inspection(np.arange(21.0), {}, features, features)
    embedding = embed(inspection, at_most=11)
    assert embedding.labels.tolist() == list(range(0, 21, 2)) and embedding.total == 21
    assert {points.shape for points in embedding.points.values()} == {(11, 2)} and len(embedding.points) == 6
    again = embed(inspection, at_most=11)
    assert all((again.points[key] == points).all() for key, points in embedding.points.items())
    same = {m: np.ones((1, 5), np.float32) for m in "lva"}  # one utterance, and no difference at all
    assert all((points == 0).all() for points in embed(Inspection(np.zeros(1), {}, same, same)).points.values())


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, source: str):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_report_is_self_contained_and_escapes(home, copied):
    config = json.loads((copied / "config.json").read_text())
    config["settings"]["pretrained"] = "<script>alert('1 & 2')</script>"
    (copied / "config.json").write_text(json.dumps(config))
    figures.draw(read_run(copied), None, "no <i>checkpoint</i>")
    for source in ((copied / "report.html").read_text(), (home / "result" / RUN / "report.html").read_text()):
        page = Page(source)
        tags = {tag for tag, _ in page.elements}
        assert not tags & {"script", "link", "iframe", "object", "a", "b", "i"}
        assert all(attributes["src"].startswith("data:") for _, attributes in page.elements if "src" in attributes)
        assert not re.search(r"https?:|url\(|@import", source)
        assert f"Run {RUN}" in page.text and escape(RUN) in source
        assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.elements
    assert sum(tag == "img" for tag, _ in page.elements) == 5
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")
    record = read_run(home / "result" / RUN)
    assert f"{record.best_row['test/MAE']:.4f}" in page.text and "learning_rate" in page.text
    page = Page((copied / "report.html").read_text())
    assert "<script>alert('1 & 2')</script>" in page.text and "no <i>checkpoint</i>" in page.text


MEASURE = """<script>
onload = () => {
  const page = document.querySelector("iframe").contentDocument, images = [...page.images];
  document.title = JSON.stringify({
    wide: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    shown: images.filter(image => image.complete && image.naturalWidth > 0).length,
    outside: images.filter(image => image.getBoundingClientRect().right > page.documentElement.clientWidth).length,
  });
};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, to open the report in")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_fits_a_desktop_and_a_phone(home, tmp_path, width):
    """In a frame of that width, as a browser's own window has a least width."""
    report = (home / "result" / RUN / "report.html").read_text()
    frame = f'<iframe srcdoc="{escape(report)}" style="border: 0; width: {width}px; height: 900px"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><meta charset='utf-8'>{frame}{MEASURE}")
    opened = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         f"--window-size={width + 40},950", "--virtual-time-budget=10000", "--dump-dom",
         (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", opened.stdout)
    assert title, opened.stderr
    assert json.loads(title.group(1)) == {"wide": 0, "shown": 5, "outside": 0}


def drop(*names: str):
    """Damage a run: take these of its files away."""
    return lambda folder: [(folder / name).unlink() for name in names]


def edit_history(old: str, new: str):
    def damage(folder: Path) -> None:
        path = folder / "history.csv"
        path.write_text(path.read_text().replace(old, new))

    return damage


BAD_RUNS = {
    "not a run": (drop("config.json"), [], "not the result folder of a run"),
    "no history": (drop("history.csv"), [], "history.csv: no such file"),
    "empty history": (lambda folder: (folder / "history.csv").write_text(""), [], "not a readable table"),
    "another table": (edit_history("loss/total", "loss/some"), [], "'loss/total'"),
    "no edges": (edit_history("edge/homo_V2L", "edge/none"), [], "'edge/homo_V2L'"),
    "a word for a number": (lambda folder: (folder / "history.csv").open("a").write("x" + ",x" * 99), [], "history"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), [], "config.json"),
    "broken metrics": (lambda folder: (folder / "metrics.json").write_text("{"), [], "metrics.json"),
    "no such checkpoint": (lambda folder: None, ["--checkpoint", "none.pth"], "none.pth"),
    "no such device": (lambda folder: None, ["--device", "tpu"], "tpu"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_input_is_one_line_and_nothing_written(copied, capsys, case):
    damage, arguments, word = BAD_RUNS[case]
    damage(copied)
    before = files_below(Path())
    assert call(figures, str(copied), *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and word in printed.err and printed.out == ""
    assert files_below(Path()) == before
    assert call(figures, "result/none") == 2
    assert "result/none: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "word"), [("checkpoint", "no such checkpoint"), ("data", "no such feature file"), ("other", "settings")]
)
def test_what_history_alone_allows_is_drawn(copied, capsys, missing, word):
    if missing == "checkpoint":
        Path("pt", RUN, "best.pth").unlink()
    else:
        for folder in (copied, Path("pt", RUN))[: 1 if missing == "other" else 2]:
            config = json.loads((folder / "config.json").read_text())
            config["settings"]["featurePath"] = "moved.pkl"
            (folder / "config.json").write_text(json.dumps(config))
    assert call(figures, str(copied)) == 0
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("Without features, predictions, heads: ") and word in message
    names = {"training.png", "training.svg", "edges.png", "edges.svg"}
    assert {path.name for path in (copied / "figures").iterdir()} == names
    assert word in Page((copied / "report.html").read_text()).text


def test_a_run_that_cannot_be_drawn_is_complete(copied, capsys):
    Path("result/dmd-synthetic-1111").mkdir()
    Path("result/dmd-synthetic-1111/figures").write_text("in the way")
    assert call(run, "-d", "synthetic", *TINY) == 0
    assert re.search(r"\[WARNING\] - No figures \(.*figures.*\)\. To try again: python -m", capsys.readouterr().out)
    assert json.loads(Path("result/dmd-synthetic-1111/metrics.json").read_text())["seed"] == 1111


def test_overwriting_a_run_removes_its_pictures(home, tmp_path, monkeypatch):
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert call(run, "-d", "synthetic", *TINY, "--name", NAME, "--no-figures", "--overwrite") == 0
    assert list(Path("result", RUN, "figures").iterdir()) == []
    assert not Path("result", RUN, "report.html").exists()
