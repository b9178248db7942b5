"""Search settings: an Optuna study, whose trials are ordinary runs in temporary folders."""

import json
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna
import sqlalchemy
from easydict import EasyDict
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from config.variations import DEFAULT_SPACE, extreme_values, load_search_space, suggest
from dataset.features import DATA_SETTINGS, FeatureSet, prepare_features
from experiments.options import RunOptions
from experiments.run_config import NOT_COMPARED, hash_features
from experiments.train import train_seeds
from utils.errors import ConfigError, NumericalError, RunError
from utils.files import lock_folder, write_csv
from utils.interrupts import Interrupted, interrupts_allowed, interrupts_held
from utils.log import logger, start_log
from utils.metrics import LOWER_IS_BETTER
from utils.ranks import world_size

STARTUP_TRIALS = 5  # drawn at random, and never pruned
WARMUP_EPOCHS = 2  # before any pruning
HEARTBEAT_SECONDS = 60  # a trial without a heartbeat for twice as long counts as failed
SQLITE_TIMEOUT_SECONDS = 60  # how long processes on one SQLite file wait for each other


@dataclass
class Sweep:
    """A study, with the options and the data of its trials.

    Attributes:
        study: Optuna's study.
        options: The options of the command.
        key_eval: The metric of valid that is optimized.
        space: The distribution of each searched setting.
        features: The data; None if the searched settings determine which data are read.
        table: The CSV of all trials.
        dataset_name: The data set of all trials.
    """

    study: optuna.Study
    options: RunOptions
    key_eval: str
    space: dict[str, BaseDistribution]
    features: FeatureSet | None
    table: Path
    dataset_name: str


def tune(
    options: RunOptions, trials: int | None, search_file: str = "", storage: str = ""
) -> dict | None:
    """Run trials until the study `<name>-<dataset>` has enough, including those of other processes.

    Args:
        options: The options of the command.
        trials: Number of trials that the study should have.
        search_file: JSON file of the settings to search; by default config/search/default.json.
        storage: URL of the study's database; by default an SQLite file in `<res_save_dir>/tune/`.

    Returns:
        The searched settings of the best trial by KeyEval on valid; None if no trial is complete.

    Raises:
        DMDError: A problem that the user can fix.
    """
    _check_options(options, trials)
    settings = options.load_settings()
    search_file = str(search_file or DEFAULT_SPACE)
    space = load_search_space(search_file)
    for key, distribution in space.items():
        for value in extreme_values(distribution):
            options.with_overrides(search_file, {key: value})  # raises if it is not allowed
    features = prepare_features(settings, **options.feature_overrides)
    comparable = _comparable_values(options, settings, space)
    name = f"{options.name}-{settings.dataset_name}"
    folder = Path(options.res_save_dir) / "tune"
    start_log(Path(options.log_dir) / f"{name}.log", options.verbose_level)
    # Signals wait while the database is in use: interrupting a transaction would leave it locked.
    with interrupts_held(), _reporting_storage_errors(name):
        folder.mkdir(parents=True, exist_ok=True)
        Path(options.model_save_dir).mkdir(parents=True, exist_ok=True)
        with lock_folder(folder):  # the tables of a database are created once
            if not storage:
                url = sqlalchemy.URL.create("sqlite", database=str(folder / f"{name}.db"))
                storage = url.render_as_string()
            study = _open_study(name, storage, settings.KeyEval, comparable)
        sweep = Sweep(
            study=study,
            options=options,
            key_eval=settings.KeyEval,
            space=space,
            # If the searched settings determine which data are read, each trial reads its own.
            features=None if space.keys() & set(DATA_SETTINGS) else features,
            table=folder / f"{name}.csv",
            dataset_name=settings.dataset_name,
        )
        _run_trials(sweep, trials)
        return _report(sweep)


