"""Score a checkpoint on a split, and write its predictions.

python test.py pt/dmd-mosi-1111/best.pth
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from config import config_from_resolved, load_config, parse_overrides
from dataset.features import SPLITS
from trainers.checkpoint import read_checkpoint, settings_beside
from trainers.evaluate import predict
from trainers.options import PRECISIONS
from trainers.runs import write_csv
from trainers.setup import differences, restore
from trainers.trainer import log_metrics
from utils.cli import run_command
from utils.device import choose_device, keep_freed_memory
from utils.errors import ConfigError
from utils.log import logger, start_log


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
) -> dict[str, float]:
    """Score a checkpoint on one split; with `predictions`, write id, raw_text, label, prediction to that CSV.

    With `features`, the split is of that pickle, whatever the model was trained on. It may lack labels: then there is
    nothing to score, and the column `label` is empty.

    Settings and data set come from the run's config.json beside the checkpoint, unless `dataset_name` or
    `config_file` says otherwise; a checkpoint that stands alone needs `dataset_name`. `config` overrides by key.

    -> the metrics; {} without labels. Raises a DMDError for what the caller can mend.
    """
    if predictions and (os.path.isdir(predictions) or not os.path.isdir(Path(predictions).parent)):
        raise ConfigError(f"--predictions: {predictions} is a folder, or in none. Name a file in a folder that exists.")
    state = read_checkpoint(checkpoint)  # a wrong file is told before anything is loaded or asked for
    beside = settings_beside(checkpoint)
    as_trained = not dataset_name and not config_file
    args, replaced = _settings(checkpoint, beside, dataset_name, config_file, config)
    other = bool(str(features))
    if other:
        if not os.path.exists(features):
            raise ConfigError(f"--features: {features}: no such file. python -m dataset.build makes one.")
        args.featurePath, replaced = str(features), {}
    chosen = choose_device(device)
    model, data, loader = restore(state, checkpoint, args, replaced, split, chosen, to_predict=other)
    part = data.splits[split]
    if not part.labelled and not predictions:
        raise ConfigError(f"{features}: has no labels to score with. Name a file for what is predicted: --predictions.")
    start_log(Path(log_dir) / f"test-{args.dataset_name}.log", verbose_level=1)
    for difference in differences(beside or {}, args, replaced, to_predict=other):
        logger.warning(difference)
    trained_in = (beside or {}).get("precision", "fp32")
    precision = trained_in if as_trained and trained_in in PRECISIONS else "fp32"
    if precision != trained_in:
        logger.warning(f"precision is '{precision}' here, but was '{trained_in}' in training.")
    scored = predict(model, loader, chosen, split, precision)
    metrics = scored.metrics() if part.labelled else {}
    if metrics:
        log_metrics(split, args.model_name, metrics)
    else:
        logger.info(f"{features}: no labels, so nothing is scored; the column 'label' of {predictions} is empty.")
    if predictions:
        columns = {"id": part.ids, "raw_text": part.raw_text, "label": part.labels, "prediction": scored.predicted}
        try:
            write_csv(Path(predictions), pd.DataFrame(columns))
        except OSError as error:
            raise ConfigError(f"--predictions: cannot write {predictions} ({error.strerror}).") from error
    return metrics


def _settings(checkpoint, beside: dict | None, dataset_name: str, config_file, config: dict | None):
    """-> (settings of the model and data, the feature files that replaced a modality's)"""
    if beside and not dataset_name and not config_file:
        return config_from_resolved(beside["settings"], config), beside["features"]
    if not dataset_name and not beside:
        raise ConfigError(f"{checkpoint}: no config.json beside it says its data set. Name it: -d mosi or -d mosei.")
    return load_config("dmd", dataset_name or beside["settings"]["dataset_name"], config_file, config), {}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Score a DMD checkpoint.")
    parser.add_argument("checkpoint")
    parser.add_argument("-d", "--dataset", default="", help="a data set of the config (default: as trained)")
    parser.add_argument("-c", "--config", default="", help="JSON config (default: as trained)")
    parser.add_argument("--features", default="", metavar="FILE.pkl", help="predict on this pickle, labelled or not")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable")
    parser.add_argument("--predictions", default="", metavar="FILE.csv", help="write id, raw_text, label, prediction")
    parser.add_argument("--log-dir", default="log")
    options = parser.parse_args(argv)
    keep_freed_memory()
    DMD_test(
        options.checkpoint,
        options.dataset,
        options.config,
        parse_overrides(options.set),
        options.split,
        options.device,
        options.predictions,
        options.log_dir,
        options.features,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
