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
from utils.errors import CheckpointError, ConfigError

# Modules that load PyTorch are imported where they are used, as in run.py.


def DMD_test(  # noqa: N802  (the sister of DMD_run)
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
        dataset_name: A data set of the config; by default the one of the training. A checkpoint
            without run.json next to it needs it.
        config_file: JSON config; by default the settings of the training.
        config: Settings by key that override the others.
        split: train, valid or test.
        device: auto, cpu, cuda or cuda:N.
        predictions: CSV to write with the columns id, raw_text, label, prediction; "" for none.
        log_dir: Folder of logs.
        features: Feature pickle to predict on, which may lack labels, or a folder of pickles, each
            of one or several utterances; by default the data of the training.
        overwrite: Replace the file `predictions`.

    Returns:
        The metrics; {} where there are no labels.

    Raises:
        DataError: Also where some files of a folder are broken, after the predictions for the
            others were written.
        DMDError, OSError: For whatever the caller can fix.
    """
    if not os.path.isfile(checkpoint):
        raise CheckpointError(
            f"{checkpoint}: no such file. run.py writes pt/<name>-<dataset>-<seed>/best.pth."
        )
    if (
        predictions
        and os.path.exists(predictions)
        and not (overwrite and os.path.isfile(predictions))
    ):
        raise ConfigError(
            f"--predictions: {predictions} already exists. Choose another file, or replace it with "
            "--overwrite."
        )

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
        argv: The words after `test.py`; by default those of this process.
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
        help="predict on this pickle, or on those of a folder, labeled or not",
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
        help="write id, raw_text, label, prediction",
    )
    add("--overwrite", action="store_true", help="replace the file of --predictions")
    add("--log-dir", default="log", help="folder of logs (default: log)")
    options = vars(parser.parse_args(argv))
    options["config"] = parse_overrides(options.pop("set"))
    DMD_test(**options)


if __name__ == "__main__":
    sys.exit(run_command(main))
