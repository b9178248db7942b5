"""Where a run leaves its files."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from torch import nn

from trainers.checkpoint import BackgroundWriter, load_weights, read_state, save_state, snapshot
from trainers.run_settings import LIMITS, check_limits, check_same_run
from utils.errors import CheckpointError, RunError
from utils.files import link_atomically, remove_leftovers, write_atomically, write_json
from utils.interrupts import interrupts_held
from utils.reading import read_json

TENSORBOARD = "tensorboard"  # folder of a run's event files


class RunFolder:
    """The files of one seed: weights in `pt/<name>-<dataset>-<seed>/`, numbers in `result/<name>-<dataset>-<seed>/`.

    An epoch is complete once training-state.pt speaks of it, which is written last: weights, best weights and
    history come before. A run that stops anywhere resumes from the epoch which that file names.
    """

    def __init__(self, name: str, dataset: str, seed: int, model_save_dir: str | Path, res_save_dir: str | Path):
        self.name = f"{name}-{dataset}-{seed}"
        self.checkpoints = Path(model_save_dir) / self.name
        self.results = Path(res_save_dir) / self.name
        self.best = self.checkpoints / "best.pth"
        self.state_file = self.checkpoints / "training-state.pt"
        self.history: list[dict] = []
        self._writer = BackgroundWriter()

    @property
    def exists(self) -> bool:
        """Whether an earlier run of this name has left anything."""
        return any((folder / "config.json").exists() for folder in (self.checkpoints, self.results))

    def finished(self, description: dict) -> dict | None:
        """The content of metrics.json, which is the last file of a run; None where the run has not come to it, or
        other limits than its own may let it go on.

        Raises RunError where it is the result of other settings or data than those described.
        """
        metrics = _read_json(self.results / "metrics.json")
        if metrics is None:
            return None
        started = _read_json(self.results / "config.json") or {}
        check_same_run(self.name, started, description)
        if not isinstance(metrics.get("epoch"), int):
            raise CheckpointError(f"{self.results / 'metrics.json'}: not the metrics of a run. Use --overwrite.")
        limits = [[settings.get(key) for key in LIMITS] for settings in (started["settings"], description["settings"])]
        return metrics if limits[0] == limits[1] else None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Make the folders and keep other processes out of them; on leaving, wait for the write under way.

        Raises RunError if another process has them, or they cannot be written to.
        """
        with contextlib.ExitStack() as locks:
            try:
                # In one order for all processes, and once where both are one folder.
                for folder in sorted({self.checkpoints.resolve(), self.results.resolve()}):
                    folder.mkdir(parents=True, exist_ok=True)
                    locks.enter_context(FileLock(folder / ".lock", timeout=0))
                    remove_leftovers(folder)
                remove_leftovers(self.results / "figures")
            except Timeout as error:
                raise RunError(
                    f"{self.name}: another process is writing this run. Wait for it, or choose another --name."
                ) from error
            except OSError as error:
                raise RunError(
                    f"{error.filename}: cannot write ({error.strerror}). Choose other folders with --model-save-dir "
                    "and --res-save-dir."
                ) from error
            try:
                yield
            finally:
                # Whatever ends the run, its last complete epoch counts; an error on the way out hides this one's.
                with contextlib.suppress(Exception):
                    self._writer.finish()

    def discard(self) -> None:
        """Make an earlier run of this name one that is neither finished nor to be gone on with."""
        if self.exists:
            with self.open(), self._naming_the_file(), interrupts_held():
                self._remove_weights()

    def start(self, description: dict) -> None:
        """Remove what an earlier run of this name left, and write config.json to both folders."""
        with self._naming_the_file(), interrupts_held():
            self._remove_weights()
            self._remove_result()
            (self.results / "history.csv").unlink(missing_ok=True)
            shutil.rmtree(self.results / TENSORBOARD, ignore_errors=True)
            self._write_description(description)

    def _remove_weights(self) -> None:
        # An earlier, longer run would leave later epochs among those of this one. metrics.json goes first: what is
        # half removed must not look finished.
        for old in [self.results / "metrics.json", self.state_file, *self.checkpoints.glob("*.pth")]:
            old.unlink(missing_ok=True)

    def _remove_result(self) -> None:
        drawn = (self.results / "figures").glob("*.[ps][nv]g")
        for old in [*(self.results / name for name in ("metrics.json", "predictions.csv", "report.html")), *drawn]:
            old.unlink(missing_ok=True)

    def resume(self, model: nn.Module, description: dict) -> dict | None:
        """Load the weights of the last complete epoch.  -> the training state as `save_epoch` was given it, or None
        where no epoch is complete

        Raises RunError where the run was started with other settings or data, is to end before the epoch where it is,
        or lacks files; CheckpointError for damaged ones.
        """
        if (self.results / "history.csv").exists() and not (self.checkpoints / "config.json").exists():
            raise RunError(
                f"{self.checkpoints}: the checkpoints of this run are not here. Name their folder with "
                "--model-save-dir, or start over with --overwrite."
            )
        started = _read_json(self.checkpoints / "config.json") or _read_json(self.results / "config.json")
        if started is None or not self.state_file.exists():
            # A run that was stopped in its first epoch has 1.pth at most.
            later = [path.name for path in self.checkpoints.glob("*.pth") if path.stem not in ("1", "best")]
            if later or (self.results / "metrics.json").exists():
                raise RunError(
                    f"{self.state_file}: no such file, and without it the run cannot go on. Keep the run by choosing "
                    "another --name, or start over with --overwrite."
                )
            self.start(description)
            return None
        check_same_run(self.name, started, description)
        with _naming_overwrite():
            state = read_state(self.state_file)
        try:
            epoch, self.history = state["epoch"], state["history"]
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{self.state_file}: not the state of a training run. Use --overwrite.") from error
        check_limits(self.name, started["settings"], description["settings"], epoch)
        with _naming_overwrite():
            load_weights(model, self.checkpoints / f"{epoch}.pth")
        best = self.checkpoints / f"{state['best_epoch']}.pth"
        if not best.exists():
            raise CheckpointError(f"{best}: no such file, and it is the best epoch so far. Restore it.")
        with self._naming_the_file(), interrupts_held():
            self._forget_later(state, best)
            self._write_description(description)
        return state

    def _forget_later(self, state: dict, best: Path) -> None:
        # A finished run that goes on is not finished until its new end; one that stopped within the writing of an
        # epoch may have left its best.pth and its row of history.csv.
        self._remove_result()
        link_atomically(best, self.best)
        write_csv(self.results / "history.csv", pd.DataFrame(self.history))

    def _write_description(self, description: dict) -> None:
        # Beside the checkpoints too: test.py finds there what they were trained with.
        for folder in (self.results, self.checkpoints):
            write_json(folder / "config.json", description)

    def save_epoch(self, model: nn.Module, state: dict, row: dict, best_epoch: int, keep: int | None) -> None:
        """Start to write what an epoch leaves, and return at once: `<epoch>.pth`, `best.pth` if it is the best so
        far, history.csv with one more row, training-state.pt. Raises what the last write met."""
        self.history.append(row)
        weights = snapshot(model.state_dict())
        state = snapshot(state | {"history": list(self.history)})
        with self._naming_the_file():
            self._writer.submit(lambda: self._write_epoch(weights, state, best_epoch, keep))

    def _write_epoch(self, weights: dict, state: dict, best_epoch: int, keep: int | None) -> None:
        epoch, path = state["epoch"], self.checkpoints / f"{state['epoch']}.pth"
        save_state(weights, path)
        if epoch == best_epoch:
            link_atomically(path, self.best)
        write_csv(self.results / "history.csv", pd.DataFrame(state["history"]))
        save_state(state, self.state_file)
        for old in self.checkpoints.glob("*.pth") if keep is not None else ():
            if old.stem.isdecimal() and int(old.stem) <= epoch - keep and int(old.stem) != best_epoch:
                old.unlink()

    def check_writing(self) -> None:
        """Raise RunError if writing an epoch's files has failed; never waits."""
        with self._naming_the_file():
            self._writer.check()

    def finish_writing(self) -> None:
        """Wait until the last epoch's files are written. Raises RunError if that fails."""
        with self._naming_the_file():
            self._writer.finish()

    def save_predictions(self, ids: list[str], predictions) -> None:
        """Write the Predictions of TEST to predictions.csv."""
        columns = {"id": ids, "label": predictions.labels, "prediction": predictions.predicted}
        with self._naming_the_file():
            write_csv(self.results / "predictions.csv", pd.DataFrame(columns))

    def save_metrics(self, metrics: dict) -> None:
        """Write the result of the run to metrics.json."""
        with self._naming_the_file():
            write_json(self.results / "metrics.json", metrics)

    @contextlib.contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            file = getattr(error, "filename", None) or self.checkpoints
            raise RunError(
                f"{file}: cannot be written ({reason}). Make room, then go on with --resume; or choose other folders "
                "with --model-save-dir and --res-save-dir."
            ) from error


