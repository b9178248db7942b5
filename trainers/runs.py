"""Where a run leaves its files."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pandas as pd
from accelerate.utils import recursively_apply
from filelock import FileLock, Timeout
from torch import nn

from trainers.checkpoint import load_weights, read_state, save_state
from trainers.run_settings import INCONSEQUENTIAL, LIMITS, RunFiles, different_settings, is_longer
from utils.errors import CheckpointError, RunError
from utils.files import link_atomically, remove_leftovers, write_atomically, write_json
from utils.interrupts import interrupts_held
from utils.reading import read_metrics

TENSORBOARD = "tensorboard"  # folder of a run's event files
EVENT_FILES = ("events.out.tfevents.*", "hparams.yml")
FIGURES = ("training", "edges", "features", "predictions", "heads")  # the names of what analysis draws


class RunFolder(RunFiles):
    """Reads and, but for `writes` False, writes the files of one seed.

    An epoch is complete once training-state.pt tells of it, which is written last: weights, best weights and
    history come before. A run that stops anywhere resumes from the epoch which that file names.
    """

    def __init__(self, *names, writes: bool = True):
        super().__init__(*names)
        self.writes = writes
        self.history: list[dict] = []
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writing: set[Future] = set()  # of the last epoch's files

    def finished(self, description: dict) -> dict | None:
        """The content of metrics.json; None where the run is not at its end, or may train longer by the limits
        described. Raises RunError where it is of other settings or data."""
        earlier = self.description
        if not earlier:
            return None
        for key, there, here in different_settings(earlier, description, INCONSEQUENTIAL):
            if not is_longer(key, there, here):
                raise RunError(
                    f"{self.name}: --resume with {key} {here!r}, but the run was started with {there!r}. Give it the "
                    f"same settings and data ({' and '.join(LIMITS)} may be larger), or choose another --name."
                )
        started, limits = earlier["settings"], description["settings"]
        if not self.metrics_file.exists() or any(started.get(key) != limits[key] for key in LIMITS):
            return None
        with self.continuing_from(self.metrics_file):
            metrics = read_metrics(self.metrics_file)
            return metrics | {"epoch": int(metrics["epoch"])}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Make the folders and keep other processes out of them; on leaving, wait for the write under way, as the last
        complete epoch counts whatever ends the run. Inside, what the disk refuses raises RunError."""
        # The locks are taken in one order by all processes, and once where both are one folder.
        folders = sorted({self.checkpoints.resolve(), self.results.resolve()}) if self.writes else ()
        try:
            with contextlib.ExitStack() as stack:
                for folder in folders:
                    folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(FileLock(folder / ".lock", timeout=0))
                    remove_leftovers(folder)
                stack.callback(lambda: wait(self._writing))  # before the locks are given back
                yield
        except Timeout as error:
            raise RunError(
                f"{self.name}: another process is writing this run. Wait for it, or choose another --name."
            ) from error
        except OSError as error:
            raise RunError(
                f"{error.filename or self.checkpoints}: cannot be written ({error.strerror}). Make room, then continue "
                "with --resume; or choose other folders with --model-save-dir and --res-save-dir."
            ) from error

    def discard(self) -> None:
        """Make an earlier run of this name one that is neither finished nor can be continued."""
        if self.writes and self.description:
            with self.open(), interrupts_held():
                self._remove_all()

    def start(self, description: dict) -> None:
        """Remove what an earlier run of this name left, and write config.json to both folders."""
        if self.writes:
            with interrupts_held():
                self._remove_all()
                self._write_description(description)

    def _remove_all(self) -> None:
        # The result goes first: what is half removed must not look finished.
        self._remove_result()
        for file in (self.state_file, self.best, *self.epochs().values(), self.history_file):
            file.unlink(missing_ok=True)
        remove_events(self.results / TENSORBOARD)

    def _remove_result(self) -> None:
        figures = [f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")]
        for name in ("metrics.json", "predictions.csv", "report.html", *figures):
            (self.results / name).unlink(missing_ok=True)

    def _write_description(self, description: dict) -> None:
        # Beside the checkpoints too: test.py finds there what they were trained with.
        for folder in (self.checkpoints, self.results):
            write_json(folder / "config.json", description)

    def resume(self, model: nn.Module, description: dict) -> dict | None:
        """Load the weights of the last complete epoch.  -> the training state as `save_epoch` was given it, or None
        where no epoch is complete. Raises RunError for other settings or data, CheckpointError for damaged files."""
        # A run that was stopped in its first epoch has config.json, and 1.pth at most.
        further = self.metrics_file.exists() or self.epochs().keys() - {1}
        elsewhere = self.description and not (self.checkpoints / "config.json").exists()
        if not (self.state_file.exists() or further or elsewhere):
            self.start(description)
            return None
        with self.continuing_from(self.state_file):
            state = read_state(self.state_file)
            self.history = state["history"]
            load_weights(model, self.checkpoints / f"{state['epoch']}.pth")
            best = self.checkpoints / f"{state['best_epoch']}.pth"
            best.stat()
        if self.writes:
            # A finished run that is continued is not finished until its new end; one that stopped within the writing
            # of an epoch may have left its best.pth and its row of history.csv.
            with interrupts_held():
                self._remove_result()
                link_atomically(best, self.best)
                write_csv(self.history_file, pd.DataFrame(self.history))
                self._write_description(description)
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

    def save_epoch(self, model: nn.Module, state: dict, row: dict, best_epoch: int, keep: int | None) -> None:
        """Start to write what an epoch leaves, and return at once. Raises what the last write met."""
        if self.writes:
            self.history.append(row)
            now = model.state_dict(), state | {"history": self.history}
            # Copies, which the next epoch does not change.
            weights, state = recursively_apply(lambda x: x.detach().to("cpu", copy=True), now)
            self.finish_writing()
            self._writing = {self._writer.submit(self._write_epoch, weights, state, best_epoch, keep)}

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

    def finish_writing(self) -> None:
        """Wait until the last epoch's files are written. Raises what their writing met."""
        for writing in self._writing:
            writing.result()

    def save_result(self, metrics: dict, ids: list[str], predictions) -> None:
        """Write the Predictions of TEST to predictions.csv, and the result of the run to metrics.json."""
        if self.writes:
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
