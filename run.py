"""Train DMD over one or more seeds and write checkpoints, histories and result tables.

python run.py --dataset mosi
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from config import load_config, parse_overrides
from dataset.features import FeatureSet
from dataset.loaders import make_loaders
from trainers.losses import Objective
from trainers.setup import build_model, data_sha256, prepare_features
from trainers.trainer import Trainer, count_parameters
from utils.cli import run_command
from utils.errors import ConfigError, RunError
from utils.figures import draw_after_training
from utils.results import RunFolder, append_results
from utils.runtime import (
    PRECISIONS,
    choose_device,
    describe_device,
    keep_freed_memory,
    logger,
    set_seed,
    start_log,
    use_deterministic_algorithms,
    versions,
)

DEFAULT_SEEDS = (1111,)


def DMD_run(  # noqa: N802  (the name and the arguments that users of MMSA know)
    model_name: str = "dmd",
    dataset_name: str = "mosi",
    config_file: str | Path = "",
    config: dict | None = None,
    seeds: Sequence[int] | None = None,
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
    precision       "fp32", or "bf16": autocast of the model; compile: torch.compile of forward and losses
    deterministic   the same bits every time on CUDA too
    figures         draw each run at its end (utils/figures.py); what cannot be drawn is a warning

    -> {seed: TEST metrics of its best epoch}. Raises a DMDError for what the caller can mend.
    """
    overrides = dict(config or {})
    if epochs is not None:
        overrides["max_epochs"] = epochs
    args = load_config(model_name, dataset_name, config_file, overrides)
    seeds, name = tuple(seeds or DEFAULT_SEEDS), name or args.model_name
    _check_arguments(seeds, name, num_workers, precision)
    runs = {seed: RunFolder(name, args.dataset_name, seed, model_save_dir, res_save_dir) for seed in seeds}
    _check_earlier_runs(runs.values(), resume, overwrite)
    chosen = choose_device(_device_of(gpu_ids, device))
    use_deterministic_algorithms(deterministic)
    features = prepare_features(args, feature_T, feature_A, feature_V)

    start_log(Path(log_dir) / f"{name}-{args.dataset_name}.log", verbose_level)
    logger.info(f"Seeds {list(seeds)} on {describe_device(chosen)}, features {args.featurePath}.")
    for split, part in features.splits.items():
        logger.info(f"{split} samples: {(len(part),)}")
    replaced = {"feature_T": str(feature_T), "feature_A": str(feature_A), "feature_V": str(feature_V)}
    description = {"settings": dict(args), "features": replaced, "seeds": list(seeds)}
    description |= {"device": describe_device(chosen), "versions": versions(), "data": data_sha256(args, replaced)}
    description |= {"precision": precision, "compile": compile, "deterministic": deterministic}
    per_seed, news = {}, False
    for number, (seed, run) in enumerate(runs.items(), start=1):
        metrics = run.finished() if resume else None
        if metrics is None:
            metrics = _train_seed(args, features, chosen, number, num_workers, run, description, resume, figures)
            news = True
        else:
            logger.info(f"Seed {seed}: {run.name} is finished, with its best epoch {metrics['epoch']}.")
        per_seed[seed] = metrics
    table = append_results(res_save_dir, args.dataset_name, name, per_seed, once=resume)
    logger.info(f"Results saved to {table}." if news else f"Nothing was left to do; the results are in {table}.")
    return per_seed


