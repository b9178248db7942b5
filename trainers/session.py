"""The training of all seeds of a command."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from dataset.loaders import make_loaders
from trainers.distributed import Ranks, find_ranks
from trainers.losses import Objective
from trainers.options import RunOptions
from trainers.runs import RunFolder, SilentRun, check_earlier_runs
from trainers.setup import build_model, data_sha256, prepare_features
from trainers.tracking import check_installed, tracked
from trainers.trainer import Trainer, count_parameters
from utils.device import choose_device, describe_device, use_deterministic_algorithms, versions
from utils.errors import ConfigError
from utils.log import logger, start_log
from utils.seed import set_seed


def run_folders(options: RunOptions, dataset: str, writes: bool = True) -> dict[int, RunFolder]:
    """The run of each seed."""
    kind, folders = RunFolder if writes else SilentRun, (options.model_save_dir, options.res_save_dir)
    return {seed: kind(options.name, dataset, seed, *folders) for seed in options.seeds}


def train(options: RunOptions) -> dict[int, dict[str, float]]:
    """Train and score once for each seed.  -> {seed: TEST metrics of its best epoch, with seed and epoch}

    Nothing is written before settings, data and model are known to fit. Raises a DMDError for what the caller can fix.
    """
    args = options.settings()
    check_installed(options.track)
    ranks = find_ranks(options.device)
    device = choose_device(options.device) if ranks.size == 1 else ranks.device
    if options.compile:
        torch.compiler.reset()  # PyTorch compiles one function for a few settings only, then runs it as it is
    runs = run_folders(options, args.dataset_name, writes=ranks.rank == 0)
    check_earlier_runs(runs.values(), options.resume, options.overwrite)
    ranks.wait()  # from here on the first rank writes
    use_deterministic_algorithms(options.deterministic)
    features = prepare_features(args, **options.replaced)
    if ranks.size > min(args.batch_size, len(features.splits["train"])):
        raise ConfigError(f"{ranks.size} processes cannot share a batch of {args.batch_size} utterances; start fewer.")

    start_log(Path(options.log_dir) / f"{options.name}-{args.dataset_name}.log", options.verbose_level)
    logger.info(f"Seeds {list(options.seeds)} on {describe_device(device)}, features {args.featurePath}.")
    for split, part in features.splits.items():
        logger.info(f"{split} samples: {(len(part),)}")
    description = {"settings": dict(args), "features": options.replaced, "seeds": list(options.seeds)}
    description |= {"device": describe_device(device), "versions": versions()}
    description |= {"data": data_sha256(args, options.replaced), "precision": options.precision}
    description |= {"compile": options.compile, "deterministic": options.deterministic, "ranks": ranks.size}

    def loaders(seed: int) -> dict[str, DataLoader]:
        sizes = (args.batch_size, args.eval_batch_size)
        return make_loaders(
            features, *sizes, seed, options.num_workers, device, rank=ranks.rank, ranks=ranks.size
        )  # fmt: skip

    def trainer_of(seed: int, number: int) -> Trainer:
        set_seed(seed)
        model, objective = build_model(args, features), Objective(args)
        if ranks.rank:  # the same weights on all ranks, then draws of its own
            set_seed((seed + ranks.rank) % 2**32)
        how = (options.precision, options.compile, ranks)
        return Trainer(args, model, objective, loaders(seed), device, number, *how)

    results = {}
    for number, (seed, run) in enumerate(runs.items(), start=1):
        described = {"seed": seed} | description
        results[seed] = finished = run.finished(described) if options.resume else None
        if finished is not None:
            logger.info(f"Seed {seed}: {run.name} is finished, with its best epoch {finished['epoch']}.")
            continue
        trainer = trainer_of(seed, number)
        if options.overwrite and number == 1:
            # All at once: a command that is interrupted and resumed must not take what they have left for its own.
            for earlier in runs.values():
                earlier.discard()
        callbacks = [options.after_epoch] if options.after_epoch else []
        ids = features.splits["test"].ids
        results[seed] = train_seed(trainer, run, described, options, ranks, ids, callbacks)
    return results


def train_seed(
    trainer: Trainer,
    run: RunFolder,
    description: dict,
    options: RunOptions,
    ranks: Ranks,
    test_ids: Sequence[str],
    after_epoch: Sequence[Callable[[dict], None]],
) -> dict:
    """Train with one seed, from the start or from where it has stopped.  -> seed, TEST metrics of the best epoch"""
    seed = description["seed"]
    with run.open():
        if ranks.rank == 0:  # another process may have finished it since the command began
            check_earlier_runs([run], options.resume, options.overwrite)
        state = run.resume(trainer.model, description) if options.resume else run.start(description)
        parameters = count_parameters(trainer.model, trainer.objective)
        logger.info(f"Seed {seed}: {parameters} parameters, checkpoints in {run.checkpoints}.")
        if state:
            logger.info(f"Seed {seed}: resumed after epoch {state['epoch']}.")
        trackers = options.track if ranks.rank == 0 else ()
        with tracked(trackers, run, {"seed": seed} | description["settings"]) as send:
            metrics, predictions = trainer.fit(run, state, [send, *after_epoch])
        run.save_predictions(test_ids, predictions)
        run.save_metrics({"seed": seed} | metrics)
    return {"seed": seed} | metrics
