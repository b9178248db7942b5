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
from trainers.options import PRECISIONS, TRACKERS, VERBOSE_LEVELS, RunOptions
from utils.cli import command_line, run_command, script
from utils.errors import ConfigError
from utils.log import is_first_rank, logger, number_of_processes

# What loads PyTorch is imported where it is used: options and settings are checked, and answered, before.


def DMD_run(  # noqa: N802  (the name and the first arguments that users of MMSA know)
    model_name: str = "dmd", dataset_name: str = "mosi", config_file: str | Path = "", **options
) -> dict[int, dict[str, float]]:
    """Train and evaluate DMD once for each seed; `options` are those of trainers.options.RunOptions.

    -> {seed: TEST metrics of its best epoch}. Raises a DMDError for what the caller can fix.
    """
    return run(RunOptions(model_name, dataset_name, config_file, **options))


def run(options: RunOptions) -> dict[int, dict[str, float]]:
    """Train, append to the tables over the seeds, and draw."""
    settings = options.settings()
    from analysis.compare import report_seeds
    from analysis.figures import draw_after_training
    from analysis.tables import append_results
    from trainers.session import run_folders, train
    from utils.device import choose_device

    per_seed = train(options)
    if is_first_rank():
        dataset, where = settings.dataset_name, options.res_save_dir
        table = append_results(where, dataset, options.name, per_seed, once=options.resume)
        logger.info(f"Results saved to {table}.")
        runs = run_folders(options, dataset)
        if len(runs) > 1:
            folders = {seed: run.results for seed, run in runs.items()}
            report_seeds(folders, where, dataset, options.name, once=options.resume)
        if options.figures:
            for run in runs.values():
                draw_after_training(run, choose_device(options.device))
    return per_seed


def argument_parser() -> argparse.ArgumentParser:
    """The command line of run.py; destinations are the names of RunOptions, and of what only the command line has."""
    # Without abbreviations: the command that resumes is made of these words.
    parser = argparse.ArgumentParser(description="Train and evaluate DMD.", allow_abbrev=False)
    add = parser.add_argument
    add(
        "-d",
        "--dataset",
        required=True,
        dest="dataset_name",
        help="mosi, mosei, synthetic (which needs no download), or another of the config",
    )
    add("-c", "--config", default="", dest="config_file", help="JSON config (default: config/config.json)")
    add("-s", "--seeds", nargs="+", type=int, default=[1111])
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", choices=PRECISIONS, default="fp32", help="tf32 (CUDA), bf16: faster, not exact")
    add("--compile", action="store_true", help="torch.compile forward and losses")
    add("--deterministic", action="store_true", help="the same bits every time on CUDA too")
    add("--no-figures", action="store_false", dest="figures", help="do not draw the run at its end")
    add("--resume", action="store_true", help="continue the run of this name where it stopped")
    add("--overwrite", action="store_true", help="replace the run of this name")
    add("--name", default="dmd", help="prefix of the run's folders (default: dmd)")
    add("--epochs", type=int, help="stop after so many epochs at the latest")
    add("-n", "--num-workers", type=int, default=0, help="loader processes")
    add(
        "-v", "--verbose", type=int, choices=VERBOSE_LEVELS, default=1, dest="verbose_level", help="errors, info, debug"
    )
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
    return parser  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser()
    flags = vars(parser.parse_args(argv))
    given = dict(flags)
    overrides, suite, tune_to, search, storage = (given.pop(k) for k in ("set", "suite", "tune", "search", "storage"))
    options = RunOptions(config=parse_overrides(overrides), **given)
    if suite and (tune_to is not None or search or storage):
        raise ConfigError("--suite trains the rows of a table, and --tune searches settings: give one of them.")
    options.settings()
    from utils.device import keep_freed_memory

    keep_freed_memory()
    if suite:
        from trainers.suite import run_suite

        run_suite(options, suite)
    elif tune_to is not None or search or storage:
        from trainers.tune import tune

        best = tune(options, tune_to, search, storage)
        if best is not None:
            settings = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in best.items())]
            again = flags | {"set": settings, "name": f"{options.name}-best", "resume": False}
            again |= {"tune": None, "search": "", "storage": ""}
            logger.info(f"To train it as an ordinary run: {command_line(script(__file__), parser, again)}")
    else:
        run(options)


def resuming_command(argv: Sequence[str]) -> str:
    """The command line that goes on where this one stops."""
    words = [script(__file__), *(word for word in argv if word not in ("--overwrite", "--resume")), "--resume"]
    if number_of_processes() == 1:
        return shlex.join(["python", *words])
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        return shlex.join(["torchrun", "--nproc-per-node", os.environ["WORLD_SIZE"], *words])
    return f"on each machine, with its launcher: {shlex.join(words)}"


if __name__ == "__main__":
    sys.exit(run_command(main, f"To go on: {resuming_command(sys.argv[1:])}"))
