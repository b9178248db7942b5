"""Where a run leaves its files."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from torch import nn

from trainers.checkpoint import BackgroundWriter, load_weights, read_state, save_state, snapshot
from trainers.run_settings import LIMITS, RunFiles, check_same_run
from utils.errors import CheckpointError, RunError
from utils.files import link_atomically, remove_leftovers, write_atomically, write_json
from utils.interrupts import interrupts_held
from utils.reading import read_json

TENSORBOARD = "tensorboard"  # folder of a run's event files
EVENT_FILES = ("events.out.tfevents.*", "hparams.yml")
FIGURES = ("training", "edges", "features", "predictions", "heads")  # what analysis.figures draws
DRAWN = [f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")]


def _writing(method: Callable) -> Callable:
    """A method that does nothing for a rank that does not write, and tells in one line what the disk refuses."""

    @functools.wraps(method)
    def write(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs) if self.writes else None
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise RunError(
                f"{getattr(error, 'filename', None) or self.checkpoints}: cannot be written ({reason}). Make room, "
                "then continue with --resume; or choose other folders with --model-save-dir and --res-save-dir."
            ) from error

    return write


class RunFolder(RunFiles):
    """Reads and, but for `writes` False, writes the files of one seed.

    An epoch is complete once training-state.pt tells of it, which is written last: weights, best weights and
    history come before. A run that stops anywhere resumes from the epoch which that file names.
    """

    def __init__(self, *names, writes: bool = True):
        super().__init__(*names)
        self.writes = writes
        self.history: list[dict] = []
        self._writer = BackgroundWriter()

    def finished(self, description: dict) -> dict | None:
        """The content of metrics.json; None where the run is not at its end, or may train longer by the limits
        described. Raises RunError where it is the result of other settings or data."""
        if not (self.exists and self.metrics_file.exists()):
            return None
        check_same_run(self.name, self.description, description)
        with self.continuing_from(self.metrics_file):
            metrics = read_json(self.metrics_file)
            metrics["epoch"], started = int(metrics["epoch"]), self.description["settings"]
        return metrics if all(started.get(key) == description["settings"][key] for key in LIMITS) else None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Make the folders and keep other processes out of them; on leaving, wait for the write under way."""
        with contextlib.ExitStack() as locks:
            self._lock(locks)
            try:
                yield
            finally:
                # Whatever ends the run, its last complete epoch counts; an error on the way out hides this one's.
                with contextlib.suppress(Exception):
                    self._writer.finish()

    @_writing
    def _lock(self, locks: contextlib.ExitStack) -> None:
        # In one order for all processes, and once where both are one folder.
        for folder in sorted({self.checkpoints.resolve(), self.results.resolve()}):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                locks.enter_context(FileLock(folder / ".lock", timeout=0))
            except Timeout as error:
                raise RunError(
                    f"{self.name}: another process is writing this run. Wait for it, or choose another --name."
                ) from error
            remove_leftovers(folder)
        remove_leftovers(self.results / "figures")

    @_writing
    def discard(self) -> None:
        """Make an earlier run of this name one that is neither finished nor can be continued."""
        if self.exists:
            with self.open(), interrupts_held():
                self._remove(self.state_file, self.best, *self.epochs().values())

    @_writing
    def start(self, description: dict) -> None:
        """Remove what an earlier run of this name left, and write config.json to both folders."""
        with interrupts_held():
            # An earlier, longer run would leave later epochs among those of this one.
            self._remove(self.state_file, self.best, *self.epochs().values(), self.history_file)
            remove_events(self.results / TENSORBOARD)
            self._write_description(description)

    def _remove(self, *files: Path) -> None:
        # metrics.json goes first: what is half removed must not look finished.
        names = ("metrics.json", "predictions.csv", "report.html", *DRAWN)
        for old in (*(self.results / name for name in names), *files):
            if old.exists():
                old.unlink()

    def resume(self, model: nn.Module, description: dict) -> dict | None:
        """Load the weights of the last complete epoch.  -> the training state as `save_epoch` was given it, or None
        where no epoch is complete. Raises RunError for other settings or data, CheckpointError for damaged files."""
        # A run that was stopped in its first epoch has 1.pth at most, and a row of history.
        elsewhere = self.history_file.exists() and not (self.checkpoints / "config.json").exists()
        later = elsewhere or self.metrics_file.exists() or self.epochs().keys() - {1}
        if not self.exists or not (self.state_file.exists() or later):
            self.start(description)
            return None
        check_same_run(self.name, self.description, description)
        with self.continuing_from(self.state_file):
            state = read_state(self.state_file)
            self.history = state["history"]
            load_weights(model, self.checkpoints / f"{state['epoch']}.pth")
            best = self.checkpoints / f"{state['best_epoch']}.pth"
            best.stat()
        self._forget_later(best, description)
        return state

    @contextlib.contextmanager
    def continuing_from(self, file: Path) -> Iterator[None]:
        """Inside, a file of the run that is missing, damaged or of another model raises CheckpointError."""
        try:
            yield
        except (CheckpointError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.name} cannot be continued from {file} ({type(error).__name__}: {error}). Restore the file, "
                "name another folder with --model-save-dir, or start over with --overwrite."
            ) from error

    @_writing
    def _forget_later(self, best: Path, description: dict) -> None:
        # A finished run that is continued is not finished until its new end; one that stopped within the writing of
        # an epoch may have left its best.pth and its row of history.csv.
        with interrupts_held():
            self._remove()
            link_atomically(best, self.best)
            write_csv(self.history_file, pd.DataFrame(self.history))
            self._write_description(description)

    def _write_description(self, description: dict) -> None:
        # Beside the checkpoints too: test.py finds there what they were trained with.
        for folder in (self.results, self.checkpoints):
            write_json(folder / "config.json", description)

    @_writing
    def save_epoch(self, model: nn.Module, state: dict, row: dict, best_epoch: int, keep: int | None) -> None:
        """Start to write what an epoch leaves, and return at once. Raises what the last write met."""
        self.history.append(row)
        weights, state = snapshot(model.state_dict()), snapshot(state | {"history": list(self.history)})
        self._writer.submit(lambda: self._write_epoch(weights, state, best_epoch, keep))

    def _write_epoch(self, weights: dict, state: dict, best_epoch: int, keep: int | None) -> None:
        path = self.checkpoints / f"{state['epoch']}.pth"
        save_state(weights, path)
        if state["epoch"] == best_epoch:
            link_atomically(path, self.best)
        write_csv(self.history_file, pd.DataFrame(state["history"]))
        save_state(state, self.state_file)
        for epoch, old in self.epochs().items() if keep is not None else ():
            if epoch <= state["epoch"] - keep and epoch != best_epoch:
                old.unlink()

    @_writing
    def finish_writing(self) -> None:
        """Wait until the last epoch's files are written."""
        self._writer.finish()

    @_writing
    def save_result(self, metrics: dict, ids: list[str], predictions) -> None:
        """Write the Predictions of TEST to predictions.csv, and the result of the run to metrics.json."""
        columns = {"id": ids, "label": predictions.labels, "prediction": predictions.predicted}
        write_csv(self.results / "predictions.csv", pd.DataFrame(columns))
        write_json(self.metrics_file, metrics)


def remove_events(folder: Path) -> None:
    """Remove the event files of TensorBoard below a folder."""
    for file in (file for pattern in EVENT_FILES for file in folder.rglob(pattern)):
        file.unlink()


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index."""
    write_atomically(path, lambda file: table.to_csv(file, index=False))
