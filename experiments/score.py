"""Score a checkpoint on a split."""

from pathlib import Path

import pandas as pd

from dataset.features import Split
from experiments.restore import (
    CheckpointSettings,
    describe_changes,
    load_settings,
    restore,
)
from trainers.evaluate import Predictions, log_metrics, predict
from utils.device import choose_device, keep_freed_memory
from utils.errors import ConfigError, DataError
from utils.files import write_csv
from utils.log import logger, start_log


def score_checkpoint(
    checkpoint: str | Path,
    dataset_name: str,
    config_file: str | Path,
    config: dict | None,
    split: str,
    device: str,
    predictions: str | Path,
    log_dir: str | Path,
    features: str | Path,
) -> dict[str, float]:
    """Score a checkpoint; the arguments are documented at `test.DMD_test`.

    Returns:
        The metrics; {} if the data have no labels.
    """
    keep_freed_memory()
    trained = load_settings(checkpoint, dataset_name, config_file, config)
    if features:
        trained.settings.featurePath = str(features)
        trained.feature_overrides = {}
    run = restore(checkpoint, trained, split, choose_device(device), to_predict=bool(features))
    if not run.split.labeled and not predictions:
        raise ConfigError(
            f"{features}: has no labels to score. Give an output file with --predictions."
        )
    if features:
        check_provenance(trained, features, run.features.provenance)
    start_log(Path(log_dir) / f"test-{run.settings.dataset_name}.log", verbose_level=1)
    for change in describe_changes(trained, to_predict=bool(features)):
        logger.warning(change)
    scored = predict(run.model, run.loader, run.device, split, run.precision)
    metrics = {}
    if run.split.labeled:
        metrics = scored.metrics()
        log_metrics(split, run.settings.model_name, metrics)
    else:
        logger.info(
            f"{features}: no labels, so no scores; the column label of {predictions} is empty."
        )
    if predictions:
        write_csv(Path(predictions), prediction_table(run.split, scored))
    return metrics


def check_provenance(trained: CheckpointSettings, path: str | Path, provenance: str) -> None:
    """Check that features were built in the same way as the training data, if both are known.

    Args:
        trained: How the checkpoint was trained.
        path: The file of the features, for the error message.
        provenance: How they were built.

    Raises:
        DataError: They were built in another way.
    """
    expected = trained.run_config.get("provenance", "")
    if provenance and expected and provenance != expected:
        raise DataError(
            f"{path}: was built with {provenance}, but the training data with {expected}. Build it "
            "in the same way."
        )


def prediction_table(split: Split, scored: Predictions) -> pd.DataFrame:
    """A row for each utterance: id, raw_text, label, prediction."""
    return pd.DataFrame(
        {
            "id": split.ids,
            "raw_text": split.raw_text,
            "label": split.labels,
            "prediction": scored.predicted,
        }
    )
