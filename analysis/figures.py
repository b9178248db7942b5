"""Draw a run: pictures in <run>/figures/, and <run>/report.html with pictures, settings and numbers on one page.

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

from analysis.record import RunRecord
from config import config_from_resolved
from dataset.features import SPLITS
from trainers.checkpoint import read_checkpoint, settings_beside
from trainers.heads import Inspection, inspect
from trainers.runs import RunFolder
from trainers.setup import differences, restore
from utils.cli import log_traceback, run_command
from utils.device import choose_device, keep_freed_memory
from utils.errors import CheckpointError, DMDError, RunError
from utils.files import write_atomically
from utils.log import logger
from utils.metrics import METRICS

CAPTIONS = {  # of what <run>/figures/ holds, by the files' names
    "training": "Total loss, Loss, MAE and Acc_2 over the epochs, with the best epoch marked.",
    "edges": "The twelve edges of the two distillation graphs over the epochs. V→L: vision teaches text.",
    "features": "Specific and common features of the test split at the best epoch, by t-SNE. Distances within a "
    "cluster mean more than distances between clusters.",
    "predictions": "Predicted against true sentiment on test at the best epoch, and the confusion matrix of Acc_7.",
    "heads": "Acc_2 and Acc_7 of the eight heads on test at the best epoch. output_logit is the prediction.",
}


def draw(record: RunRecord, inspection: Inspection | None, skipped: str = "") -> list[Path]:
    """Write the pictures of a run and its report; all is drawn before anything is written.

    inspection: of the test split at the best epoch; None leaves out what needs it, and `skipped` says why
    -> the paths of the files. Raises RunError where one cannot be written.
    """
    from analysis.plots import draw_all  # here: a run without figures needs no matplotlib, which takes long to import

    drawn = draw_all(record, inspection)
    folder = record.folder / "figures"
    contents = {folder / f"{name}.{kind}": file for name, files in drawn.items() for kind, file in files.items()}
    contents[record.folder / "report.html"] = report(record, drawn, skipped).encode()
    try:
        for path, content in contents.items():
            write_atomically(path, lambda file, content=content: file.write(content))
    except OSError as error:
        raise RunError(f"{record.folder}: figures and report cannot be written ({error.strerror}).") from error
    return list(contents)


def report(record: RunRecord, drawn: dict[str, dict[str, bytes]], skipped: str) -> str:
    """Settings, numbers and pictures on a page of HTML that needs no other file."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = lambda v: "-" if pd.isna(v) else f"{v:.5g}" if isinstance(v, float) else v
    environment.filters["text"] = lambda v: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)
    pictures = [(base64.b64encode(files["svg"]).decode(), CAPTIONS[name]) for name, files in drawn.items()]
    best_row = record.history.set_index("epoch").loc[record.best_epoch]
    names = {"splits": SPLITS, "metrics": ("Loss", *METRICS), "skipped": skipped}
    template = environment.get_template("report.html.jinja")
    return template.render(run=record, best_row=best_row, pictures=pictures, **names)


def draw_after_training(run: RunFolder, device: torch.device) -> None:
    """Draw a run that has ended; a failure is a warning, for the run itself is complete."""
    try:
        record = RunRecord(run.results)
        draw(record, inspect_checkpoint(record, run.best, device))
        logger.info(f"Figures in {run.results / 'figures'}, all on one page in {run.results / 'report.html'}.")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        again = shlex.join(["python", "-m", "analysis.figures", str(run.results), "--checkpoint", str(run.best)])
        logger.warning(f"No figures ({reason}). To try again: {again}")
        log_traceback(error)


def inspect_checkpoint(record: RunRecord, checkpoint: Path, device: torch.device) -> Inspection:
    """The test split as the model of a checkpoint of that run sees it, in the precision of the training.

    Raises CheckpointError, ConfigError or DataError where checkpoint, settings and data do not fit together.
    """
    state, beside = read_checkpoint(checkpoint), settings_beside(checkpoint)
    if beside and beside["settings"] != record.config["settings"]:
        raise CheckpointError(f"{checkpoint}: of a run with other settings than {record.folder}. Name the right one.")
    args, replaced = config_from_resolved(record.config["settings"]), record.config["features"]
    model, _, loader = restore(state, checkpoint, args, replaced, "test", device)
    for difference in differences(record.config, args, replaced):
        print(f"Warning: {difference}", file=sys.stderr)
    return inspect(model, loader, device, record.config.get("precision", "fp32"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.figures", description="Draw a run.")
    parser.add_argument("run", type=Path, help="its result folder, such as result/dmd-mosi-1111")
    parser.add_argument("--checkpoint", type=Path, help="its best checkpoint (default: pt/<name>/best.pth)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(argv)
    keep_freed_memory()
    device, record = choose_device(options.device), RunRecord(options.run)
    # `pt/` is beside `result/`, or here.
    defaults = [parent / "pt" / record.name / "best.pth" for parent in (options.run.resolve().parents[1], Path())]
    found = next(filter(Path.exists, defaults), defaults[0])
    inspection, skipped = None, ""
    try:
        inspection = inspect_checkpoint(record, options.checkpoint or found, device)
    except DMDError as error:
        if options.checkpoint:  # which was asked for
            raise
        skipped = f"Without features, predictions, heads: {error}"
        print(skipped, file=sys.stderr)
    for path in draw(record, inspection, skipped):
        print(path)


if __name__ == "__main__":
    sys.exit(run_command(main))
