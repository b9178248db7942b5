"""Score a checkpoint on a split, and write its predictions.

python test.py pt/dmd-mosi-1111/best.pth
python test.py pt/dmd-mosi-1111/best.pth --features FOLDER --predictions out.csv
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from config import parse_overrides
from utils.cli import ArgumentParser, run_command
from utils.errors import CheckpointError
from utils.files import check_output

# Modules that load PyTorch are imported inside functions, as in run.py.


def DMD_test(  # noqa: N802  (named like DMD_run)
    checkpoint: str | Path,
    dataset_name: str = "",
    config_file: str | Path = "",
    config: dict | None = None,
    split: str = "test",
    device: str = "auto",
    predictions: str | Path = "",
    log_dir: str | Path = "log",
    features: str | Path = "",
    overwrite: bool = False,
) -> dict[str, float]:
    """Score a checkpoint on one split, and write its predictions.

    Args:
        checkpoint: The .pth file.
        dataset_name: A data set of the config; by default the one used in training. Required if
            no run.json is next to the checkpoint.
        config_file: JSON config; by default the settings used in training.
        config: Settings by key that override the others.
        split: train, valid or test.
        device: auto, cpu, cuda or cuda:N.
        predictions: CSV to write with the columns id, raw_text, label, prediction; "" for none.
        log_dir: Folder of logs.
        features: Feature pickle to predict on, with or without labels, or a folder of pickles of
            one or more utterances each; by default the data used in training.
        overwrite: Replace the file `predictions`.

    Returns:
        The metrics; {} if the data have no labels.

    Raises:
        DataError: Some files of a folder are broken; the predictions for the others are written.
        DMDError, OSError: A problem that the caller can fix.
    """
    if not os.path.isfile(checkpoint):
        raise CheckpointError(
            f"{checkpoint}: no such file. run.py writes pt/<name>-<dataset>-<seed>/best.pth."
        )
    if predictions:
        check_output(predictions, overwrite, "--predictions")

    if features and os.path.isdir(features):
        from experiments.score_folder import score_folder

        return score_folder(
            folder=features,
            checkpoint=checkpoint,
            dataset_name=dataset_name,
            config_file=config_file,
            config=config,
            split=split,
            device=device,
            predictions=predictions,
            log_dir=log_dir,
        )

    from experiments.score import score_checkpoint

    return score_checkpoint(
        checkpoint=checkpoint,
        dataset_name=dataset_name,
        config_file=config_file,
        config=config,
        split=split,
        device=device,
        predictions=predictions,
        log_dir=log_dir,
        features=features,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].
    """
    parser = ArgumentParser(description="Score a DMD checkpoint.")
    add = parser.add_argument
    add("checkpoint", help="a .pth file, such as pt/dmd-mosi-1111/best.pth")
    add(
        "-d",
        "--dataset",
        default="",
        dest="dataset_name",
        help="a data set of the config (default: as trained)",
    )
    add("-c", "--config", default="", dest="config_file", help="JSON config (default: as trained)")
    add(
        "--features",
        default="",
        metavar="FILE.pkl|FOLDER",
        help="predict on this pickle, or on all pickles of this folder, with or without labels",
    )
    add("--split", choices=("train", "valid", "test"), default="test", help="default: test")
    add("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override settings",
    )
    add(
        "--predictions",
        default="",
        metavar="FILE.csv",
        help="write a table of id, raw_text, label, prediction",
    )
    add("--overwrite", action="store_true", help="overwrite the file of --predictions")
    add("--log-dir", default="log", help="folder of logs (default: log)")
    options = vars(parser.parse_args(argv))
    options["config"] = parse_overrides(options.pop("set"))
    DMD_test(**options)


if __name__ == "__main__":
    sys.exit(run_command(main))
