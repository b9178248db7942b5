"""The training of all seeds of a command."""

import os
from pathlib import Path

import torch

from dataset.features import FeatureSet, prepare_features
from dataset.loaders import make_loaders
from dataset.tokens import check_tokens
from trainers.distributed import rank, size, start_process
from trainers.losses import Objective
from trainers.options import RunOptions
from trainers.run_settings import check_earlier_runs, data_sha256
from trainers.runs import RunFolder
from trainers.setup import build_model, warm_start
from trainers.tracking import tracked
from trainers.trainer import Trainer
from utils.device import describe_device, keep_freed_memory, versions
from utils.log import is_first_rank, logger, start_log
from utils.seed import set_seed


def run_folders(options: RunOptions, dataset: str, writes: bool = True) -> dict[int, RunFolder]:
    """The run of each seed."""
    folders = (options.model_save_dir, options.res_save_dir)
    return {seed: RunFolder(options.name, dataset, seed, *folders, writes=writes) for seed in options.seeds}


def train(options: RunOptions, features: FeatureSet | None = None) -> dict[int, dict[str, float]]:
    """Train and score once for each seed.  -> {seed: TEST metrics of its best epoch, with seed and epoch}

    features: what prepare_features reads, if that is done
    Nothing is written before settings, data and model are known to fit.
    """
    args = options.settings()
    keep_freed_memory()
    device = start_process(options.device)
    if options.compile:
        torch.compiler.reset()  # PyTorch compiles one function for a few settings only, then runs it as it is
    runs = run_folders(options, args.dataset_name, writes=is_first_rank())
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, before its first use
    torch.use_deterministic_algorithms(options.deterministic)
    features = features or prepare_features(args, **options.replaced)
    args.feature_dims, args.seq_lens = features.feature_dims, features.seq_lens

    start_log(Path(options.log_dir) / f"{options.name}-{args.dataset_name}.log", options.verbose_level)
    logger.info(f"Seeds {list(options.seeds)} on {describe_device(device)}, features {args.featurePath}.")
    for split, part in features.splits.items():
        logger.info(f"{split} samples: {(len(part),)}")
    if is_first_rank():
        warning = check_tokens(features, args)
        if warning:
            logger.warning(warning)
    description = options.describe(args) | {"data": data_sha256(args, options.replaced), "versions": versions()}
    description |= {"device": describe_device(device), "ranks": size(), "provenance": features.provenance}

    results = {}
    for number, (seed, run) in enumerate(runs.items(), start=1):
        described = {"seed": seed} | description
        if options.resume and (finished := run.finished(described)):
            results[seed] = finished
            logger.info(f"Seed {seed}: {run.name} is finished, with its best epoch {finished['epoch']}.")
            continue
        trainer = make_trainer(options, args, features, device, seed, number)
        if options.overwrite and number == 1:
            # All at once: a command that is interrupted and resumed must not take them for its own results.
            for earlier in runs.values():
                earlier.discard()
        results[seed] = train_seed(trainer, run, described, options, features.splits["test"].ids)
        del trainer  # its memory is for the next one
    return results


def make_trainer(
    options: RunOptions, args, features: FeatureSet, device: torch.device, seed: int, number: int
) -> Trainer:
    """A new model, its objective, and the loaders of one seed, the command's `number`th."""
    set_seed(seed)
    model, objective = build_model(args, features), Objective(args)
    if options.init:
        warm_start(model, options.init)
    if rank():  # the same weights in all processes, then draws of its own
        set_seed((seed + rank()) % 2**32)
    loaders = make_loaders(features, args.batch_size, args.eval_batch_size, seed, options.num_workers, device)
    return Trainer(args, model, objective, loaders, device, number, options.precision, options.compile)


def train_seed(trainer: Trainer, run: RunFolder, description: dict, options: RunOptions, test_ids: list[str]) -> dict:
    """Train with one seed, from the start or from where it has stopped.  -> seed, TEST metrics of the best epoch"""
    seed = description["seed"]
    with run.open():
        if run.writes:  # another process may have finished it since the command began
            check_earlier_runs([run], options, description)
        state = run.resume(trainer.model, description) if options.resume else run.start(description)
        mebibytes = sum(tensor.nbytes for tensor in trainer.model.state_dict().values()) / 2**20
        logger.info(
            f"Seed {seed}: {sum(p.numel() for p in trainer.parameters)} parameters, checkpoints in {run.checkpoints}: "
            f"{mebibytes:.0f} MiB for each epoch, of which keep_checkpoints={trainer.args.keep_checkpoints} stay."
        )
        if state:
            with run.continuing_from(run.state_file):
                trainer.load_state(state)
            logger.info(f"Seed {seed}: resumed after epoch {state['epoch']}.")
        with tracked(options.track if run.writes else (), run, {"seed": seed} | description["settings"]) as send:
            callbacks = [send] if options.after_epoch is None else [send, options.after_epoch]
            metrics, predictions = trainer.fit(run, state, callbacks)
        result = {"seed": seed} | metrics
        run.save_result(result, test_ids, predictions)
    return result
