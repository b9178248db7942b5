"""Train DMD over one or more seeds and write checkpoints, histories and result tables.

python run.py --dataset mosi
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from config import load_config, parse_overrides
from trainers.ranks import find_ranks
from trainers.session import Session
from trainers.setup import data_sha256, prepare_features
from trainers.suite import run_suite
from utils.cli import command_line, run_command, script
from utils.compare import report_seeds
from utils.errors import ConfigError
from utils.results import RunFolder, SilentRun, check_earlier_runs, check_name
from utils.runtime import (
    PRECISIONS,
    choose_device,
    describe_device,
    keep_freed_memory,
    logger,
    number_of_processes,
    start_log,
    use_deterministic_algorithms,
    versions,
)
from utils.tables import append_results
from utils.tracking import TRACKERS, check_trackers

DEFAULT_SEEDS = (1111,)
VERBOSE_LEVELS = (0, 1, 2)


def DMD_run(  # noqa: N802  (the name and the arguments that users of MMSA know)
    model_name: str = "dmd",
    dataset_name: str = "mosi",
    config_file: str | Path = "",
    config: dict | None = None,
    seeds: Sequence[int] | int | None = None,
    feature_T: str = "",  # noqa: N803
    feature_A: str = "",  # noqa: N803
    feature_V: str = "",  # noqa: N803
    gpu_ids: Sequence[int] | None = None,
    num_workers: int = 0,
    verbose_level: int = 1,
    model_save_dir: str | Path = "pt",
    res_save_dir: str | Path = "result",
    log_dir: str | Path = "log",
    device: str = "auto",
    name: str = "",
    epochs: int | None = None,
    precision: str = "fp32",
    compile: bool = False,  # noqa: A002
    resume: bool = False,
    overwrite: bool = False,
    deterministic: bool = False,
    track: Sequence[str] = (),
    after_epoch: Callable[[dict], None] = lambda row: None,
    figures: bool = True,
) -> dict[int, dict[str, float]]:
    """Train and evaluate DMD once for each seed.

    config_file     JSON in the layout of config/config.json, which is the default
    config          overrides by key, stronger than the file
    feature_T/A/V   another pickle whose text, audio or vision features replace the data set's
    gpu_ids         [n] is device "cuda:n", [-1] is "cpu"; None or [] leaves the choice to `device`
    num_workers     loader processes;  verbose_level  0 errors, 1 info, 2 debug
    name            prefix of the run's folders `<name>-<dataset>-<seed>`
    resume          go on with an earlier run of that name from its last complete epoch; overwrite: replace it
    epochs          stop after so many, whatever early stopping says
    precision       "fp32"; "tf32" on CUDA; "bf16": autocast of the model
    compile         torch.compile of forward and losses
    deterministic   the same bits every time on CUDA too
    track           trackers that are sent every epoch's numbers: "tensorboard", "wandb", "mlflow"
    after_epoch     called with every epoch's row of history.csv; what it raises ends the training
    figures         draw each run at its end (utils/figures.py); what cannot be drawn is a warning

    -> {seed: TEST metrics of its best epoch}. Raises a DMDError for what the caller can mend.
    """
    overrides = dict(config or {})
    if epochs is not None:
        overrides["max_epochs"] = epochs
    args = load_config(model_name, dataset_name, config_file, overrides)
    seeds = (seeds,) if isinstance(seeds, int) else tuple(seeds or DEFAULT_SEEDS)
    name = name or args.model_name
    _check_arguments(seeds, name, num_workers, precision, verbose_level)
    check_trackers(track)
    device = _device_of(gpu_ids, device)
    ranks = find_ranks(device)
    if compile:
        torch.compiler.reset()  # PyTorch compiles one function for a few settings only, then runs it as it is
    kind = RunFolder if ranks.rank == 0 else SilentRun
    runs = {seed: kind(name, args.dataset_name, seed, model_save_dir, res_save_dir) for seed in seeds}
    check_earlier_runs(runs.values(), resume, overwrite)
    ranks.wait()  # from here on the first rank writes
    chosen = choose_device(device) if ranks.size == 1 else ranks.device
    use_deterministic_algorithms(deterministic)
    features = prepare_features(args, feature_T, feature_A, feature_V)
    if ranks.size > min(args.batch_size, len(features.splits["train"])):
        raise ConfigError(f"{ranks.size} processes cannot share a batch of {args.batch_size} utterances; start fewer.")

    start_log(Path(log_dir) / f"{name}-{args.dataset_name}.log", verbose_level)
    logger.info(f"Seeds {list(seeds)} on {describe_device(chosen)}, features {args.featurePath}.")
    for split, part in features.splits.items():
        logger.info(f"{split} samples: {(len(part),)}")
    modalities = {"feature_T": str(feature_T), "feature_A": str(feature_A), "feature_V": str(feature_V)}
    description = {"settings": dict(args), "features": modalities, "seeds": list(seeds)}
    description |= {"device": describe_device(chosen), "versions": versions(), "data": data_sha256(args, modalities)}
    description |= {"precision": precision, "compile": compile, "deterministic": deterministic, "ranks": ranks.size}
    replaced = tuple(runs.values()) if overwrite else ()
    session = Session(
        args, features, chosen, ranks, description, num_workers, resume, overwrite, track, after_epoch, figures,
        replaced,
    )  # fmt: skip
    per_seed = {seed: session.train(seed, number, run) for number, (seed, run) in enumerate(runs.items(), start=1)}
    if ranks.rank == 0:
        table = append_results(res_save_dir, args.dataset_name, name, per_seed, once=resume)
        logger.info(f"Results saved to {table}.")
        if len(runs) > 1:
            folders = {seed: run.results for seed, run in runs.items()}
            report_seeds(folders, res_save_dir, args.dataset_name, name, once=resume)
    return per_seed


def _check_arguments(seeds: Sequence[int], name: str, num_workers: int, precision: str, verbose_level: int) -> None:
    wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
    if wrong:
        raise ConfigError(f"--seeds: {wrong[0]} is not between 0 and {2**32 - 1}.")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: {list(seeds)} names a seed twice; its second run would replace the first.")
    check_name(name)
    if num_workers < 0:
        raise ConfigError(f"--num-workers: {num_workers} is negative.")
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision: '{precision}' is not one of {', '.join(PRECISIONS)}.")
    if verbose_level not in VERBOSE_LEVELS:
        raise ConfigError(f"--verbose: {verbose_level} is not one of {', '.join(map(str, VERBOSE_LEVELS))}.")


def _device_of(gpu_ids: Sequence[int] | None, device: str) -> str:
    if not gpu_ids:
        return device
    if len(gpu_ids) > 1:
        raise ConfigError(f"gpu_ids: {list(gpu_ids)} are several GPUs; start a process for each: torchrun run.py …")
    return "cpu" if gpu_ids[0] < 0 else f"cuda:{gpu_ids[0]}"


def argument_parser() -> argparse.ArgumentParser:
    """The command line of run.py."""
    # Without abbreviations: the command that resumes is made of these words.
    parser = argparse.ArgumentParser(description="Train and evaluate DMD.", allow_abbrev=False)
    parser.add_argument(
        "-d",
        "--dataset",
        required=True,
        help="mosi, mosei, synthetic (which needs no download), or another of the config",
    )
    parser.add_argument("-c", "--config", default="", help="JSON config (default: config/config.json)")
    parser.add_argument("-s", "--seeds", nargs="+", type=int, default=list(DEFAULT_SEEDS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="tf32 (CUDA), bf16: faster, not exact")
    parser.add_argument("--compile", action="store_true", help="torch.compile forward and losses")
    parser.add_argument("--deterministic", action="store_true", help="the same bits every time on CUDA too")
    parser.add_argument("--no-figures", action="store_true", help="do not draw the run at its end")
    parser.add_argument("--resume", action="store_true", help="go on with the run of this name where it stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace the run of this name")
    parser.add_argument("--name", default="", help="prefix of the run's folders (default: dmd)")
    parser.add_argument("--epochs", type=int, help="stop after so many epochs at the latest")
    parser.add_argument("-n", "--num-workers", type=int, default=0, help="loader processes")
    parser.add_argument("-v", "--verbose", type=int, choices=VERBOSE_LEVELS, default=1, help="errors, info, debug")
    for short, long in (("T", "text"), ("A", "audio"), ("V", "vision")):
        letter = short.lower()
        parser.add_argument(f"-F{letter}", f"--feature-{short}", default="", help=f"pickle with other {long} features")
    parser.add_argument("--model-save-dir", default="pt")
    parser.add_argument("--res-save-dir", default="result")
    parser.add_argument("--log-dir", default="log")
    parser.add_argument("--track", nargs="+", choices=TRACKERS, default=[], help="send every epoch's numbers there")
    parser.add_argument("--suite", default="", metavar="NAME", help="train the rows of table3, losses, heads or a JSON")
    parser.add_argument("--tune", type=int, metavar="N", help="search settings until the study has N trials")
    parser.add_argument("--search", default="", metavar="FILE.json", help="which settings --tune varies")
    parser.add_argument("--storage", default="", metavar="URL", help="database of the study (default: an SQLite file)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser()
    options = parser.parse_args(argv)
    keep_freed_memory()
    arguments = dict(
        dataset_name=options.dataset,
        config_file=options.config,
        config=parse_overrides(options.set),
        seeds=options.seeds,
        feature_T=options.feature_T,
        feature_A=options.feature_A,
        feature_V=options.feature_V,
        num_workers=options.num_workers,
        verbose_level=options.verbose,
        model_save_dir=options.model_save_dir,
        res_save_dir=options.res_save_dir,
        log_dir=options.log_dir,
        device=options.device,
        name=options.name,
        epochs=options.epochs,
        precision=options.precision,
        compile=options.compile,
        resume=options.resume,
        overwrite=options.overwrite,
        deterministic=options.deterministic,
        track=options.track,
        figures=not options.no_figures,
    )
    if options.tune is None and not (options.search or options.storage or options.suite):
        DMD_run(**arguments)
        return
    _check_arguments(options.seeds, options.name or "dmd", options.num_workers, options.precision, options.verbose)
    if options.suite:
        if options.tune is not None or options.search or options.storage:
            raise ConfigError("--suite trains the rows of a table, and --tune searches settings: give one of them.")
        run_suite(DMD_run, arguments, options.suite)
        return
    from trainers.tuning import tune  # and Optuna, which a single run has no use for

    best = tune(DMD_run, arguments, options.tune, options.search, options.storage)
    if best is not None:
        settings = [*options.set, *(f"{key}={json.dumps(value)}" for key, value in best.items())]
        own = {"set": settings, "name": f"{options.name or 'dmd'}-best", "resume": False}
        own |= {"tune": None, "search": "", "storage": ""}
        logger.info(f"To train it as an ordinary run: {command_line(script(__file__), parser, vars(options) | own)}")


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
