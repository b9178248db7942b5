"""Draw the figures of a run in <run>/figures/, and all of them on one page, <run>/report.html.

python -m analysis.figures result/dmd-mosi-1111
"""

import argparse
import base64
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd
import torch

from analysis.tables import mean_scores, read_scorings
from dataset.features import SPLITS, FeatureSet
from experiments.restore import describe_changes, load_run_settings, restore
from experiments.run_config import read_run_config
from experiments.run_folder import FIGURES, ROBUSTNESS, RunFolder
from trainers.evaluate import Inspection, inspect
from utils.cli import ArgumentParser, log_traceback, run_command
from utils.device import choose_device, keep_freed_memory
from utils.errors import CheckpointError, DMDError
from utils.files import write_atomically
from utils.log import logger
from utils.metrics import METRICS


def draw(run: RunFolder, inspection: Inspection | None, skipped: str = "") -> list[Path]:
    """Write the figures of a run and its report. Everything is drawn before anything is written.

    Args:
        run: The run.
        inspection: Outputs of the best epoch on test; None leaves out the figures that need them.
        skipped: Why they are left out, for the report.

    Returns:
        The paths of the files.
    """
    # Imported here: a run without figures needs no matplotlib, which takes long to import.
    from analysis.plots import draw_all, draw_robustness

    pictures = draw_all(run, inspection)
    scorings = read_scorings(run.results / ROBUSTNESS)
    if scorings is not None:
        pictures.update(draw_robustness(run.name, scorings))
    page = report(run, pictures, skipped, scorings)
    return _write_all(run, pictures, page)


def add_robustness(run: RunFolder, scorings: pd.DataFrame) -> list[Path]:
    """Draw the figure of analysis.robustness, and add it to the report.

    The report keeps the other figures that figures/ contains.

    Args:
        run: The run.
        scorings: The table of analysis.robustness.

    Returns:
        The paths of the files.
    """
    from analysis.plots import draw_robustness

    drawn = draw_robustness(run.name, scorings)
    pictures = {}
    missing = []
    for figure in FIGURES:
        path = run.results / "figures" / f"{figure}.svg"
        if f"{figure}.svg" in drawn:
            pictures[path.name] = drawn[path.name]
        elif path.exists():
            pictures[path.name] = path.read_bytes()
        else:
            missing.append(figure)
    skipped = ""
    if missing:
        skipped = (
            f"Not drawn yet: {', '.join(missing)}. To draw them: python -m analysis.figures "
            f"{shlex.quote(str(run.results))}"
        )
    page = report(run, pictures, skipped, scorings)
    return _write_all(run, drawn, page)


def _write_all(run: RunFolder, pictures: dict[str, bytes], page: str) -> list[Path]:
    """Write figures and report, and return their paths."""
    paths = []
    for name, picture in pictures.items():
        path = run.results / "figures" / name
        _write(path, picture)
        paths.append(path)
    path = run.results / "report.html"
    _write(path, page.encode())
    paths.append(path)
    return paths


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def report(
    run: RunFolder,
    pictures: dict[str, bytes],
    skipped: str,
    scorings: pd.DataFrame | None = None,
) -> str:
    """Make a self-contained HTML page with settings, numbers and figures.

    Args:
        run: The run.
        pictures: PNG and SVG files by name; the page shows the SVG ones.
        skipped: Why some figures are missing, or "".
        scorings: The table of analysis.robustness, if the run has one.
    """
    encoded = {}
    for name, content in pictures.items():
        if name.endswith(".svg"):
            encoded[name] = base64.b64encode(content).decode()
    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return template.render(
        run=run,
        pictures=encoded,
        skipped=skipped,
        splits=SPLITS,
        metrics=METRICS,
        json=json.dumps,
        scorings=scorings,
        robustness=None if scorings is None else mean_scores(scorings),
    )


def draw_after_training(
    run: RunFolder, device: torch.device, features: FeatureSet | None = None
) -> None:
    """Draw a finished run. A failure is a warning: the run itself is complete.

    Args:
        run: The folder of the run.
        device: Device to run the model of the best epoch on.
        features: The data of the run, if they are in memory.
    """
    try:
        draw(run, inspect_checkpoint(run, run.best_file, device, features))
        page = run.results / "report.html"
        logger.info(f"Figures in {run.results / 'figures'}, all on one page in {page}.")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        command = ["python", "-m", "analysis.figures", str(run.results)]
        command += ["--checkpoint", str(run.best_file)]
        logger.warning(f"No figures ({reason}). To try again: {shlex.join(command)}")
        log_traceback(error)


def inspect_checkpoint(
    run: RunFolder, checkpoint: Path, device: torch.device, features: FeatureSet | None = None
) -> Inspection:
    """Run the model of a checkpoint on the test split, in the precision of the training.

    Args:
        run: The run that the checkpoint belongs to.
        checkpoint: Its weights, such as best.pth.
        device: Device to run the model on.
        features: The data of the run; by default they are read, and compared with run.json.

    Raises:
        CheckpointError: The checkpoint is damaged, or belongs to a run with other settings.
        ConfigError: The settings are no longer valid.
        DataError: The data cannot be read, or do not match the model.
    """
    check_owner(run, checkpoint)
    trained = load_run_settings(run.run_config)
    loaded = restore(checkpoint, trained, "test", device, features)
    if features is None:
        for change in describe_changes(trained):
            print(f"Warning: {change}", file=sys.stderr)
    return inspect(loaded.model, loaded.loader, device, loaded.precision)


def check_owner(run: RunFolder, checkpoint: Path) -> None:
    """Check that a checkpoint can belong to a run.

    Raises:
        CheckpointError: The run.json next to the checkpoint has other settings.
    """
    run_config = read_run_config(checkpoint.parent)
    if run_config and run_config["settings"] != run.run_config["settings"]:
        raise CheckpointError(
            f"{checkpoint}: belongs to a run with other settings than {run.results}. Name the "
            "checkpoint of that run."
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].

    Raises:
        DMDError: The run, or the checkpoint given with --checkpoint, cannot be read.
    """
    options = _read_flags(argv)
    keep_freed_memory()
    device = choose_device(options.device)
    run = RunFolder(options.run)
    run.check_exists()
    inspection = None
    skipped = ""
    try:
        checkpoint = options.checkpoint or run.best_file
        inspection = inspect_checkpoint(run, checkpoint, device)
    except DMDError as error:
        if options.checkpoint:
            raise
        skipped = f"Figures of features, predictions and heads are missing: {error}"
        print(skipped, file=sys.stderr)
    for path in draw(run, inspection, skipped):
        print(path)


def _read_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m analysis.figures", description="Draw figures.")
    parser.add_argument("run", type=Path, help="result folder, such as result/dmd-mosi-1111")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="checkpoint of the best epoch (default: best.pth in pt/, next to result/)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
