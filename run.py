"""Train DMD over one or more seeds and write checkpoints, histories and result tables.

python run.py --dataset mosi
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from config import parse_overrides
from experiments.options import RunOptions, add_flags
from experiments.run_config import check_earlier_runs, run_files
from utils.cli import ArgumentParser, run_command
from utils.log import is_first_rank, logger, number_of_processes

# What loads PyTorch is imported where it is used: options, settings and earlier runs are checked, and answered, before.
SCRIPT = "run.py" if Path.cwd() == Path(__file__).resolve().parent else __file__  # as in a command


def DMD_run(  # noqa: N802  (the name and the first arguments that users of MMSA know)
    model_name: str = "dmd", dataset_name: str = "mosi", config_file: str | Path = "", **options
) -> dict[int, dict[str, float]]:
    """Train and evaluate DMD once for each seed, append to the tables, and draw; options: the fields of RunOptions.

    -> {seed: TEST metrics of its best epoch}. Raises a DMDError, or an OSError, for what the caller can fix.
    """
    options = RunOptions(model_name, dataset_name, config_file, **options)
    settings = options.settings()
    dataset = settings.dataset_name
    check_earlier_runs(run_files(options, dataset), options, options.describe(settings))
    from dataset.features import prepare_features

    features = prepare_features(settings, **options.replaced)
    from analysis.compare import report_seeds
    from analysis.figures import draw_after_training
    from analysis.published import course
    from analysis.record import RunRecord
    from analysis.tables import append_results
    from experiments.train import run_folders, train
    from utils.device import choose_device

    per_seed = train(options, features)
    if is_first_rank():
        names, runs = (options.res_save_dir, dataset, options.name), run_folders(options, dataset)
        logger.info(f"Results saved to {append_results(*names, per_seed)}.")
        if len(runs) > 1:
            report_seeds({seed: run.results for seed, run in runs.items()}, *names)
        for run in runs.values():
            if line := course(RunRecord(run.results)):
                logger.info(line)
            if options.figures:
                draw_after_training(run, choose_device(options.device), features)
    return per_seed


def read_command(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, RunOptions]:
    """-> the flags that are no options of a run, and the options"""
    # Without abbreviations: the command that resumes is made of these words.
    parser = ArgumentParser(description="Train and evaluate DMD.", allow_abbrev=False)
    add_flags(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--suite", default="", metavar="NAME", help="train the rows of table3, losses, heads or a JSON")
    what.add_argument("--tune", type=int, metavar="N", help="search settings until the study has N trials")
    parser.add_argument("--search", default="", metavar="FILE.json", help="which settings --tune varies")
    parser.add_argument("--storage", default="", metavar="URL", help="database of the study (default: an SQLite file)")
    flags = parser.parse_args(argv)
    options = {key: value for key, value in vars(flags).items() if key in RunOptions.__dataclass_fields__}
    return flags, RunOptions(**options | {"config": parse_overrides(flags.config or [])})


def main(argv: Sequence[str] | None = None) -> None:
    flags, options = read_command(argv)
    if flags.tune is not None or flags.search or flags.storage:
        from experiments.tune import tune

        best = tune(options, flags.tune, flags.search, flags.storage)
        if best is not None:
            sweep = ArgumentParser(add_help=False, allow_abbrev=False)
            sweep.add_argument("--resume", action="store_true")
            for flag in ("--tune", "--search", "--storage"):
                sweep.add_argument(flag)
            words, settings = sweep.parse_known_args(argv)[1], [f"{k}={json.dumps(v)}" for k, v in best.items()]
            command = ["python", SCRIPT, *words, "--set", *settings, "--name", f"{options.name}-best"]
            logger.info(f"To train it as an ordinary run: {shlex.join(command)}")
    elif flags.suite:
        from experiments.suite import run_suite

        run_suite(options, flags.suite)
    else:
        DMD_run(**vars(options))
    if number_of_processes() > 1:
        from trainers.distributed import leave_processes

        leave_processes()


def resuming_command() -> str:
    """The last word of a command that was interrupted: the command line that continues it, or begins it."""
    words = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume")] + ["--resume"]
    return f"To continue: {'python' if number_of_processes() == 1 else 'torchrun …'} {shlex.join([SCRIPT, *words])}"


if __name__ == "__main__":
    sys.exit(run_command(main, resuming_command))
