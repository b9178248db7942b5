"""The files in a run's result folder, read back."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from trainers.run_settings import read_description
from utils.errors import RunError
from utils.reading import printable, read_metrics

PREDICTION_TYPES = {"id": str, "label": np.float32, "prediction": np.float32}  # as they were scored


class RunRecord:
    """A run's result folder, `result/<name>-<dataset>-<seed>/`.

    Args:
        folder: The result folder.

    Attributes:
        config: The content of config.json: settings, seed, data, versions.
        metrics: The content of metrics.json; None while the run is not finished.

    Raises:
        RunError: If config.json or metrics.json is missing or damaged; for history and predictions
            when they are first used.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        self.config = read_description(self.folder)
        if self.config is None:
            raise RunError(
                f"{self.folder}/config.json: missing, or not written by a run. "
                "Name a run's result folder, such as result/dmd-mosi-1111."
            )
        self.metrics: dict | None = None
        if (self.folder / "metrics.json").exists():
            self.metrics = self._read("metrics.json", read_metrics)

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row for each epoch."""
        return self._read("history.csv", pd.read_csv)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """id, label and prediction of each utterance of test."""
        return self._read("predictions.csv", _read_predictions)

    @property
    def best_epoch(self) -> int:
        """The best epoch so far by KeyEval on valid."""
        return int(self.history["best_epoch"].iloc[-1])

    def _read(self, name: str, read: Callable[[Path], object]):
        path = self.folder / name
        try:
            return read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = printable(getattr(error, "strerror", None) or error)
            raise RunError(
                f"{path}: {reason}. Name a run's result folder, or --resume the run."
            ) from error


def _read_predictions(path: Path) -> pd.DataFrame:
    # An id may be "NA" or "null".
    return pd.read_csv(path, dtype=PREDICTION_TYPES, keep_default_na=False)
