"""Train one seed, or all seeds of a command."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from easydict import EasyDict

from dataset.features import FeatureSet, prepare_features
from dataset.loaders import make_loaders
from dataset.tokens import check_tokens
from experiments.options import RunOptions
from experiments.restore import build_model, load_initial_weights
from experiments.run_config import describe_features, hash_features, make_run_config
from experiments.run_folder import (
    RunFolder,
    check_existing_runs,
    discard_runs,
    find_similar_run,
    run_folders,
)
from experiments.tracking import Trackers
from trainers.distributed import barrier, from_first_rank, init_processes
from trainers.losses import Objective
from trainers.trainer import EpochResult, Trainer
from utils.device import describe_device, keep_freed_memory, versions
from utils.log import logger, start_log
from utils.ranks import is_first_rank, rank, world_size
from utils.seed import set_seed


@dataclass
class TrainedSeeds:
    """The results of `train_seeds`.

    Attributes:
        settings: The hyper-parameters of all seeds.
        features: The data that they were trained on.
        folders: The folder of each seed's run.
        metrics: The content of each seed's metrics.json: TEST metrics of its best epoch, with seed
            and epoch.
    """

    settings: EasyDict
    features: FeatureSet
    folders: dict[int, RunFolder]
    metrics: dict[int, dict]


def train_seeds(
    options: RunOptions, settings: EasyDict, features: FeatureSet | None = None
) -> TrainedSeeds:
    """Train and score a model once for each seed.

    Settings, data and model are checked before anything is written.

    Args:
        options: The options of the command.
        settings: The hyper-parameters, as `options.load_settings` returns them.
        features: The data, if they have been read.

    Raises:
        DMDError: A problem that the user can fix.
    """
    folders = run_folders(options, settings.dataset_name, writable=is_first_rank())
    run_config = make_run_config(options, settings)
    if is_first_rank():  # another rank might see what the first one has begun to write
        check_existing_runs(folders.values(), options, run_config)
    if features is None:
        features = prepare_features(settings, **options.feature_overrides)
    device = prepare_process(options)
    log_file = Path(options.log_dir) / f"{options.name}-{settings.dataset_name}.log"
    start_log(log_file, options.verbose_level)
    _log_data(options, settings, features, device)
    run_config.update(_describe_environment(options, settings, features, device))
    if options.resume:
        _log_missing_run(options, folders)

    metrics = {}
    for number, (seed, folder) in enumerate(folders.items(), start=1):
        seed_config = {"seed": seed, **run_config}
        finished = folder.finished(seed_config) if options.resume else None
        if finished:
            best = finished["epoch"]
            logger.info(f"Seed {seed}: {folder.name} is finished, with its best epoch {best}.")
            metrics[seed] = finished
            continue
        resumed = options.resume and folder.has_epoch()
        trainer = make_trainer(options, settings, features, device, seed, number, resumed)
        if options.overwrite and number == 1:
            discard_runs(folders.values())
        test_ids = features.splits["test"].ids
        metrics[seed] = train_seed(trainer, folder, seed_config, options, test_ids)
        del trainer  # its memory is needed by the next one
    return TrainedSeeds(settings, features, folders, metrics)


def _describe_environment(
    options: RunOptions, settings: EasyDict, features: FeatureSet, device: torch.device
) -> dict:
    """The part of run.json that requires data and device."""
    hashes = from_first_rank(lambda: hash_features(settings, options.feature_overrides))
    return {
        **describe_features(features),
        "data": hashes,
        "versions": versions(),
        "device": describe_device(device),
        "world_size": world_size(),
    }


def prepare_process(options: RunOptions) -> torch.device:
    """Join the processes of a launcher, and set the global options of PyTorch.

    Returns:
        The device of this process.
    """
    keep_freed_memory()
    device = init_processes(options.device)
    if options.compile:
        # PyTorch compiles a function for a few settings only, then runs it uncompiled.
        torch.compiler.reset()
    if options.deterministic:
        # cuBLAS needs this before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(options.deterministic)
    return device


def _log_data(
    options: RunOptions, settings: EasyDict, features: FeatureSet, device: torch.device
) -> None:
    """Log seeds, device and sizes, and a warning if the tokens are for another text encoder."""
    logger.info(
        f"Seeds {list(options.seeds)} on {describe_device(device)}, features {features.path}."
    )
    for name, split in features.splits.items():
        logger.info(f"{name} samples: {(len(split),)}")
    if is_first_rank():
        warning = check_tokens(features, settings)
        if warning:
            logger.warning(warning)


def _log_missing_run(options: RunOptions, folders: dict[int, RunFolder]) -> None:
    """Log that --resume starts a new run, and which existing run may have been meant."""
    for folder in folders.values():
        if folder.existing_run_config():
            return
    first = folders[options.seeds[0]]
    similar = find_similar_run(first, options.name)
    hint = f" A run {similar} exists: to resume that one, correct --name." if similar else ""
    logger.info(f"--resume: no run {first.name} exists, so it starts now.{hint}")


def make_trainer(
    options: RunOptions,
    settings: EasyDict,
    features: FeatureSet,
    device: torch.device,
    seed: int,
    seed_number: int = 1,
    resumed: bool = False,
) -> Trainer:
    """Make a new model, its objective, its loaders and their trainer.

    Args:
        options: The options of the command.
        settings: The hyper-parameters.
        features: The data.
        device: Device to train on.
        seed: Seed of all random numbers.
        seed_number: Number of the seed among those of the command.
        resumed: Whether the weights of a run will be loaded; then initial weights are not.
    """
    set_seed(seed)
    model = build_model(settings, features)
    objective = Objective(settings)
    if options.init_from and not resumed:
        load_initial_weights(model, options.init_from)
    if rank() > 0:  # the same weights in all processes, then random numbers of its own
        set_seed((seed + rank()) % 2**32)
    loaders = make_loaders(
        features, settings.batch_size, settings.eval_batch_size, seed, options.num_workers, device
    )
    return Trainer(
        settings, model, objective, loaders, device, seed_number, options.precision, options.compile
    )


def train_seed(
    trainer: Trainer, folder: RunFolder, run_config: dict, options: RunOptions, test_ids: list[str]
) -> dict[str, float]:
    """Train with one seed, or resume its training, and score the best epoch.

    Args:
        trainer: A new trainer.
        folder: The files of the run; every epoch is saved.
        run_config: The content of its run.json.
        options: The options of the command.
        test_ids: Ids of the test utterances.

    Returns:
        The content of metrics.json: `seed`, `epoch`, `valid_<KeyEval>`, and the TEST metrics of the
        best epoch.
    """
    seed = run_config["seed"]
    keep = trainer.args.keep_checkpoints
    with folder.open():
        if folder.writable:  # another process may have finished it since the command began
            check_existing_runs([folder], options, run_config)
        _start_or_resume(trainer, folder, run_config, options.resume)
        with Trackers(options.track, folder, {"seed": seed, **trainer.args}) as trackers:

            def save_epoch(result: EpochResult) -> None:
                row = result.to_row()
                folder.save_epoch(row, trainer.model.state_dict(), trainer.state_dict(), keep)
                trackers.log(row)
                if options.after_epoch is not None:
                    options.after_epoch(row)

            trainer.fit(on_epoch_end=save_epoch)
        folder.finish_writing()
        barrier()  # the other processes read the files of the first one
        folder.load_best(trainer.model, trainer.best_epoch)
        predictions = trainer.evaluate("test")
        metrics = {"seed": seed, "epoch": trainer.best_epoch}
        metrics[f"valid_{trainer.args.KeyEval}"] = trainer.best_value
        metrics.update(predictions.metrics())
        folder.save_result(metrics, test_ids, predictions)
    return metrics


def _start_or_resume(trainer: Trainer, folder: RunFolder, run_config: dict, resume: bool) -> None:
    """Start a run, or load the state of its last complete epoch."""
    seed = run_config["seed"]
    existing = folder.existing_run_config() or {}
    code_before = existing.get("versions", {}).get("code")
    state = None
    if resume:
        state = folder.resume(trainer.model, run_config)
    else:
        folder.start(run_config)
    _log_size(trainer, folder, seed)
    if state is not None:
        with folder.resuming_from(folder.state_file):
            trainer.load_state_dict(state)
        logger.info(f"Seed {seed}: resumed after epoch {trainer.epoch}.")
        code = run_config["versions"]["code"]
        if code_before != code:
            logger.warning(
                f"The code has changed since the run was started ({code_before} -> {code}): not "
                "all of its epochs are trained by the same code."
            )


def _log_size(trainer: Trainer, folder: RunFolder, seed: int) -> None:
    parameters = sum(parameter.numel() for parameter in trainer.all_parameters)
    mebibytes = sum(tensor.nbytes for tensor in trainer.model.state_dict().values()) / 2**20
    logger.info(
        f"Seed {seed}: {parameters} parameters, checkpoints in {folder.checkpoints}: "
        f"{mebibytes:.0f} MiB for each epoch, of which "
        f"keep_checkpoints={trainer.args.keep_checkpoints} are kept."
    )
