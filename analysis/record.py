"""What a run has left in its result folder, read back."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.run_config import read_description
from utils.errors import RunError
from utils.reading import printable, read_json


class RunRecord:
    """A run's result folder, `result/<name>-<dataset>-<seed>/`.

    Raises RunError, also where its tables are first used, if a file is missing or damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        self.config = read_description(self.folder)
        if self.config is None:
            raise RunError(f"{self.folder}/config.json: no run's. Name a run's result folder.")
        finished = (self.folder / "metrics.json").exists()
        self.metrics: dict | None = self._read("metrics.json", read_json) if finished else None

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row an epoch."""
        return self._read("history.csv", pd.read_csv)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """id, label and prediction of each utterance of test; float32, as they were scored."""
        types = {"id": str, "label": np.float32, "prediction": np.float32}
        return self._read("predictions.csv", lambda path: pd.read_csv(path, dtype=types, keep_default_na=False))

    @property
    def best_epoch(self) -> int:
        return int(self.history["best_epoch"].iloc[-1])

    def _read(self, name: str, read: Callable[[Path], object]):
        path = self.folder / name
        try:
            return read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = printable(getattr(error, "strerror", None) or error)
            raise RunError(f"{path}: {reason}. Name a run's result folder, or --resume the run.") from error
