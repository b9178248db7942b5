"""Score a checkpoint on a split, and write its predictions.

python test.py pt/dmd-mosi-1111/best.pth
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from config import parse_overrides
from utils.cli import ArgumentParser, run_command
from utils.errors import CheckpointError, ConfigError, DataError
from utils.log import logger, start_log

# What loads PyTorch is imported where it is used, as in run.py.


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
    """Score a checkpoint on one split; with `predictions`, write id, raw_text, label, prediction to that CSV.

    With `features`, the split is of that pickle, which may lack labels: then there is nothing to score. Settings and
    data set come from config.json beside the checkpoint, unless `dataset_name` or `config_file` says otherwise; a
    checkpoint that stands alone needs `dataset_name`. `config` overrides by key.

    -> the metrics; {} without labels. Raises a DMDError, or an OSError, for what the caller can fix.
    """
    if not os.path.isfile(checkpoint):
        raise CheckpointError(f"{checkpoint}: no such file. run.py writes pt/<name>-<dataset>-<seed>/best.pth.")
    if predictions and os.path.exists(predictions) and not (overwrite and os.path.isfile(predictions)):
        raise ConfigError(f"--predictions: {predictions} is there. Name another file, or replace it with --overwrite.")
    import pandas as pd

    from dataset.features import read_provenance
    from trainers.evaluate import predict
    from trainers.runs import write_csv
    from trainers.setup import differences, restore, settings_of
    from trainers.trainer import log_metrics
    from utils.device import choose_device, keep_freed_memory

    keep_freed_memory()
    args, replaced, trained = settings_of(checkpoint, dataset_name, config_file, config)
    if features:
        args.featurePath, replaced = str(features), {}
    chosen = choose_device(device)
    model, data, loader = restore(checkpoint, args, replaced, split, chosen, to_predict=bool(features))
    part = data.splits[split]
    if not part.labeled and not predictions:
        raise ConfigError(f"{features}: has no labels to score with. Name a file for what is predicted: --predictions.")
    was_made_with = read_provenance(trained)
    if features and data.provenance and was_made_with not in ("", data.provenance):
        raise DataError(f"{features}: made with {data.provenance}; but the training data, with {was_made_with}.")
    start_log(Path(log_dir) / f"test-{args.dataset_name}.log", verbose_level=1)
    for difference in differences(trained, args, replaced, to_predict=bool(features)):
        logger.warning(difference)
    scored = predict(model, loader, chosen, split, trained.get("precision", "fp32"))
    metrics = scored.metrics() if part.labeled else {}
    if metrics:
        log_metrics(split, args.model_name, metrics)
    else:
        logger.info(f"{features}: no labels, so nothing is scored; the column 'label' of {predictions} is empty.")
    if predictions:
        columns = {"id": part.ids, "raw_text": part.raw_text, "label": part.labels, "prediction": scored.predicted}
        write_csv(Path(predictions), pd.DataFrame(columns))
    return metrics


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="Score a DMD checkpoint.")
    add = parser.add_argument
    add("checkpoint")
    add("-d", "--dataset", default="", dest="dataset_name", help="a data set of the config (default: as trained)")
    add("-c", "--config", default="", dest="config_file", help="JSON config (default: as trained)")
    add("--features", default="", metavar="FILE.pkl", help="predict on this pickle, with or without labels")
    add("--split", choices=("train", "valid", "test"), default="test")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override settings")
    add("--predictions", default="", metavar="FILE.csv", help="write id, raw_text, label, prediction")
    add("--overwrite", action="store_true", help="replace the file of --predictions")
    add("--log-dir", default="log")
    options = vars(parser.parse_args(argv))
    DMD_test(config=parse_overrides(options.pop("set")), **options)


if __name__ == "__main__":
    sys.exit(run_command(main))
