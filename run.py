"""Train DMD over one or more seeds and write checkpoints, histories and result tables.

python run.py --dataset mosi
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from config import parse_overrides
from config.schema import SETTING_NAMES
from trainers.options import PRECISIONS, TRACKERS, VERBOSE_LEVELS, RunOptions
from trainers.run_settings import check_earlier_runs, check_to_resume, earlier_runs
from utils.cli import command_line, run_command, script
from utils.errors import ConfigError
from utils.log import is_first_rank, logger, number_of_processes

# What loads PyTorch is imported where it is used: options, settings and earlier runs are checked, and answered, before.


def DMD_run(  # noqa: N802  (the name and the first arguments that users of MMSA know)
    model_name: str = "dmd", dataset_name: str = "mosi", config_file: str | Path = "", **options
) -> dict[int, dict[str, float]]:
    """Train and evaluate DMD once for each seed; `options` are those of trainers.options.RunOptions.

    -> {seed: TEST metrics of its best epoch}. Raises a DMDError for what the caller can fix.
    """
    flags = {flag.strip("-").replace("-", "_"): a.dest for a in argument_parser()._actions for flag in a.option_strings}
    flags |= {"set": "config", "no_figures": "figures=False"} | {key: f"config={{'{key}': …}}" for key in SETTING_NAMES}
    for name in options.keys() - {f.name for f in fields(RunOptions)}:
        hint = f"it is {flags[name]} here" if name in flags else "trainers.options lists them"
        raise ConfigError(f"DMD_run has no argument '{name}'; {hint}.")
    return run(RunOptions(model_name, dataset_name, config_file, **options))


def run(options: RunOptions) -> dict[int, dict[str, float]]:
    """Train, append to the tables over the seeds, and draw."""
    dataset, where = check(options), options.res_save_dir
    from analysis.compare import report_seeds
    from analysis.figures import draw_after_training
    from analysis.tables import append_results
    from trainers.session import run_folders, train
    from utils.device import choose_device

    per_seed = train(options)
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


def check(options: RunOptions) -> str:
    """What can be told before PyTorch is loaded: raise where settings are wrong, or an earlier run is in the way.

    -> the data set, as the config spells it
    """
    settings = options.settings()
    earlier = earlier_runs(options, settings.dataset_name)
    if options.resume:
        check_to_resume(earlier)
    check_earlier_runs(earlier, options.resume, options.overwrite, options.describe(settings))
    return settings.dataset_name


def argument_parser() -> argparse.ArgumentParser:
    """The command line of run.py; destinations are the names of RunOptions, and of what only the command line has."""
    # Without abbreviations: the command that resumes is made of these words.
    parser = argparse.ArgumentParser(description="Train and evaluate DMD.", allow_abbrev=False)
    add, data_sets = parser.add_argument, "mosi, mosei, synthetic (which needs no download), or another of the config"
    add("-d", "--dataset", required=True, dest="dataset_name", help=data_sets)
    add("-c", "--config", default="", dest="config_file", help="JSON config (default: config/config.json)")
    add("-s", "--seeds", nargs="+", default=["1111"], metavar="SEED", help="one run each (default: 1111)")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override settings")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", choices=PRECISIONS, default="fp32", help="tf32 (CUDA), bf16: faster, not exact")
    add("--compile", action="store_true", help="torch.compile forward and losses")
    add("--deterministic", action="store_true", help="the same bits every time on CUDA too")
    add("--no-figures", action="store_false", dest="figures", help="do not draw the run at its end")
    add("--resume", action="store_true", help="continue the run of this name where it stopped")
    add("--overwrite", action="store_true", help="replace the run of this name")
    add("--name", default="dmd", help="prefix of the run's folders (default: dmd)")
    add("--init", default="", metavar="FILE.pth", help="start from those weights of a checkpoint that fit")
    add("--epochs", type=int, help="stop after so many epochs at the latest")
    add("-n", "--num-workers", type=int, default=0, help="loader processes")
    verbose = {"choices": VERBOSE_LEVELS, "dest": "verbose_level", "help": "errors, info, debug with loss terms"}
    add("-v", "--verbose", type=int, default=1, **verbose)
    for letter, long in (("T", "text"), ("A", "audio"), ("V", "vision")):
        add(f"-F{letter.lower()}", f"--feature-{letter}", default="", help=f"pickle with other {long} features")
    add("--model-save-dir", default="pt")
    add("--res-save-dir", default="result")
    add("--log-dir", default="log")
    add("--track", nargs="+", choices=TRACKERS, default=[], help="send every epoch's numbers there")
    add("--suite", default="", metavar="NAME", help="train the rows of table3, losses, heads or a JSON")
    add("--tune", type=int, metavar="N", help="search settings until the study has N trials")
    add("--search", default="", metavar="FILE.json", help="which settings --tune varies")
    add("--storage", default="", metavar="URL", help="database of the study (default: an SQLite file)")
    return parser


def read_command(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, dict, RunOptions]:
    """-> the parser, all flags, and of them the options of the runs"""
    parser = argument_parser()
    known, unknown = parser.parse_known_args(argv)
    for flag, following in zip(unknown, [*unknown[1:], "VALUE"], strict=False):
        name, _, value = flag.partition("=")
        key = {"lr": "learning_rate"}.get(name[2:], name[2:].replace("-", "_"))
        if flag.startswith("--") and key in SETTING_NAMES:
            raise ConfigError(f"{name} is a setting: give it as --set {key}={value or following}")
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    flags = vars(known)
    given = {key: flags[key] for key in flags.keys() - {"set", "suite", "tune", "search", "storage"}}
    words = [word for item in given.pop("seeds") for word in item.split(",") if word]
    try:
        seeds = [int(word) for word in words]
    except ValueError as error:
        raise ConfigError(f"--seeds: {' '.join(words)}: expected whole numbers.") from error
    return parser, flags, RunOptions(config=parse_overrides(flags["set"]), seeds=seeds, **given)


def main(argv: Sequence[str] | None = None) -> None:
    parser, flags, options = read_command(argv)
    suite, tune_to, search, storage = (flags[key] for key in ("suite", "tune", "search", "storage"))
    tuning = tune_to is not None or bool(search or storage)
    if suite and tuning:
        raise ConfigError("--suite trains the rows of a table, and --tune searches settings: give one of them.")
    options.settings() if suite or tuning else check(options)
    from utils.device import keep_freed_memory

    keep_freed_memory()
    if suite:
        from trainers.suite import run_suite

        run_suite(options, suite)
    elif tuning:
        from trainers.tune import tune

        best = tune(options, tune_to, search, storage)
        if best is not None:
            settings = [*flags["set"], *(f"{key}={json.dumps(value)}" for key, value in best.items())]
            again = flags | {"set": settings, "name": f"{options.name}-best", "resume": False}
            again |= {"tune": None, "search": "", "storage": ""}
            logger.info(f"To train it as an ordinary run: {command_line(script(__file__), parser, again)}")
    else:
        run(options)


def resuming_command(argv: Sequence[str]) -> str:
    """The last word of a command that was interrupted: the command line that continues it."""
    _, flags, options = read_command(argv)
    runs = earlier_runs(options, options.settings().dataset_name)
    begun = flags["suite"] or flags["tune"] or any(run.exists for run in runs)
    words = [script(__file__), *(word for word in argv if word not in ("--overwrite", "--resume"))]
    words += ["--resume"] if begun else []
    if number_of_processes() == 1:
        command = shlex.join(["python", *words])
    elif os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        command = shlex.join(["torchrun", "--nproc-per-node", os.environ["WORLD_SIZE"], *words])
    else:
        command = f"on each machine, with its launcher: {shlex.join(words)}"
    return f"To continue: {command}"


if __name__ == "__main__":
    sys.exit(run_command(main, lambda: resuming_command(sys.argv[1:])))
