"""A sweep: an Optuna study over settings, which several processes and machines may share.

A trial is an ordinary training run in a folder of its own, which goes when the trial ends. What stays is the study,
a table of the trials, and the command that trains the best one again.
"""

import contextlib
import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from config.search_space import Choice, Interval
from trainers.runs import write_csv
from trainers.study_storage import open_storage, shown
from utils.errors import NumericalError, RunError
from utils.interrupts import Interrupted, interrupts_held
from utils.log import logger
from utils.metrics import LOWER_IS_BETTER

DESCRIPTION = "description"  # what all trials of a study have in common, as an attribute of the study
STARTUP_TRIALS, WARMUP_EPOCHS = 5, 2  # trials that are drawn at random and never pruned; epochs before any pruning

Train = Callable[[dict, Path, Callable[[dict], None]], dict]
"""(overrides, folder for all files, after_epoch as of DMD_run) -> TEST metrics as of Trainer.fit"""


class Sweep:
    """A study and the table of its trials, `<res_save_dir>/tune/<name>.csv`.

    description: what must be the same for the trials to be comparable, in JSON types
    storage: URL of a database; "" is the file `<res_save_dir>/tune/<name>.db`

    Raises ConfigError where the storage cannot be used, RunError where it has another study of that name.
    """

    def __init__(
        self,
        name: str,
        space: dict[str, Interval | Choice],
        key_eval: str,
        seed: int,
        description: dict,
        res_save_dir: str | Path,
        storage: str = "",
    ):
        self.name, self.space, self.key_eval, self.seed = name, space, key_eval, seed
        self.folder = Path(res_save_dir) / "tune"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--res-save-dir: cannot make {self.folder} ({error.strerror}). Choose another.") from error
        self.table = self.folder / f"{name}.csv"
        self.url = storage or f"sqlite:///{self.folder / name}.db"
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        searched = {key: dimension.model_dump() for key, dimension in space.items()}
        # As it would be read back: the storage holds it as JSON.
        description = json.loads(json.dumps(description | {"search": searched, "seed": seed}))
        with self._using_storage(), FileLock(self.folder / ".lock"):  # the tables of a database are made once
            self.study = self._open_study(description)

    def run(self, trials: int, train: Train, work_folder: str | Path) -> None:
        """Train until the study has so many trials that were not interrupted, counting those of other processes.

        A trial that gets a signal, or fails, is marked as failed, and the sweep ends with what ended the trial.
        """
        with self._using_storage(), _trial_folder(Path(work_folder)) as folder:
            optuna.storages.fail_stale_trials(self.study)  # of processes that were killed
            while self._started() < trials and self._train_one(trials, train, folder):
                pass
            self.write_table()

    def best(self) -> FrozenTrial | None:
        """The trial with the best valid value, if any is complete."""
        complete = self.study.get_trials(states=[TrialState.COMPLETE])
        return self.study.best_trial if complete else None

    def settings_of(self, trial: FrozenTrial) -> dict:
        """The searched settings of a trial."""
        return {
            key: json.loads(value) if isinstance(self.space[key], Choice) else value
            for key, value in trial.params.items()
        }

    def write_table(self) -> None:
        """Write the trials that the study has at this moment."""
        with FileLock(self.folder / ".lock"):  # else an older state of the study could replace a newer one
            rows = [self._row(trial) for trial in self.study.trials if not trial.user_attrs.get("surplus")]
            write_csv(self.table, pd.DataFrame(rows))

    def running(self) -> int:
        """How many trials have begun and not ended, here or in other processes."""
        return len(self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]))

    def summary(self) -> str:
        """'20 trials: 14 complete, 6 pruned' for the log."""
        states = [t.state.name.lower() for t in self.study.trials if not t.user_attrs.get("surplus")]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return f"{len(states)} trials: {counts}"

    def _row(self, trial: FrozenTrial) -> dict:
        settings = self.settings_of(trial)
        row = {"trial": trial.number, "state": trial.state.name.lower(), f"valid_{self.key_eval}": trial.value}
        row |= {"best_epoch": trial.user_attrs.get("best_epoch"), "seed": self.seed}
        row |= {"seconds": trial.duration.total_seconds() if trial.duration else None}
        return row | {key: settings.get(key) for key in self.space}

    def _open_study(self, description: dict) -> optuna.Study:
        direction = "minimize" if self.key_eval in LOWER_IS_BETTER else "maximize"
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_EPOCHS)
        study = optuna.create_study(
            storage=open_storage(self.url),
            study_name=self.name,
            direction=direction,
            pruner=pruner,
            load_if_exists=True,
        )
        theirs = study.user_attrs.get(DESCRIPTION)
        where = f"{shown(self.url)}: the study '{self.name}'"
        if len(study.directions) > 1 or study.direction.name.lower() != direction:
            raise RunError(f"{where} does not {direction} its value, as KeyEval {self.key_eval} needs. {_OTHER_NAME}")
        if theirs is None and study.trials:
            raise RunError(f"{where} was not made by this program. {_OTHER_NAME}")
        if theirs is None:
            study.set_user_attr(DESCRIPTION, description)
        else:
            _check_same(where, theirs, description)
        return study

    def _started(self, before: float = math.inf) -> int:
        """How many trials with a lower number than `before` run, or ended without being interrupted."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(trial.state != TrialState.FAIL and trial.number < before for trial in trials)

    def _train_one(self, trials: int, train: Train, folder: Path) -> bool:
        """Train the next trial.  -> whether there was one left"""
        current: list[optuna.Trial] = []

        def objective(trial: optuna.Trial) -> float:
            current.append(trial)
            if self._started(before=trial.number) >= trials:  # another process took the last one at the same moment
                trial.set_user_attr("surplus", True)
                raise _Surplus
            return self._try(trial, train, folder)

        try:
            self.study.optimize(objective, n_trials=1)
        except _Surplus:
            return False
        except Interrupted:
            # Optuna itself marks what an Exception ends; a signal is none.
            for trial in current:
                if self.study.trials[trial.number].state == TrialState.RUNNING:
                    self.study.tell(trial, state=TrialState.FAIL)
            raise
        finally:
            self.write_table()
        last = self.study.trials[current[0].number]
        logger.info(f"Trial {last.number} {last.state.name.lower()}: valid {self.key_eval} {last.value}")
        return True

    def _try(self, trial: optuna.Trial, train: Train, folder: Path) -> float:
        """The objective: the valid value of the best epoch."""
        # A generator for each trial: else processes on one study would draw the same trials, and a sweep that goes on
        # would draw those it began with.
        seed = int(np.random.SeedSequence([self.seed, trial.number]).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True)
        settings = {key: dimension.suggest(trial, key) for key, dimension in self.space.items()}
        logger.info(f"Trial {trial.number}: {json.dumps(settings)}")

        def after_epoch(row: dict) -> None:
            with interrupts_held():
                trial.report(row[f"valid/{self.key_eval}"], step=row["epoch"])
                if trial.should_prune():
                    trial.set_user_attr("best_epoch", row["best_epoch"])
                    raise optuna.TrialPruned(f"hopeless after epoch {row['epoch']}")

        try:
            with interrupts_held(False):
                metrics = train(settings, folder / "trial", after_epoch)
        except NumericalError as error:
            raise optuna.TrialPruned(str(error)) from error  # a bad choice of settings, which the sampler learns from
        finally:
            shutil.rmtree(folder / "trial", ignore_errors=True)
        trial.set_user_attr("best_epoch", metrics["epoch"])
        value = metrics[f"valid_{self.key_eval}"]
        if math.isnan(value):
            raise RunError(f"{self.key_eval} is not a number on valid, so that it cannot guide a sweep. Set KeyEval.")
        return value

    @contextlib.contextmanager
    def _using_storage(self) -> Iterator[None]:
        """Inside, an error of the storage is a RunError, that Optuna calls a feature experimental is no news, and a
        signal waits: one in the middle of a transaction would leave the database locked."""
        try:
            with warnings.catch_warnings(), interrupts_held():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise RunError(
                f"{shown(self.url)}: the storage of the study fails ({reason}). The same command goes on."
            ) from error


_OTHER_NAME = "Choose another --name or --storage."


class _Surplus(Exception):
    """The study has its number of trials without this one."""


def _check_same(where: str, theirs: dict, ours: dict) -> None:
    """Raise RunError where trials of these two descriptions could not be compared."""
    flat = [d | {"settings": None} | d.get("settings", {}) for d in (theirs, ours)]
    for key in sorted(flat[0].keys() | flat[1].keys()):
        values = [d.get(key) for d in flat]
        if values[0] != values[1]:
            was, is_now = (str(value) if len(str(value)) <= 80 else "another" for value in values)
            raise RunError(f"{where} was started with {key} {was}, not {is_now}. {_OTHER_NAME}")


@contextlib.contextmanager
def _trial_folder(parent: Path) -> Iterator[Path]:
    """A new folder for the files of trials, which is removed with all that is in it; so are those of processes that
    were killed."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / ".tune.lock"):
            for old in parent.glob(".tune-*"):
                with contextlib.suppress(Timeout), FileLock(old / ".lock", timeout=0):
                    shutil.rmtree(old, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=".tune-", dir=parent))
            lock = FileLock(folder / ".lock")
            lock.acquire()
    except OSError as error:
        raise RunError(f"--model-save-dir: cannot write to {parent} ({error.strerror}). Choose another.") from error
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
