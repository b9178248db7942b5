"""The files of a run: their paths, and how they are written and read."""

import contextlib
import glob
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
from accelerate.utils import recursively_apply
from filelock import Timeout
from torch import Tensor, nn

from experiments.options import CommandState, RunOptions
from experiments.run_config import (
    FILE_NAME,
    LIMITS,
    NEUTRAL,
    NOT_COMPARED,
    Difference,
    describe_differences,
    read_run_config,
)
from trainers.checkpoint import load_weights, read_state, save_state
from trainers.evaluate import Predictions
from utils.errors import CheckpointError, RunError
from utils.files import link_atomically, lock_folder, remove_leftovers, write_csv, write_json
from utils.reading import printable, read_metrics

TENSORBOARD = "tensorboard"  # folder of a run's event files
EVENT_FILES = ("events.out.tfevents.*", "hparams.yml")
FIGURES = ("training", "edges", "features", "predictions", "heads", "robustness")
ROBUSTNESS = "robustness.csv"  # of analysis.robustness
MAX_SUGGESTED_NAME = 40  # characters


class RunFolder:
    """The files of one run, that is, of one seed.

    `result/<name>-<dataset>-<seed>/` holds run.json, history.csv, metrics.json, predictions.csv,
    figures/ and report.html; `pt/<name>-<dataset>-<seed>/` holds run.json, `<epoch>.pth`, best.pth
    and training-state.pt.

    An epoch is complete once training-state.pt names it, which is written last: weights, best
    weights and history come before. A run that stops at any moment resumes from the epoch that
    training-state.pt names.

    Args:
        results: The run's folder of results.
        checkpoints: The run's folder of checkpoints; by default the one in `pt/`, next to
            `result/`.
        writable: False for a process that must not write, such as the second rank of several.
    """

    def __init__(
        self, results: str | Path, checkpoints: str | Path | None = None, writable: bool = True
    ):
        self.results = Path(results)
        self.name = self.results.resolve().name
        if checkpoints is None:
            checkpoints = self.results.resolve().parent.parent / "pt" / self.name
        self.checkpoints = Path(checkpoints)
        self.writable = writable
        self.best_file = self.checkpoints / "best.pth"
        self.state_file = self.checkpoints / "training-state.pt"
        self.history_file = self.results / "history.csv"
        self.metrics_file = self.results / "metrics.json"
        self.predictions_file = self.results / "predictions.csv"
        self.rows: list[dict] = []  # of history.csv, while training
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._pending_write: Future | None = None  # of the last epoch's files

    # What exists

    def existing_run_config(self) -> dict | None:
        """Read the run.json of an earlier run; None if none exists."""
        return read_run_config(self.checkpoints) or read_run_config(self.results)

    def checkpoint_file(self, epoch: int) -> Path:
        """The checkpoint of an epoch; `checkpoint_files` recognizes it by its name."""
        return self.checkpoints / f"{epoch}.pth"

    def checkpoint_files(self) -> dict[int, Path]:
        """The existing checkpoints by their epoch."""
        files = {}
        for path in self.checkpoints.glob("*.pth"):
            if re.fullmatch(r"[1-9]\d*", path.stem):
                files[int(path.stem)] = path
        return files

    def has_epoch(self) -> bool:
        """Whether an epoch is complete, from which the run can be resumed."""
        return self.state_file.exists()

    def foreign_files(self) -> list[Path]:
        """List files that were not created by a run, and that a run might overwrite or delete.

        These are all files of a folder without run.json, and checkpoints of later epochs than
        history.csv has.
        """
        found = set()
        for folder in (self.checkpoints, self.results):
            if read_run_config(folder) is None:
                found.update(folder.glob("[!.]*"))
        epochs = 0
        if self.history_file.exists():
            epochs = self.history_file.read_bytes().count(b"\n") - 1
        elif self.state_file.exists():
            return sorted(found)  # the history was deleted; it will be written again
        for epoch, path in self.checkpoint_files().items():
            if epoch > epochs + 1:  # a checkpoint is written before its row
                found.add(path)
        return sorted(found)

    # Reading a run, as analysis does

    def check_exists(self) -> None:
        """Check that the result folder belongs to a run.

        Raises:
            RunError: run.json is missing, or metrics.json is damaged.
        """
        if self.run_config and self.metrics_file.exists():
            self._read(self.metrics_file, read_metrics)

    @cached_property
    def run_config(self) -> dict:
        """The content of run.json in the result folder. Raises RunError if it is missing."""
        content = read_run_config(self.results)
        if content is None:
            raise RunError(
                f"{self.results / FILE_NAME}: missing, or not from this program. Name the result "
                "folder of a run, such as result/dmd-mosi-1111."
            )
        return content

    @cached_property
    def metrics(self) -> dict | None:
        """The content of metrics.json; None if the run has not finished."""
        if not self.metrics_file.exists():
            return None
        return self._read(self.metrics_file, read_metrics)

    @cached_property
    def history(self) -> pd.DataFrame:
        """history.csv, which has a row for each epoch."""
        return self._read(self.history_file, pd.read_csv)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """predictions.csv: id, label and prediction (float32) of each utterance of test."""
        return self._read(self.predictions_file, _read_predictions)

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights are in best.pth."""
        return int(self.history["best_epoch"].iloc[-1])

    def _read(self, path: Path, read: Callable[[Path], object]):
        try:
            return read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = printable(getattr(error, "strerror", None) or error)
            raise RunError(
                f"{path}: cannot be read ({reason}). Name the result folder of a run, or --resume "
                "the run."
            ) from error

    # Writing a run

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Create and lock the folders; on exit, wait for the pending write.

        Raises:
            RunError: Another process writes this run, or the folders cannot be written.
        """
        with contextlib.ExitStack() as stack:
            # All processes lock in the same order, and only once if both folders are the same.
            for folder in sorted({self.checkpoints.resolve(), self.results.resolve()}):
                if self.writable:
                    self._lock(folder, stack)
            stack.callback(self._wait_for_write)  # before the locks are released
            yield

    def _lock(self, folder: Path, stack: contextlib.ExitStack) -> None:
        with self._reporting_write_errors():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(lock_folder(folder, timeout=0))
            except Timeout as error:
                raise RunError(
                    f"{self.name}: another process is writing this run. Wait for it, or choose "
                    "another --name."
                ) from error
            remove_leftovers(folder)

    def _wait_for_write(self) -> None:
        if self._pending_write is not None:
            wait([self._pending_write])

    @contextlib.contextmanager
    def _reporting_write_errors(self) -> Iterator[None]:
        """Convert an OSError of writing the run's files to a RunError."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{error.filename or self.checkpoints}: cannot be written ({error.strerror}). Free "
                "disk space, then continue with --resume; or choose other folders with "
                "--model-save-dir and --res-save-dir."
            ) from error

    def start(self, run_config: dict) -> None:
        """Delete the files of an earlier run of this name, and write run.json to both folders."""
        if self.writable:
            with self._reporting_write_errors():
                self._delete_run()
                self._write_run_config(run_config)

    def discard(self) -> None:
        """Delete an earlier run of this name, so that it is neither finished nor can be resumed."""
        if self.writable and self.existing_run_config():
            with self.open(), self._reporting_write_errors():
                self._delete_run()

    def _delete_run(self) -> None:
        self._delete_results()  # first, so that a half-deleted run never looks finished
        for file in (
            self.state_file,
            self.best_file,
            *self.checkpoint_files().values(),
            self.history_file,
        ):
            file.unlink(missing_ok=True)
        delete_events(self.results / TENSORBOARD)

    def _delete_results(self) -> None:
        names = ["metrics.json", "predictions.csv", "report.html", ROBUSTNESS]
        for figure in FIGURES:
            names += [f"figures/{figure}.png", f"figures/{figure}.svg"]
        for name in names:
            (self.results / name).unlink(missing_ok=True)

    def _write_run_config(self, run_config: dict) -> None:
        # Also next to the checkpoints, where test.py finds the settings.
        for folder in (self.checkpoints, self.results):
            write_json(folder / FILE_NAME, run_config)

    def resume(self, model: nn.Module, run_config: dict) -> dict | None:
        """Load the weights of the last complete epoch into the model.

        Args:
            model: The model of this run.
            run_config: The new content of run.json.

        Returns:
            The training state that `save_epoch` saved; None if no epoch is complete, and the run
            starts from the beginning.

        Raises:
            CheckpointError: A file of the run is missing or damaged.
        """
        if self._has_no_epoch():
            self.start(run_config)
            return None
        with self.resuming_from(self.state_file):
            state = read_state(self.state_file)
            self.rows = state.pop("history")
            load_weights(model, self.checkpoint_file(state["epoch"]))
            best = self.checkpoint_file(state["best_epoch"])
            best.stat()
        if self.writable:
            # A resumed run is unfinished until its new end. If it was stopped while writing an
            # epoch, best.pth and history.csv may already contain that epoch.
            with self._reporting_write_errors():
                self._delete_results()
                link_atomically(best, self.best_file)
                write_csv(self.history_file, pd.DataFrame(self.rows))
                self._write_run_config(run_config)
        return state

    def _has_no_epoch(self) -> bool:
        """Whether the run is new, or was stopped in its first epoch: nothing can be lost."""
        if self.has_epoch() or self.metrics_file.exists():
            return False
        if self.checkpoint_files().keys() - {1}:  # the first epoch leaves 1.pth at most
            return False
        checkpoints_are_missing = read_run_config(self.checkpoints) is None
        return not (checkpoints_are_missing and read_run_config(self.results))

    @contextlib.contextmanager
    def resuming_from(self, file: Path) -> Iterator[None]:
        """Convert errors of a missing, damaged or foreign file of the run to CheckpointError."""
        try:
            yield
        except (CheckpointError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.name} cannot be resumed from {file} ({type(error).__name__}: {error}). "
                "Restore the file, give its folder with --model-save-dir, or start again with "
                "--overwrite."
            ) from error

    def save_epoch(
        self, row: dict, weights: dict[str, Tensor], state: dict, keep: int | str
    ) -> None:
        """Save an epoch asynchronously; re-raises the error of the previous write.

        Args:
            row: The epoch's row of history.csv.
            weights: The state_dict of the model.
            state: The state_dict of the trainer, with `epoch` and `best_epoch`.
            keep: Number of recent checkpoints to keep, besides the best one; or "all".
        """
        if not self.writable:
            return
        self.rows.append(row)
        # Copies, because the next epoch changes the originals.
        weights = recursively_apply(_copy_to_cpu, dict(weights))
        state = recursively_apply(_copy_to_cpu, {**state, "history": list(self.rows)})
        self.finish_writing()
        self._pending_write = self._writer.submit(self._write_epoch, weights, state, keep)

    def _write_epoch(self, weights: dict, state: dict, keep: int | str) -> None:
        epoch, best_epoch = state["epoch"], state["best_epoch"]
        path = self.checkpoint_file(epoch)
        save_state(weights, path)
        if epoch == best_epoch:
            link_atomically(path, self.best_file)
        write_csv(self.history_file, pd.DataFrame(state["history"]))
        save_state(state, self.state_file)
        if keep != "all":
            for old_epoch, old_path in self.checkpoint_files().items():
                if old_epoch <= epoch - keep and old_epoch != best_epoch:
                    old_path.unlink()

    def finish_writing(self) -> None:
        """Wait until the last epoch is written; raises the error of its write."""
        if self._pending_write is not None:
            with self._reporting_write_errors():
                self._pending_write.result()

    def load_best(self, model: nn.Module, best_epoch: int) -> None:
        """Load the weights of the best epoch into the model."""
        # <epoch>.pth: on a network file system, another process may still see an older best.pth.
        load_weights(model, self.checkpoint_file(best_epoch))

    def save_result(self, metrics: dict, ids: list[str], predictions: Predictions) -> None:
        """Write predictions.csv and metrics.json, which ends the run.

        Args:
            metrics: The content of metrics.json.
            ids: Ids of the test utterances, in file order.
            predictions: Their predictions at the best epoch.
        """
        if not self.writable:
            return
        columns = {"id": ids, "label": predictions.labels, "prediction": predictions.predicted}
        with self._reporting_write_errors():
            write_csv(self.predictions_file, pd.DataFrame(columns))
            write_json(self.metrics_file, metrics)

    def finished(self, run_config: dict) -> dict | None:
        """Check whether a run to be resumed has already finished.

        Args:
            run_config: The content of run.json under the current command.

        Returns:
            The content of metrics.json; None if the run has not finished, or may now train longer.

        Raises:
            RunError: Settings or data differ from those that the run was started with.
        """
        earlier = self.existing_run_config()
        if earlier is None or self._has_no_epoch():
            return None
        for difference in describe_differences(earlier, run_config, NOT_COMPARED):
            if not difference.is_longer():
                raise RunError(
                    f"{self.name}: --resume with {difference.key} {difference.second!r}, but the "
                    f"run was started with {difference.first!r}. Use the same settings and data "
                    f"({' and '.join(LIMITS)} may be larger), or choose another --name."
                )
        if not self.metrics_file.exists():
            return None
        for key in LIMITS:
            if earlier["settings"].get(key) != run_config["settings"][key]:
                return None
        with self.resuming_from(self.metrics_file):
            metrics = read_metrics(self.metrics_file)
            metrics["epoch"] = int(metrics["epoch"])
            return metrics


def run_folders(
    options: RunOptions, dataset_name: str, writable: bool = True
) -> dict[int, RunFolder]:
    """The folder of each seed's run."""
    folders = {}
    for seed in options.seeds:
        name = f"{options.name}-{dataset_name}-{seed}"
        results, checkpoints = (
            Path(options.res_save_dir) / name,
            Path(options.model_save_dir) / name,
        )
        folders[seed] = RunFolder(results, checkpoints, writable)
    return folders


