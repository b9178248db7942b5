"""Where a run leaves its files, and the tables over seeds."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from utils.checkpoint import CheckpointWriter
from utils.errors import DMDError
from utils.files import write_atomically, write_json
from utils.metrics import CORE_METRICS, WIDER_METRICS

TABLE_METRICS = (*CORE_METRICS, "Loss")


class RunFolder:
    """The files of one seed: weights in `pt/<name>-<dataset>-<seed>/`, numbers in `result/<name>-<dataset>-<seed>/`."""

    def __init__(self, name: str, dataset: str, seed: int, model_save_dir: str | Path, res_save_dir: str | Path):
        folder = f"{name}-{dataset}-{seed}"
        self.checkpoints = Path(model_save_dir) / folder
        self.results = Path(res_save_dir) / folder
        self.best = self.checkpoints / "best.pth"
        self._history: list[dict] = []
        self._writer = CheckpointWriter()

    def start(self, description: dict) -> None:
        """Make the folders, remove what an earlier run of this name left, and write config.json to both.

        Raises DMDError if the folders cannot be written to.
        """
        try:
            for folder in (self.checkpoints, self.results):
                folder.mkdir(parents=True, exist_ok=True)
            # An earlier, longer run would leave later epochs among those of this one.
            for old in [*self.checkpoints.glob("*.pth"), self.results / "history.csv", self.results / "metrics.json"]:
                old.unlink(missing_ok=True)
            # Beside the checkpoints too: test.py finds there what they were trained with.
            for folder in (self.results, self.checkpoints):
                write_json(folder / "config.json", description)
        except OSError as error:
            raise DMDError(
                f"{error.filename}: cannot write ({error.strerror}). Choose other folders with --model-save-dir and "
                "--res-save-dir."
            ) from error

    def save_epoch(self, model: nn.Module, epoch: int, is_best: bool) -> None:
        """Start to write `<epoch>.pth`, and `best.pth` if it is the best so far; raises what the last write met."""
        with self._naming_the_file():
            self._writer.save(model, self.checkpoints / f"{epoch}.pth", *([self.best] if is_best else []))

    def check_writing(self) -> None:
        """Raise DMDError if writing a checkpoint has failed; never waits."""
        with self._naming_the_file():
            self._writer.check()

    def finish_writing(self) -> None:
        """Wait until the last checkpoint is written. Raises DMDError if that fails."""
        with self._naming_the_file():
            self._writer.finish()

    @contextlib.contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise DMDError(
                f"{self.checkpoints}: a checkpoint cannot be written ({reason}). Make room, or choose another folder "
                "with --model-save-dir."
            ) from error

    def append_history(self, row: dict) -> None:
        """Add an epoch to history.csv."""
        self._history.append(row)
        write_csv(self.results / "history.csv", pd.DataFrame(self._history))

    def save_metrics(self, metrics: dict) -> None:
        """Write the result of the run to metrics.json."""
        write_json(self.results / "metrics.json", metrics)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index."""
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=False))


def append_results(res_save_dir: str | Path, dataset: str, name: str, per_seed: dict[int, dict]) -> Path:
    """Append to `normal/<dataset>.csv` a row of `(mean, std)` cells over the seeds, times 100, as the release does,
    and to `normal/<dataset>-seeds.csv` a row for each seed with all metrics as they are.  -> the former's path"""
    folder = Path(res_save_dir) / "normal"
    values = {metric: np.array([result[metric] for result in per_seed.values()]) for metric in TABLE_METRICS}
    row = {"Model": name} | {
        metric: str((round(float(v.mean()) * 100, 2), round(float(v.std()) * 100, 2))) for metric, v in values.items()
    }
    table = folder / f"{dataset}.csv"
    _append_rows(table, [row])
    columns = ("epoch", *TABLE_METRICS, *WIDER_METRICS)
    _append_rows(
        folder / f"{dataset}-seeds.csv",
        [{"Model": name, "seed": seed} | {c: result[c] for c in columns} for seed, result in per_seed.items()],
    )
    return table


def _append_rows(path: Path, rows: list[dict]) -> None:
    new = pd.DataFrame(rows)
    if path.exists():
        new = pd.concat([pd.read_csv(path), new], ignore_index=True)
    write_csv(path, new)