@contextmanager
def _reporting_storage_errors(name: str) -> Iterator[None]:
    """Convert an error of the study's database or folder to a RunError."""
    try:
        yield
    except _TrialError as error:
        raise error.cause from error
    except (SQLAlchemyError, StorageInternalError, ImportError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise RunError(
            f"The study {name} cannot be stored ({reason}). Check --storage, --res-save-dir and "
            "--model-save-dir."
        ) from error


class _TrialError(Exception):
    """An OSError of the training, to distinguish it from one of the study's storage."""

    def __init__(self, cause: OSError):
        super().__init__(str(cause))
        self.cause = cause


def _check_options(options: RunOptions, trials: int | None) -> None:
    if trials is None or trials < 1:
        raise ConfigError(
            "--tune: expected the number of trials, at least 1; --search and --storage need it."
        )
    if len(options.seeds) > 1:
        raise ConfigError("--tune: the trials of a study share one seed; give one with --seeds.")
    if world_size() > 1:
        raise ConfigError(
            "--tune: runs without a launcher. Start several commands on one study instead."
        )
    if options.overwrite:
        raise ConfigError(
            "--tune continues its study, and cannot --overwrite it: choose another --name."
        )
    if options.track:
        raise ConfigError("--tune writes a table of its own: leave out --track.")


def _comparable_values(
    options: RunOptions, settings: EasyDict, space: dict[str, BaseDistribution]
) -> dict:
    """The values that all processes of a study must share, so that trials are comparable."""
    values = {}
    for key, value in settings.items():
        if key not in space and key not in NOT_COMPARED:
            values[key] = value
    values["data"] = hash_features(settings, options.feature_overrides)
    values["precision"] = options.precision
    values["seed"] = options.seeds[0]
    values["init_from"] = str(options.init_from)
    values["search"] = {
        key: distribution_to_json(distribution) for key, distribution in space.items()
    }
    return values


def _open_study(name: str, storage: str, key_eval: str, comparable: dict) -> optuna.Study:
    """Open a study, or create it. Raises RunError if it was started with other settings."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    engine = (
        {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}}
        if storage.startswith("sqlite")
        else {}
    )
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage(storage, engine, heartbeat_interval=HEARTBEAT_SECONDS),
        study_name=name,
        direction="minimize" if key_eval in LOWER_IS_BETTER else "maximize",
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_EPOCHS
        ),
        load_if_exists=True,
    )
    if not study.trials:
        study.set_user_attr("comparable", comparable)
    started = study.user_attrs.get("comparable", {})
    different = []
    for key in sorted(comparable.keys() | started.keys()):
        if comparable.get(key) != started.get(key):
            different.append(key)
    if different:
        raise RunError(
            f"The study {name} was started with other {', '.join(different)}. Choose another "
            "--name."
        )
    return study


def _run_trials(sweep: Sweep, trials: int) -> None:
    """Run one trial after another until the study has enough, counting those of other processes."""

    def objective(trial: optuna.Trial) -> float:
        return _run_trial(sweep, trial)

    optuna.storages.fail_stale_trials(sweep.study)  # of processes that were killed
    try:
        count = _count_trials(sweep.study)
        while count < trials:
            logger.info(f"Trial {count + 1} of {trials}:")
            sweep.study.optimize(objective, n_trials=1)
            _write_table(sweep)
            count = _count_trials(sweep.study)
    finally:
        _write_table(sweep)


def _count_trials(study: optuna.Study) -> int:
    """Count the trials that are running, or ended without being interrupted."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state != TrialState.FAIL for trial in trials)


def _run_trial(sweep: Sweep, trial: optuna.Trial) -> float:
    """Draw settings and train with them.

    Returns:
        KeyEval of the best epoch on valid.
    """
    options = sweep.options
    seed = options.seeds[0]
    # A sampler for each trial: otherwise processes on one study would draw the same trials, and a
    # continued study would draw its first trials again.
    draws = int(np.random.SeedSequence([seed, trial.number]).generate_state(1)[0])
    sweep.study.sampler = optuna.samplers.TPESampler(
        seed=draws, n_startup_trials=STARTUP_TRIALS, constant_liar=True
    )
    overrides = {
        key: suggest(trial, key, distribution) for key, distribution in sweep.space.items()
    }
    logger.info(f"Number {trial.number}: {json.dumps(overrides)}")

    def report_epoch(row: dict) -> None:
        _report_epoch(trial, sweep.key_eval, row)

    try:
        with (
            tempfile.TemporaryDirectory(prefix="tune-", dir=options.model_save_dir) as work,
            interrupts_allowed(),
        ):
            trial_options = replace(
                options,
                config={**options.config, **overrides, "keep_checkpoints": 1},
                model_save_dir=Path(work) / "pt",
                res_save_dir=Path(work) / "result",
                after_epoch=report_epoch,
                resume=False,
            )
            trained = train_seeds(trial_options, trial_options.load_settings(), sweep.features)
            return trained.metrics[seed][f"valid_{sweep.key_eval}"]
    except NumericalError as error:  # a bad choice of settings, from which the sampler learns
        raise optuna.TrialPruned from error
    except OSError as error:
        raise _TrialError(error) from error
    except Interrupted:  # not an Exception, so Optuna would leave the trial running
        sweep.study.tell(trial, state=TrialState.FAIL)
        raise


def _report_epoch(trial: optuna.Trial, key_eval: str, row: dict) -> None:
    """Report an epoch to the study. Raises TrialPruned if other trials were better by then."""
    with interrupts_held():
        value = row[f"valid/{key_eval}"]
        trial.report(value, step=row["epoch"])
        trial.set_user_attr("best_epoch", row["best_epoch"])
        if math.isnan(value) or trial.should_prune():
            raise optuna.TrialPruned


def _write_table(sweep: Sweep) -> None:
    """Write a row for each trial, as in Optuna's `trials_dataframe`, after the data set."""
    # Locked, because otherwise an older state of the study could overwrite a newer one.
    with lock_folder(sweep.table.parent):
        trials = sweep.study.trials_dataframe(("number", "state", "value", "params", "user_attrs"))
        # Study and data set may both contain hyphens, so the file name does not separate them.
        trials.insert(0, "dataset", sweep.dataset_name)
        write_csv(sweep.table, trials.rename(columns={"value": f"valid_{sweep.key_eval}"}))


def _report(sweep: Sweep) -> dict | None:
    """Log the state of the study.

    Returns:
        The settings of the best trial; None if no trial is complete.
    """
    study = sweep.study
    states = Counter(trial.state.name.lower() for trial in study.trials)
    logger.info(f"{states.total()} trials: {dict(states)}. All of them are in {sweep.table}.")
    if not states["complete"]:
        return None
    best = study.best_trial
    epoch = best.user_attrs["best_epoch"]
    logger.info(f"The best trial is number {best.number}: {best.value} on valid in epoch {epoch}.")
    settings = {}
    for key, value in best.params.items():
        # Choices are JSON texts.
        settings[key] = json.loads(value) if isinstance(value, str) else value
    return settings
