"""Draw a run: pictures in <run>/figures/, and <run>/report.html with pictures, settings and numbers on one page.

python -m analysis.figures result/dmd-mosi-1111
"""

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
from dataset.features import SPLITS, FeatureSet
from trainers.heads import Inspection, inspect
from experiments.run_config import read_description
from experiments.run_folder import RunFolder
from experiments.restore import differences, restore
from utils.cli import ArgumentParser, log_traceback, run_command
from utils.device import choose_device, keep_freed_memory
from utils.errors import CheckpointError, DMDError
from utils.files import write_atomically
from utils.log import logger
from utils.metrics import METRICS


def draw(record: RunRecord, inspection: Inspection | None, skipped: str = "") -> list[Path]:
    """Write the pictures of a run and its report; all is drawn before anything is written.

    inspection: of the test split at the best epoch; None leaves out what needs it, and `skipped` says why
    -> the paths of the files
    """
    from analysis.plots import draw_all  # here: a run without figures needs no matplotlib, which takes long to import

    drawn = draw_all(record, inspection)
    files = {f"figures/{name}": picture for name, picture in drawn.items()}
    files["report.html"] = report(record, drawn, skipped).encode()
    for name, content in files.items():
        write_atomically(record.folder / name, lambda file, content=content: file.write(content))
    return [record.folder / name for name in files]


def report(record: RunRecord, drawn: dict[str, bytes], skipped: str) -> str:
    """Settings, numbers and pictures on a page of HTML that needs no other file."""
    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pictures = {name: base64.b64encode(file).decode() for name, file in drawn.items() if name.endswith(".svg")}
    names = {"splits": SPLITS, "metrics": METRICS, "json": json.dumps}
    return template.render(run=record, pictures=pictures, skipped=skipped, **names)


def draw_after_training(run: RunFolder, device: torch.device, features: FeatureSet | None = None) -> None:
    """Draw a run that has ended; a failure is a warning, for the run itself is complete.

    features: those that it was trained on, if they are in memory
    """
    try:
        record = RunRecord(run.results)
        draw(record, inspect_checkpoint(record, run.best, device, features))
        logger.info(f"Figures in {run.results / 'figures'}, all on one page in {run.results / 'report.html'}.")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        again = shlex.join(["python", "-m", "analysis.figures", str(run.results), "--checkpoint", str(run.best)])
        logger.warning(f"No figures ({reason}). To try again: {again}")
        log_traceback(error)


def inspect_checkpoint(
    record: RunRecord, checkpoint: Path, device: torch.device, features: FeatureSet | None = None
) -> Inspection:
    """The test split as the model of a checkpoint of that run sees it, in the precision of the training.

    features: those that it was trained on, if they are in memory
    Raises CheckpointError, ConfigError or DataError where checkpoint, settings and data do not fit together.
    """
    beside = read_description(checkpoint.parent)
    if beside and beside["settings"] != record.config["settings"]:
        raise CheckpointError(f"{checkpoint}: of a run with other settings than {record.folder}. Name the right one.")
    args, replaced = config_from_resolved(record.config["settings"]), record.config["features"]
    model, _, loader = restore(checkpoint, args, replaced, "test", device, known=features)
    if features is None:
        for difference in differences(record.config, args, replaced):
            print(f"Warning: {difference}", file=sys.stderr)
    return inspect(model, loader, device, record.config.get("precision", "fp32"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m analysis.figures", description="Draw a run.")
    parser.add_argument("run", type=Path, help="its result folder, such as result/dmd-mosi-1111")
    parser.add_argument("--checkpoint", type=Path, help="of its best epoch (default: best.pth in pt/, beside result/)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(argv)
    keep_freed_memory()
    device, record = choose_device(options.device), RunRecord(options.run)
    beside = options.run.resolve().parents[1] / "pt" / record.name / "best.pth"
    inspection, skipped = None, ""
    try:
        inspection = inspect_checkpoint(record, options.checkpoint or beside, device)
    except DMDError as error:
        if options.checkpoint:  # which was asked for
            raise
        skipped = f"Without features, predictions, heads: {error}"
        print(skipped, file=sys.stderr)
    print(*draw(record, inspection, skipped), sep="\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