def check_existing_runs(
    folders: Iterable[RunFolder], options: RunOptions, run_config: dict | None = None
) -> None:
    """Check that a command may write to the folders of its runs.

    Args:
        folders: The folders of all runs of the command.
        options: Its options.
        run_config: The new content of run.json so far, to report which settings differ.

    Raises:
        RunError: A folder contains files that were not created by a run; or a run exists, and
            neither --resume nor --overwrite is given.
    """
    for folder in folders:
        foreign = folder.foreign_files()
        if foreign:
            names = ", ".join(path.name for path in foreign[:5])
            raise RunError(
                f"{foreign[0].parent}: contains files that no run created ({names}), and a run "
                "might replace them. Move them to another folder, or choose another --name."
            )
        existing = folder.existing_run_config()
        if existing and not (options.resume or options.overwrite):
            raise RunError(_existing_run_message(folder, options.name, existing, run_config))


def _existing_run_message(
    folder: RunFolder, prefix: str, existing: dict, run_config: dict | None
) -> str:
    """The error message about an existing run, with the ways to continue."""
    differences = describe_differences(existing, run_config) if run_config else []
    settings = "; ".join(f"{d.key}: {d.first} -> {d.second}" for d in differences[:5])
    with_settings = f" with other settings ({settings})" if settings else ""
    may_resume = all(d.key in NEUTRAL or d.is_longer() for d in differences)
    or_resume = " continue it with --resume," if may_resume else ""
    return (
        f"{folder.results}: a run of this name{with_settings} already exists. Replace it with "
        f"--overwrite,{or_resume} or keep both with --name {_suggest_name(prefix, differences)}."
    )


