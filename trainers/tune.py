"""The command that searches settings: an Optuna study, whose trials are ordinary training runs in temporary folders."""

import json
import math
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from filelock import FileLock
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from config.variations import DEFAULT_SPACE, load_search_space
from dataset.features import DATA_SETTINGS, FeatureSet, prepare_features
from trainers.options import RunOptions
from trainers.run_settings import INCONSEQUENTIAL, data_sha256
from trainers.runs import write_csv
from trainers.session import train
from utils.errors import ConfigError, NumericalError, RunError
from utils.interrupts import Interrupted, interrupts_held
from utils.log import logger, number_of_processes, start_log
from utils.metrics import LOWER_IS_BETTER

STARTUP_TRIALS, WARMUP_EPOCHS = 5, 2  # trials that are drawn at random and never pruned; epochs before any pruning
HEARTBEAT_SECONDS = 60  # a trial that gives no sign for twice as long counts as failed


def tune(options: RunOptions, trials: int | None, search_file: str = "", storage: str = "") -> dict | None:
    """Bring the study `<name>-<dataset>` to so many trials that are complete or pruned, over all its processes.

    search_file says which settings to vary, storage is the URL of the study's database; both have defaults.
    -> the searched settings of the best trial by KeyEval on valid, None where no trial is complete
    """
    alone = number_of_processes() == 1 and len(options.seeds) == 1
    if (trials or 0) < 1 or not alone or options.overwrite or options.track:
        raise ConfigError(
            "--tune: a sweep needs the number of its trials and one seed (--seeds), has its own processes instead of "
            "a launcher's, and a table of its own (no --track); it continues its study, and has no --overwrite."
        )
    args, space = options.settings(), load_search_space(search_file or DEFAULT_SPACE, options)
    features = prepare_features(args, **options.replaced)
    args.feature_dims, args.seq_lens = features.feature_dims, features.seq_lens
    name, folder = f"{options.name}-{args.dataset_name}", Path(options.res_save_dir) / "tune"
    start_log(Path(options.log_dir) / f"{name}.log", options.verbose_level)
    known = None if space.keys() & set(DATA_SETTINGS) else features  # else each trial reads its own
    objective = partial(_objective, options=options, space=space, features=known, key_eval=args.KeyEval)
    table = folder / f"{name}.csv"
    write_table = partial(_write_table, file=table, dataset=args.dataset_name, key_eval=args.KeyEval)
    try:
        for parent in (folder, Path(options.model_save_dir)):
            parent.mkdir(parents=True, exist_ok=True)
        # A signal waits while the storage is used: in the middle of a transaction it would leave the database locked.
        with interrupts_held():
            with FileLock(folder / ".lock"):  # the tables of a database are made once
                storage = storage or f"sqlite:///{folder / name}.db"
                study = _open_study(name, storage, args.KeyEval, _comparable(options, args, space))
            optuna.storages.fail_stale_trials(study)  # of processes that were killed
            try:
                # Those that run, or ended without being interrupted, count.
                while (number := sum(t.state != TrialState.FAIL for t in study.get_trials(deepcopy=False))) < trials:
                    logger.info(f"Trial {number + 1} of {trials}:")
                    study.optimize(objective, n_trials=1, callbacks=[write_table])
            finally:
                write_table(study)
            return _report(study, table)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise RunError(
            f"The study {name} cannot be stored ({reason}). Check --storage, --res-save-dir and --model-save-dir."
        ) from error


def _comparable(options: RunOptions, args, space: dict) -> dict:
    """What must be the same for the trials of a study to be compared."""
    fixed = {key: value for key, value in args.items() if key not in (*space, *INCONSEQUENTIAL)}
    fixed |= {"data": data_sha256(args, options.replaced), "precision": options.precision, "seed": options.seeds[0]}
    return fixed | {"init": str(options.init), "search": {key: choice.model_dump() for key, choice in space.items()}}


def _open_study(name: str, storage: str, key_eval: str, comparable: dict) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    # SQLite's processes wait for each other, by default 5 seconds at most.
    patient = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage(storage, patient, heartbeat_interval=HEARTBEAT_SECONDS),
        study_name=name,
        direction="minimize" if key_eval in LOWER_IS_BETTER else "maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_EPOCHS),
        load_if_exists=True,
    )
    if not study.trials:
        study.set_user_attr("comparable", comparable)
    started = study.user_attrs.get("comparable", {})
    if different := [key for key in comparable | started if comparable.get(key) != started.get(key)]:
        raise RunError(f"The study {name} was started with other {', '.join(different)}. Choose another --name.")
    return study


def _objective(
    trial: optuna.Trial, options: RunOptions, space: dict, features: FeatureSet | None, key_eval: str
) -> float:
    """Draw settings and train with them.  -> KeyEval of the best epoch on valid"""
    # A generator for each trial: else processes on one study would draw the same trials, and a study that continues
    # would draw those it began with.
    draws = int(np.random.SeedSequence([*options.seeds, trial.number]).generate_state(1)[0])
    trial.study.sampler = optuna.samplers.TPESampler(seed=draws, n_startup_trials=STARTUP_TRIALS, constant_liar=True)
    settings = {name: dimension.suggest(trial, name) for name, dimension in space.items()}
    logger.info(f"Number {trial.number}: {json.dumps(settings)}")
    work = tempfile.TemporaryDirectory(prefix="tune-", dir=options.model_save_dir)
    try:
        with work, interrupts_held(False):
            folders = {"model_save_dir": Path(work.name) / "pt", "res_save_dir": Path(work.name) / "result"}
            config = options.config | settings | {"keep_checkpoints": 1}
            report = partial(_report_epoch, trial, key_eval)
            of_trial = replace(options, config=config, after_epoch=report, resume=False, **folders)
            return train(of_trial, features)[options.seeds[0]][f"valid_{key_eval}"]
    except NumericalError as error:  # a bad choice of settings, which the sampler learns from
        raise optuna.TrialPruned from error
    except Interrupted:  # Optuna itself marks what an Exception ends; a signal is none
        trial.study.tell(trial, state=TrialState.FAIL)
        raise


def _report_epoch(trial: optuna.Trial, key_eval: str, row: dict) -> None:
    """Tell the study of an epoch, by its row of history.csv. Raises TrialPruned where others were better by then."""
    with interrupts_held():
        value = row[f"valid/{key_eval}"]
        trial.report(value, step=row["epoch"])
        trial.set_user_attr("best_epoch", row["best_epoch"])
        if math.isnan(value) or trial.should_prune():
            raise optuna.TrialPruned


def _write_table(
    study: optuna.Study, trial: optuna.Trial | None = None, *, file: Path, dataset: str, key_eval: str
) -> None:
    """Write a row for each trial, as Optuna's `trials_dataframe`, after the name of the data set."""
    with FileLock(file.with_name(".lock")):  # else an older state of the study could replace a newer one
        trials = study.trials_dataframe(("number", "state", "value", "params", "user_attrs"))
        trials.insert(0, "dataset", dataset)  # name and data set may both have hyphens: `file` does not tell them apart
        write_csv(file, trials.rename(columns={"value": f"valid_{key_eval}"}))


def _report(study: optuna.Study, table: Path) -> dict | None:
    """Log how the study stands.  -> the settings of the best trial, if any is complete"""
    states = Counter(trial.state.name.lower() for trial in study.trials)
    logger.info(f"{states.total()} trials: {dict(states)}. All of them are in {table}.")
    if not states["complete"]:
        return None
    best = study.best_trial
    logger.info(f"The best is number {best.number}: {best.value} on valid in epoch {best.user_attrs['best_epoch']}.")
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in best.params.items()}