@contextlib.contextmanager
def _naming_overwrite() -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            f"The run cannot go on; start over with --overwrite, or restore the file. {error}"
        ) from error


def check_earlier_runs(runs: Iterable[RunFolder], resume: bool, overwrite: bool) -> None:
    """Raise RunError where a run is there already and the command does not say what to do with it."""
    for run in runs:
        if run.exists and not (resume or overwrite):
            raise RunError(
                f"{run.results}: a run of this name is there. Continue it with --resume, replace it with --overwrite, "
                "or keep both by another --name."
            )


class SilentRun(RunFolder):
    """The same for a rank that writes nothing: it reads what the first rank has written."""

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        yield

    def start(self, description: dict) -> None:
        pass

    def discard(self) -> None:
        pass

    def _write_description(self, description: dict) -> None:
        pass

    def _forget_later(self, state: dict, best: Path) -> None:
        pass

    def save_epoch(self, model: nn.Module, state: dict, row: dict, best_epoch: int, keep: int | None) -> None:
        pass

    def save_predictions(self, ids: list[str], predictions) -> None:
        pass

    def save_metrics(self, metrics: dict) -> None:
        pass


def _read_json(path: Path) -> dict | None:
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file ({type(error).__name__}). Use --overwrite.") from error
    if not isinstance(content, dict) or not isinstance(content.get("settings", {}), dict):
        raise CheckpointError(f"{path}: not as run.py writes it. Use --overwrite.")
    return content


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index."""
    write_atomically(path, lambda file: table.to_csv(file, index=False))
