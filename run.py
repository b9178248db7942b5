"""Train DMD over one or more seeds, and write checkpoints, histories and result tables.

python run.py --dataset mosi
"""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.options import CommandState, RunOptions, parse_flags
from utils.cli import ArgumentParser, run_command
from utils.log import logger
from utils.ranks import is_first_rank, world_size

# Modules that load PyTorch are imported inside functions, so that -h and invalid settings respond
# immediately.
SCRIPT = "run.py" if Path.cwd() == Path(__file__).resolve().parent else __file__  # as in a command


def DMD_run(  # noqa: N802  (name and first arguments as in MMSA)
    model_name: str = "dmd",
    dataset_name: str = "mosi",
    config_file: str | Path = "",
    config: dict | None = None,
    seeds: int | Sequence[int] = (1111,),
    feature_T: str | Path = "",  # noqa: N803
    feature_A: str | Path = "",  # noqa: N803
    feature_V: str | Path = "",  # noqa: N803
    num_workers: int = 0,
    verbose_level: int = 1,
    model_save_dir: str | Path = "pt",
    res_save_dir: str | Path = "result",
    log_dir: str | Path = "log",
    device: str = "auto",
    name: str = "",
    epochs: int | None = None,
    init_from: str | Path = "",
    precision: str = "fp32",
    compile: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    deterministic: bool = False,
    track: str | Sequence[str] = (),
    figures: bool = True,
    after_epoch: Callable[[dict], None] | None = None,
) -> dict[int, dict[str, float]]:
    """Train and evaluate DMD once per seed, append to the result tables, and draw figures.

    Args:
        model_name: "dmd".
        dataset_name: mosi, mosei, mosi-glove, mosei-glove, synthetic, or a data set of the config.
        config_file: JSON config; by default config/config.json.
        config: Settings by key that override the config file (documented in config/schema.py).
        seeds: Random seeds; each one is a run.
        feature_T, feature_A, feature_V: Pickles whose features replace text, audio or vision.
        num_workers: Data loader processes.
        verbose_level: 0 logs errors, 1 also metrics, 2 also every loss term.
        model_save_dir, res_save_dir, log_dir: Folders of checkpoints, results and logs.
        device: auto, cpu, cuda or cuda:N.
        name: Prefix of the run's folders; by default `model_name`.
        epochs: Maximum number of epochs; overrides the setting `max_epochs`.
        init_from: Checkpoint whose weights initialize those that match by name and shape.
        precision: fp32, tf32 (CUDA) or bf16.
        compile: Use torch.compile for the forward pass and the losses.
        resume: Continue the runs of this name, or start them if they do not exist.
        overwrite: Replace the runs of this name.
        deterministic: Use deterministic algorithms, for bitwise reproducible results on CUDA too.
        track: Experiment trackers: tensorboard, wandb, mlflow.
        figures: Draw figures of each run when it ends.
        after_epoch: Called with every epoch's row of history.csv; an exception ends the training.

    Returns:
        The content of metrics.json by seed: the TEST metrics of the best epoch.

    Raises:
        DMDError, OSError: A problem that the caller can fix.
    """
    options = RunOptions(
        model_name=model_name,
        dataset_name=dataset_name,
        config_file=config_file,
        config=config,
        seeds=seeds,
        feature_T=feature_T,
        feature_A=feature_A,
        feature_V=feature_V,
        num_workers=num_workers,
        verbose_level=verbose_level,
        model_save_dir=model_save_dir,
        res_save_dir=res_save_dir,
        log_dir=log_dir,
        device=device,
        name=name,
        epochs=epochs,
        init_from=init_from,
        precision=precision,
        compile=compile,
        resume=resume,
        overwrite=overwrite,
        deterministic=deterministic,
        track=track,
        figures=figures,
        after_epoch=after_epoch,
    )
    return train(options)


def train(options: RunOptions) -> dict[int, dict[str, float]]:
    """Train all seeds and report them; see DMD_run."""
    settings = options.load_settings()

    from analysis.summary import report_runs
    from experiments.train import train_seeds

    trained = train_seeds(options, settings)
    if is_first_rank():
        report_runs(trained, options)
    return trained.metrics


def search(
    options: RunOptions, trials: int | None, search_file: str, storage: str, argv: Sequence[str]
) -> None:
    """Search settings, and log the command that trains a run with the best ones."""
    options.load_settings()

    from experiments.tune import tune

    best = tune(options, trials, search_file, storage)
    if best is None:
        return
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", action="store_true")
    for flag in ("--tune", "--search", "--storage"):
        parser.add_argument(flag)
    _, words = parser.parse_known_args(argv)  # the other flags
    settings = [f"{key}={json.dumps(value)}" for key, value in best.items()]
    command = ["python", SCRIPT, *words, "--set", *settings, "--name", f"{options.name}-best"]
    logger.info(f"To train a run with these settings: {shlex.join(command)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].
    """
    argv = sys.argv[1:] if argv is None else argv
    flags, options = parse_flags(argv)
    if flags.tune is not None or flags.search or flags.storage:
        search(options, flags.tune, flags.search, flags.storage, argv)
    elif flags.suite:
        from experiments.suite import run_suite

        run_suite(options, flags.suite)
    else:
        train(options)
    if world_size() > 1:
        from trainers.distributed import destroy_processes

        destroy_processes()


def resuming_command() -> str:
    """Return the last line of an interrupted command: how to continue it."""
    words = [word for word in sys.argv[1:] if word != "--resume"]
    if "--overwrite" not in words or CommandState.discarded_runs:
        words = [word for word in words if word != "--overwrite"] + ["--resume"]
    launcher = "python" if world_size() == 1 else "torchrun …"
    return f"To continue: {launcher} {shlex.join([SCRIPT, *words])}"


if __name__ == "__main__":
    sys.exit(run_command(main, resuming_command))
