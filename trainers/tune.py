"""The command that searches settings: checks everything first, then runs a Sweep of ordinary training runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from config.search_space import load_search_space
from trainers.options import RunOptions
from trainers.run_settings import INCONSEQUENTIAL
from trainers.session import train
from trainers.setup import data_sha256, prepare_features
from trainers.study_storage import HEARTBEAT_SECONDS
from trainers.sweep import Sweep
from utils.device import choose_device
from utils.errors import ConfigError
from utils.log import logger, number_of_processes, start_log

DEFAULT_SPACE = Path(__file__).parent.parent / "config" / "search" / "default.json"


def tune(options: RunOptions, trials: int | None, search_file: str = "", storage: str = "") -> dict | None:
    """Bring the study `<name>-<dataset>` to so many trials.

    options      of all trials
    search_file  which settings to vary (default: config/search/default.json)
    storage      URL of the study's database (default: an SQLite file beside the table of trials)

    -> the searched settings of the best trial by KeyEval on valid, None where no trial is complete
    Raises a DMDError for what the caller can fix.
    """
    _check_flags(options, trials)
    [seed], args = options.seeds, options.settings()
    space = load_search_space(
        search_file or DEFAULT_SPACE, options.config, lambda config: replace(options, config=config).settings()
    )
    choose_device(options.device)
    prepare_features(args, **options.replaced)
    settings = {key: value for key, value in args.items() if key not in (*space, *INCONSEQUENTIAL)}
    data = data_sha256(args, options.replaced)
    description = {"settings": settings, "data": data, "precision": options.precision}
    study = f"{options.name}-{args.dataset_name}"
    start_log(Path(options.log_dir) / f"{study}.log", options.verbose_level)
    sweep = Sweep(study, space, args.KeyEval, seed, description, options.res_save_dir, storage)

    def train_one(settings: dict, folder: Path, after_epoch: Callable[[dict], None]) -> dict:
        config = options.config | settings | {"keep_checkpoints": 1}
        folders = {"model_save_dir": folder / "pt", "res_save_dir": folder / "result"}
        return train(replace(options, config=config, after_epoch=after_epoch, resume=False, **folders))[seed]

    sweep.run(trials, train_one, options.model_save_dir)
    logger.info(f"{sweep.summary()}. All of them are in {sweep.table}.")
    if sweep.running():
        logger.warning(
            f"{sweep.running()} of them still run in other processes, or their processes were killed. In the latter "
            f"case give the same command again in {2 * HEARTBEAT_SECONDS} seconds: it trains others in their place."
        )
    best = sweep.best()
    if best is None:
        logger.warning("No trial is complete, so that there is no best one. Narrow the search space, or add trials.")
        return None
    epoch = best.user_attrs["best_epoch"]
    logger.info(f"The best is trial {best.number}, with valid {args.KeyEval} {best.value} in epoch {epoch}.")
    return sweep.settings_of(best)


def _check_flags(options: RunOptions, trials: int | None) -> None:
    if trials is None:
        raise ConfigError("--search and --storage belong to a sweep: give the number of its trials with --tune.")
    if number_of_processes() > 1:
        raise ConfigError(
            "--tune: several ranks cannot train one trial. Start as many plain processes on one --storage instead."
        )
    if trials < 1:
        raise ConfigError(f"--tune: {trials} trials; expected at least 1.")
    if len(options.seeds) != 1:
        raise ConfigError(f"--seeds: a sweep has one seed, not {len(options.seeds)}. Train the best with several.")
    if "?" in options.name:
        raise ConfigError(f"--name: '{options.name}': the URL of a study cannot have a question mark. Leave it out.")
    if options.overwrite:
        raise ConfigError("--overwrite: a study is gone on with, not replaced. Choose another --name.")
    if options.track:
        raise ConfigError("--track: a sweep has its own table. Track the best run, by the command that ends the sweep.")
