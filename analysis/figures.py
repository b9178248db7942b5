"""Draw a run: pictures in <run>/figures/, and <run>/report.html with all of it on one page.

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
import torch

from analysis.record import RunRecord
from config import config_from_resolved
from dataset.features import SPLITS
from trainers.heads import Inspection, inspect
from trainers.run_settings import read_description
from trainers.runs import RunFolder
from trainers.setup import differences, restore
from utils.cli import ArgumentParser, log_traceback, run_command
from utils.device import choose_device, keep_freed_memory
from utils.errors import CheckpointError, DMDError
from utils.files import write_atomically
from utils.log import logger
from utils.metrics import METRICS


def draw(record: RunRecord, inspection: Inspection | None, skipped: str = "") -> list[Path]:
    """Write the pictures of a run and its report. All is drawn before anything is written.

    Args:
        record: The run.
        inspection: Of the test split at the best epoch; None leaves out the pictures that need it.
        skipped: Why they are left out, for the report.

    Returns:
        The paths of the files.
    """
    # Imported here: a run without figures needs no matplotlib, which takes long to import.
    from analysis.plots import draw_all

    pictures = draw_all(record, inspection)
    page = report(record, pictures, skipped)
    paths = []
    for name, picture in pictures.items():
        path = record.folder / "figures" / name
        _write(path, picture)
        paths.append(path)
    path = record.folder / "report.html"
    _write(path, page.encode())
    paths.append(path)
    return paths


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def report(record: RunRecord, pictures: dict[str, bytes], skipped: str) -> str:
    """Make a page of HTML with settings, numbers and pictures, which needs no other file.

    Args:
        record: The run.
        pictures: PNG and SVG files by name; the page shows the SVG ones.
        skipped: Why some pictures are missing, or "".
    """
    encoded = {}
    for name, content in pictures.items():
        if name.endswith(".svg"):
            encoded[name] = base64.b64encode(content).decode()
    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return template.render(
        run=record,
        pictures=encoded,
        skipped=skipped,
        splits=SPLITS,
        metrics=METRICS,
        json=json.dumps,
    )


def draw_after_training(run: RunFolder, device: torch.device) -> None:
    """Draw a finished run. A failure is a warning: the run itself is complete.

    Args:
        run: The folder of the run.
        device: Where the model of its best epoch runs.
    """
    try:
        record = RunRecord(run.results)
        draw(record, inspect_checkpoint(record, run.best, device))
        page = run.results / "report.html"
        logger.info(f"Figures in {run.results / 'figures'}, all on one page in {page}.")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        command = ["python", "-m", "analysis.figures", str(run.results)]
        command += ["--checkpoint", str(run.best)]
        logger.warning(f"No figures ({reason}). To try again: {shlex.join(command)}")
        log_traceback(error)


def inspect_checkpoint(record: RunRecord, checkpoint: Path, device: torch.device) -> Inspection:
    """Run the model of a checkpoint on the test split, in the precision of the training.

    Args:
        record: The run that the checkpoint belongs to.
        checkpoint: Its weights, such as best.pth.
        device: Where the model runs.

    Raises:
        CheckpointError: If the checkpoint is damaged, or of a run with other settings.
        ConfigError: If the settings are no longer valid.
        DataError: If the data cannot be read, or do not fit the model.
    """
    run_config = read_description(checkpoint.parent)
    if run_config and run_config["settings"] != record.config["settings"]:
        raise CheckpointError(
            f"{checkpoint}: of a run with other settings than {record.folder}. Name the right one."
        )
    args = config_from_resolved(record.config["settings"])
    feature_files = record.config["features"]
    model, _, loader = restore(checkpoint, args, feature_files, "test", device)
    for difference in differences(record.config, args, feature_files):
        print(f"Warning: {difference}", file=sys.stderr)
    return inspect(model, loader, device, record.config.get("precision", "fp32"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: The words after the command's name; by default those of the command line.

    Raises:
        DMDError: If the run cannot be read, or a checkpoint that was named cannot be used.
    """
    options = _read_flags(argv)
    keep_freed_memory()
    device = choose_device(options.device)
    record = RunRecord(options.run)
    # By default, result/<run> and pt/<run> are in one folder.
    usual_checkpoint = options.run.resolve().parents[1] / "pt" / record.name / "best.pth"
    inspection = None
    skipped = ""
    try:
        checkpoint = options.checkpoint or usual_checkpoint
        inspection = inspect_checkpoint(record, checkpoint, device)
    except DMDError as error:
        if options.checkpoint:
            raise
        skipped = f"Without features, predictions, heads: {error}"
        print(skipped, file=sys.stderr)
    for path in draw(record, inspection, skipped):
        print(path)


def _read_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m analysis.figures", description="Draw a run.")
    parser.add_argument("run", type=Path, help="its result folder, such as result/dmd-mosi-1111")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="of its best epoch (default: best.pth in pt/, next to result/)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
