"""The quickstart notebook, run as a reader runs it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.commands import ROOT

# What a copy of the repository needs.
SOURCES = ("analysis", "config", "dataset", "experiments", "models", "trainers", "utils")
DATA = ("MOSI", "MOSEI", "MOSI_SEQ", "SYNTHETIC", "__pycache__")
# Prints what the notebook has computed; the variables are the notebook's.
REPORT = """
import json

report = {
    "total_loss": history["loss/total"].tolist(),
    "homo": history.filter(like="edge/homo_").sum(axis=1).tolist(),
    "hetero": history.filter(like="edge/hetero_").sum(axis=1).tolist(),
    "Acc_2": metrics[1111]["Acc_2"],
    "points": [len(xy) for xy in points.values()],
    "prediction": prediction,
    "inspected": float(inspection.heads["output_logit"][i]),
}
print(json.dumps(report))
"""


@pytest.fixture
def repository(tmp_path) -> Path:
    """A copy of the repository that a notebook may write to."""
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(*DATA))
    (tmp_path / "docs").mkdir()
    for name in ("run.py", "docs/quickstart.ipynb"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _files(folder: Path) -> set[Path]:
    """All files of a folder, except for compiled modules."""
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_quickstart_runs_and_leaves_the_repository_unchanged(repository):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(repository / "docs/quickstart.ipynb", as_version=4)
    report_cell = nbformat.v4.new_code_cell(REPORT)
    notebook.cells.append(report_cell)
    before = _files(repository)

    docs = {"metadata": {"path": str(repository / "docs")}}
    nbclient.NotebookClient(notebook, timeout=600, resources=docs).execute()

    report = json.loads(report_cell.outputs[0].text)
    assert len(report["total_loss"]) == 3
    assert report["total_loss"][-1] < report["total_loss"][0]
    assert report["homo"] == pytest.approx([1, 1, 1], abs=1e-4)
    assert report["hetero"] == pytest.approx([1, 1, 1], abs=1e-4)
    assert report["Acc_2"] > 0.7
    assert report["points"] == [80] * 6
    assert report["prediction"] == pytest.approx(report["inspected"], abs=1e-4)
    assert _files(repository) == before


def test_quickstart_stores_small_outputs_without_errors():
    notebook = json.loads((ROOT / "docs/quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    pictures = []
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
            if "image/png" in output.get("data", {}):
                pictures.append(len(output["data"]["image/png"]) * 3 / 4)  # bytes from base64
    assert len(pictures) == 3
    assert max(pictures) < 60_000