def _check_earlier_runs(runs: Iterable[RunFolder], resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ConfigError("--resume continues an earlier run and --overwrite replaces it: give one of them.")
    for run in runs:
        if run.exists and not (resume or overwrite):
            raise RunError(
                f"{run.results}: a run of this name is there. Continue it with --resume, replace it with --overwrite, "
                "or keep both by another --name."
            )


def _check_arguments(seeds: Sequence[int], name: str, num_workers: int, precision: str) -> None:
    wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
    if wrong:
        raise ConfigError(f"--seeds: {wrong[0]} is not between 0 and {2**32 - 1}.")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: {list(seeds)} names a seed twice; its second run would replace the first.")
    if Path(name).name != name:
        raise ConfigError(f"--name: '{name}' must be a plain name, not a path.")
    if num_workers < 0:
        raise ConfigError(f"--num-workers: {num_workers} is negative.")
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision: '{precision}' is not one of {', '.join(PRECISIONS)}.")


def _device_of(gpu_ids: Sequence[int] | None, device: str) -> str:
    if not gpu_ids:
        return device
    return "cpu" if gpu_ids[0] < 0 else f"cuda:{gpu_ids[0]}"


def _train_seed(
    args, features: FeatureSet, device, number: int, num_workers: int, run: RunFolder, description: dict, resume: bool,
    figures: bool,
) -> dict:  # fmt: skip
    """Train with one of the seeds, the `number`th; nothing is written before model and data are known to fit."""
    seed = description["seeds"][number - 1]
    set_seed(seed)
    model, objective = build_model(args, features), Objective(args)
    loaders = make_loaders(features, args.batch_size, args.eval_batch_size, seed, num_workers, device)
    precision, compiled = description["precision"], description["compile"]
    trainer = Trainer(args, model, objective, loaders, device, number, precision, compiled)
    with run.open():
        description = {"seed": seed} | description
        state = run.resume(trainer.model, description) if resume else run.start(description)
        _check_space(args, run, model, objective, epochs_done=state["epoch"] if state else 0)
        logger.info(f"Seed {seed}: {count_parameters(model, objective)} parameters, checkpoints in {run.checkpoints}.")
        if state:
            logger.info(f"Seed {seed}: resumed behind epoch {state['epoch']}.")
        metrics = {"seed": seed} | trainer.fit(run, state)
        run.save_metrics(metrics)
        if figures:
            draw_after_training(run.results, trainer.model, loaders["test"], device, precision)
    return metrics


def _check_space(args, run: RunFolder, model, objective, epochs_done: int) -> None:
    """Raise RunError where there is no room for the least that the run can leave."""
    weights = sum(x.nbytes for x in model.state_dict().values())
    state = 2 * 4 * count_parameters(model, objective)  # Adam's two averages
    epochs = max(1, min(args.early_stop + 1, args.max_epochs or args.early_stop + 1) - epochs_done)
    run.check_space(weights, state, epochs, None if args.keep_checkpoints == "all" else args.keep_checkpoints)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of run.py."""
    parser = argparse.ArgumentParser(description="Train and evaluate DMD.")
    parser.add_argument("-d", "--dataset", required=True, help="mosi, mosei, or synthetic (which needs no download)")
    parser.add_argument("-c", "--config", default="", help="JSON config (default: config/config.json)")
    parser.add_argument("-s", "--seeds", nargs="+", type=int, default=list(DEFAULT_SEEDS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16: faster, and not exact")
    parser.add_argument("--compile", action="store_true", help="torch.compile forward and losses")
    parser.add_argument("--deterministic", action="store_true", help="the same bits every time on CUDA too")
    parser.add_argument("--no-figures", action="store_true", help="do not draw the run at its end")
    parser.add_argument("--resume", action="store_true", help="go on with the run of this name where it stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace the run of this name")
    parser.add_argument("--name", default="", help="prefix of the run's folders (default: dmd)")
    parser.add_argument("--epochs", type=int, help="stop after so many epochs at the latest")
    parser.add_argument("-n", "--num-workers", type=int, default=0, help="loader processes")
    parser.add_argument("-v", "--verbose", type=int, choices=(0, 1, 2), default=1, help="0 errors, 1 info, 2 debug")
    for short, long in (("T", "text"), ("A", "audio"), ("V", "vision")):
        letter = short.lower()
        parser.add_argument(f"-F{letter}", f"--feature-{short}", default="", help=f"pickle with other {long} features")
    parser.add_argument("--model-save-dir", default="pt")
    parser.add_argument("--res-save-dir", default="result")
    parser.add_argument("--log-dir", default="log")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    keep_freed_memory()
    DMD_run(
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
        figures=not options.no_figures,
    )


def resuming_command(argv: Sequence[str]) -> str:
    """The command line that goes on where this one stops."""
    return shlex.join(
        ["python", "run.py", *(word for word in argv if word not in ("--overwrite", "--resume")), "--resume"]
    )


if __name__ == "__main__":
    sys.exit(run_command(main, f"To go on: {resuming_command(sys.argv[1:])}"))