def _suggest_name(prefix: str, differences: list[Difference]) -> str:
    """A name for a run with other settings; short, as it becomes part of the names of folders."""
    if not differences:
        return "…"
    words = [prefix]
    for difference in differences:
        value = difference.second
        if isinstance(value, str):
            value = Path(value).stem
        words.append(f"{difference.key.replace('learning_rate', 'lr')}{value}")
    name = re.sub(r"[^\w.+-]+", "_", "-".join(words))
    if len(name) <= MAX_SUGGESTED_NAME:
        return name
    beginning = name[:31].rpartition("-")[0] or prefix
    return f"{beginning}-{crc32(name.encode()):08x}"


def discard_runs(folders: Iterable[RunFolder]) -> None:
    """Discard the earlier runs of a command that replaces them, all at once.

    Otherwise the command, if interrupted and resumed, would mistake them for its own results.
    """
    for folder in folders:
        folder.discard()
    CommandState.discarded_runs = True


def find_similar_run(folder: RunFolder, prefix: str) -> str:
    """Find a run that was probably meant by a misspelled --name.

    Args:
        folder: The folder of a run that does not exist.
        prefix: The --name.

    Returns:
        The name of a run of the same data set and seed whose --name differs in one or two letters;
        "" for none.
    """
    suffix = folder.name.removeprefix(prefix)
    for other in sorted(folder.results.parent.glob(f"*{glob.escape(suffix)}")):
        distance = edit_distance(other.name.removesuffix(suffix), prefix)
        if 0 < distance <= 2 and read_run_config(other):
            return other.name
    return ""


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: letters to insert, delete or replace to get from one to the other."""
    previous = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        current = [i]
        for j, other in enumerate(second, start=1):
            replaced = previous[j - 1] + (letter != other)
            current.append(min(replaced, previous[j] + 1, current[j - 1] + 1))
        previous = current
    return previous[-1]


def delete_events(folder: Path) -> None:
    """Delete the event files of TensorBoard in a folder and below."""
    for pattern in EVENT_FILES:
        for file in folder.rglob(pattern):
            file.unlink()


def _read_predictions(path: Path) -> pd.DataFrame:
    types = {"id": str, "label": np.float32, "prediction": np.float32}
    return pd.read_csv(path, dtype=types, keep_default_na=False)


def _copy_to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
