"""Train DMD over one or more seeds and write checkpoints, histories and result tables.

python run.py --dataset mosi
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from config import parse_overrides
from trainers.options import RunOptions, add_flags
from trainers.run_settings import check_earlier_runs, earlier_runs
from utils.cli import run_command
from utils.errors import ConfigError
from utils.log import is_first_rank, logger, number_of_processes

# What loads PyTorch is imported where it is used: options, settings and earlier runs are checked, and answered, before.
SCRIPT = os.path.relpath(__file__)


def DMD_run(  # noqa: N802  (the name and the first arguments that users of MMSA know)
    model_name: str = "dmd", dataset_name: str = "mosi", config_file: str | Path = "", **options
) -> dict[int, dict[str, float]]:
    """Train and evaluate DMD once for each seed; `options` are those of trainers.options.RunOptions.

    -> {seed: TEST metrics of its best epoch}. Raises a DMDError for what the caller can fix.
    """
    return run(RunOptions(model_name, dataset_name, config_file, **options))


def run(options: RunOptions) -> dict[int, dict[str, float]]:
    """Train, append to the tables over the seeds, and draw."""
    settings, where = options.settings(), options.res_save_dir
    dataset = settings.dataset_name
    check_earlier_runs(earlier_runs(options, dataset), options, options.describe(settings))
    from dataset.features import prepare_features

    features = prepare_features(settings, **options.replaced)
    from analysis.compare import report_seeds
    from analysis.figures import draw_after_training
    from analysis.tables import append_results
    from trainers.session import run_folders, train
    from utils.device import choose_device

    per_seed = train(options, features)
    if is_first_rank():
        table = append_results(where, dataset, options.name, per_seed)
        logger.info(f"Results saved to {table}.")
        runs = run_folders(options, dataset)
        if len(runs) > 1:
            folders = {seed: run.results for seed, run in runs.items()}
            report_seeds(folders, where, dataset, options.name)
        if options.figures:
            for run in runs.values():
                draw_after_training(run, choose_device(options.device))
    return per_seed


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        hint = " A setting is given as --set KEY=VALUE." if "unrecognized" in message else ""
        raise ConfigError(f"{message}.{hint} See python run.py -h.")


def read_command(argv: Sequence[str]) -> tuple[argparse.Namespace, RunOptions]:
    """-> the flags that are no options of a run, and the options"""
    # Without abbreviations: the command that resumes is made of these words.
    parser = Parser(description="Train and evaluate DMD.", allow_abbrev=False)
    add_flags(parser)
    add = parser.add_argument
    add("--suite", default="", metavar="NAME", help="train the rows of table3, losses, heads or a JSON")
    add("--tune", type=int, metavar="N", help="search settings until the study has N trials")
    add("--search", default="", metavar="FILE.json", help="which settings --tune varies")
    add("--storage", default="", metavar="URL", help="database of the study (default: an SQLite file)")
    flags = parser.parse_args(argv)
    options = {key: value for key, value in vars(flags).items() if key in RunOptions.__dataclass_fields__}
    return flags, RunOptions(**options | {"config": parse_overrides(flags.config or [])})


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    flags, options = read_command(argv)
    tuning = flags.tune is not None or bool(flags.search or flags.storage)
    if flags.suite and tuning:
        raise ConfigError("--suite trains the rows of a table, and --tune searches settings: give one of them.")
    if flags.suite:
        from trainers.suite import run_suite

        run_suite(options, flags.suite)
    elif tuning:
        from trainers.tune import tune

        best = tune(options, flags.tune, flags.search, flags.storage)
        if best is not None:
            swept = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
            for flag in ("--tune", "--search", "--storage", "--name"):
                swept.add_argument(flag)
            words = [word for word in swept.parse_known_args(argv)[1] if word != "--resume"]
            settings = [f"{key}={json.dumps(value)}" for key, value in best.items()]
            command = ["python", SCRIPT, *words, "--set", *settings, "--name", f"{options.name}-best"]
            logger.info(f"To train it as an ordinary run: {shlex.join(command)}")
    else:
        run(options)


def resuming_command() -> str:
    """The last word of a command that was interrupted: the command line that continues it."""
    flags, options = read_command(sys.argv[1:])
    begun = flags.suite or flags.tune or any(r.exists for r in earlier_runs(options, options.settings().dataset_name))
    words = [SCRIPT, *(word for word in sys.argv[1:] if word not in ("--overwrite", "--resume"))]
    words += ["--resume"] if begun else []
    processes = number_of_processes()
    launcher = ["torchrun", "--nproc-per-node", str(processes)] if processes > 1 else ["python"]
    return f"To continue: {shlex.join([*launcher, *words])}"


if __name__ == "__main__":
    sys.exit(run_command(main, resuming_command))
