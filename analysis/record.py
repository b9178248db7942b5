"""What a run has left in its result folder, read back."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dataset.features import SPLITS
from models.distillation import EDGE_NAMES
from trainers.checkpoint import check_description
from utils.errors import RunError
from utils.metrics import METRICS
from utils.reading import printable, read_json, regular_size

SPLIT_METRICS = ("Loss", *METRICS)  # of each split, in history.csv


@dataclass(frozen=True)
class RunRecord:
    """A run that has at least one complete epoch."""

    folder: Path
    config: dict  # config.json
    history: pd.DataFrame  # history.csv, a row an epoch
    metrics: dict | None  # metrics.json; None where the run has not come to its end

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def best_epoch(self) -> int:
        return int(self.history["best_epoch"].iloc[-1])

    @property
    def best_row(self) -> pd.Series:
        """The row of the best epoch."""
        return self.history[self.history["epoch"] == self.best_epoch].iloc[0]


def read_run(folder: str | Path) -> RunRecord:
    """Read what run.py has left in `result/<name>-<dataset>-<seed>/`.

    Raises RunError where that is no folder of a run, or has no complete epoch.
    """
    folder = Path(folder)
    config, metrics = _read_config(folder), _read_json(folder / "metrics.json")
    return RunRecord(folder, config, _read_history(folder / "history.csv"), metrics)


@dataclass(frozen=True)
class ScoredRun:
    """A run that has come to its end, with what it predicts for test."""

    folder: Path
    config: dict  # config.json
    metrics: dict  # metrics.json
    predictions: pd.DataFrame  # predictions.csv: id (text), label and prediction (float32, as they were scored)


def read_scored_run(folder: str | Path) -> ScoredRun:
    """Read what a finished run has left in `result/<name>-<dataset>-<seed>/`, but for its history.

    Raises RunError where that is no folder of a run, where the run is not finished, or where a file is damaged.
    """
    folder = Path(folder)
    config, metrics = _read_config(folder), _read_json(folder / "metrics.json")
    if not isinstance(metrics, dict):
        raise RunError(f"{folder}: the run is not finished: it has no metrics.json. Go on with it: run.py … --resume.")
    return ScoredRun(folder, config, metrics, _read_predictions(folder / "predictions.csv"))


def _read_config(folder: Path) -> dict:
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder. Name the result folder of a run, such as result/dmd-mosi-1111.")
    if any(folder.glob("*.pth")) and not (folder / "history.csv").exists():
        raise RunError(f"{folder}: holds checkpoints only. Name the run's result folder, such as result/{folder.name}.")
    config = _read_json(folder / "config.json")
    try:
        check_description(config)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder}: not the result folder of a run: it holds no config.json as run.py writes it."
        ) from error
    return config


def _read_json(path: Path):
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a readable JSON file ({printable(error)}).") from error


def _read_history(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise RunError(f"{path}: no such file. run.py writes it at the end of the first epoch: train the run first.")
    try:
        history = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a readable table ({type(error).__name__}).") from error
    metrics = [f"{split}/{metric}" for split in SPLITS for metric in SPLIT_METRICS]
    edges = [f"edge/{graph}_{edge}" for graph in ("homo", "hetero") for edge in EDGE_NAMES]
    for column in ("epoch", "best_epoch", "loss/total", *metrics, *edges):
        if column not in history:
            raise RunError(f"{path}: not the history of a run: it lacks the column '{column}'.")
        if history[column].dtype.kind not in "if":
            raise RunError(f"{path}: the column '{column}' holds something else than numbers.")
    if not len(history) or history["best_epoch"].iloc[-1] not in set(history["epoch"]):
        raise RunError(f"{path}: holds no complete epoch with the best one. Train the run first.")
    return history


def _read_predictions(path: Path) -> pd.DataFrame:
    try:
        regular_size(path)
        table = pd.read_csv(path, dtype=str, keep_default_na=False)  # an id may be "NA", or begin with zeros
    except FileNotFoundError as error:
        raise RunError(
            f"{path}: no such file, though the run is finished; earlier versions left none. Write it with "
            "test.py CHECKPOINT --predictions, from the run's best.pth."
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a readable table ({type(error).__name__}).") from error
    for column in ("id", "label", "prediction"):
        if column not in table:
            raise RunError(f"{path}: not the predictions of a run: it lacks the column '{column}'.")
    if not isinstance(table.index, pd.RangeIndex):  # how pandas takes it
        raise RunError(f"{path}: its rows have more fields than its first line.")
    if not len(table):
        raise RunError(f"{path}: holds no utterance.")
    for column in ("label", "prediction"):
        with np.errstate(over="ignore"):
            values = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float32)
        if not np.isfinite(values).all():
            utterance, text = table.loc[int(np.isfinite(values).argmin()), ["id", column]]
            raise RunError(
                f"{path}: the {column} of utterance '{printable(utterance)}' is '{printable(text)}', but should be a "
                "finite number."
            )
        table[column] = values
    return table[["id", "label", "prediction"]]
