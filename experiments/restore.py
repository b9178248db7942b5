"""Build and load models from settings, data and checkpoints."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from easydict import EasyDict
from torch.utils.data import DataLoader

from config import config_from_resolved, load_config
from dataset.features import FIELDS, FeatureSet, Split, prepare_features
from dataset.loaders import make_loaders
from experiments.run_config import describe_differences, hash_features, read_run_config
from models.dmd import DMD, infer_sizes
from models.text_encoder import most_tokens
from trainers.checkpoint import load_weights, read_checkpoint
from utils.errors import CheckpointError, ConfigError, DataError
from utils.log import logger
from utils.seed import set_seed


@dataclass
class CheckpointSettings:
    """How a checkpoint was trained.

    Attributes:
        settings: The hyper-parameters.
        feature_overrides: Feature files that replaced a modality, by role, "" for none.
        run_config: The run.json next to the checkpoint; {} if none exists.
    """

    settings: EasyDict
    feature_overrides: dict[str, str]
    run_config: dict

    @property
    def precision(self) -> str:
        """The precision of the training."""
        return self.run_config.get("precision", "fp32")


@dataclass
class LoadedRun:
    """The model of a checkpoint with a split to run it on.

    Attributes:
        model: In eval mode, on the device.
        settings: Its hyper-parameters.
        features: The features, with this split only.
        split: The utterances of the split.
        loader: Its loader, in file order.
        device: The device of the model.
        precision: The precision of the training.
    """

    model: DMD
    settings: EasyDict
    features: FeatureSet
    split: Split
    loader: DataLoader
    device: torch.device
    precision: str


def build_model(settings, features: FeatureSet) -> DMD:
    """Build a DMD for the sizes of the features.

    Raises:
        ConfigError: The settings do not match the data.
        DataError: The tokens do not match the text encoder.
    """
    sizes = {"feature_dims": features.feature_dims, "seq_lens": features.seq_lens}
    model = DMD(EasyDict(settings, **sizes))
    if settings.use_bert:
        _check_token_ids(model, settings, features)
    return model


def _check_token_ids(model: DMD, settings, features: FeatureSet) -> None:
    encoder = model.text_model.model.config
    largest = max(int(split.text[:, 0].max()) for split in features.splits.values())
    steps = features.seq_lens[0]
    if largest >= encoder.vocab_size or steps > most_tokens(encoder):
        raise DataError(
            f"{features.path}: 'text_bert' has token ids up to {largest} and {steps} steps, but "
            f"'{settings.pretrained}' accepts ids below {encoder.vocab_size} and at most "
            f"{most_tokens(encoder)} steps. Use the text encoder that the text was tokenized for, "
            "or truncate the text."
        )


def load_initial_weights(model: DMD, checkpoint: str | Path) -> None:
    """Initialize a model from the weights of a checkpoint that match by name and shape.

    Modules with weights that do not match are logged.

    Raises:
        CheckpointError: The file is unreadable, or no parameter matches.
    """
    parameters = model.state_dict()
    matching = {}
    for name, value in read_checkpoint(checkpoint).items():
        if name in parameters and value.shape == parameters[name].shape:
            matching[name] = value
    if not matching:
        raise CheckpointError(
            f"--init-from: {checkpoint}: no parameter matches the model by name and shape."
        )
    model.load_state_dict(matching, strict=False)
    others = {name.partition(".")[0] for name in parameters.keys() - matching.keys()}
    logger.info(
        f"{len(matching)} of {len(parameters)} tensors are initialized from {checkpoint}; modules "
        f"with other tensors: {', '.join(sorted(others)) or 'none'}."
    )


def load_settings(
    checkpoint: str | Path,
    dataset_name: str = "",
    config_file: str | Path = "",
    config: dict | None = None,
) -> CheckpointSettings:
    """Load the settings that a checkpoint was trained with.

    Args:
        checkpoint: The .pth file.
        dataset_name: A data set of the config; by default the one in run.json.
        config_file: A config file; by default run.json, or config/config.json if `dataset_name` is
            given.
        config: Overrides by key.

    Raises:
        ConfigError: A setting is invalid, or both run.json and `dataset_name` are missing.
    """
    run_config = read_run_config(Path(checkpoint).parent) or {}
    if run_config and not dataset_name and not config_file:
        return load_run_settings(run_config, config)
    if not dataset_name and not run_config:
        read_checkpoint(checkpoint)  # if the file is not a checkpoint, report that first
        raise ConfigError(
            f"{checkpoint}: without run.json its data set is unknown. Give -d mosi or -d mosei."
        )
    dataset_name = dataset_name or run_config["settings"]["dataset_name"]
    settings = load_config("dmd", dataset_name, config_file, config)
    return CheckpointSettings(settings, {}, run_config)


def load_run_settings(run_config: dict, config: dict | None = None) -> CheckpointSettings:
    """Load the settings that a run.json describes.

    Args:
        run_config: The content of run.json.
        config: Overrides by key.

    Raises:
        ConfigError: A setting is invalid.
    """
    settings = config_from_resolved(run_config["settings"], config)
    return CheckpointSettings(settings, run_config["features"], run_config)


def load_model(
    checkpoint: str | Path,
    dataset_name: str = "",
    config_file: str | Path = "",
    config: dict | None = None,
) -> tuple[DMD, EasyDict]:
    """Load a trained model, without any data.

    Args:
        checkpoint: The .pth file.
        dataset_name, config_file, config: As for `load_settings`.

    Returns:
        The model in eval mode on the CPU, and its settings with `feature_dims` and `seq_lens`.

    Raises:
        CheckpointError: The file is unreadable, or does not match the settings.
    """
    state = read_checkpoint(checkpoint)
    settings = load_settings(checkpoint, dataset_name, config_file, config).settings
    sizes = infer_sizes(state)
    if sizes is None:
        raise CheckpointError(f"{checkpoint}: does not contain the weights of a DMD.")
    widths, steps = sizes
    model = DMD(EasyDict(settings, feature_dims=widths, seq_lens=steps))
    load_weights(model, checkpoint, state)
    return model.eval(), model.args


def restore(
    checkpoint: str | Path,
    trained: CheckpointSettings,
    split: str,
    device: torch.device,
    features: FeatureSet | None = None,
    to_predict: bool = False,
) -> LoadedRun:
    """Load a trained model, and a split of its data.

    Args:
        checkpoint: The .pth file.
        trained: Its settings, as `load_settings` returns them.
        split: train, valid or test.
        device: Device to run the model on.
        features: The features, if they have been read.
        to_predict: The features are not the training data, and may lack labels.

    Raises:
        CheckpointError, ConfigError, DataError: Checkpoint, settings and data are incompatible.
    """
    state = read_checkpoint(checkpoint)  # first, because nothing else matters if it is unreadable
    set_seed(0)  # constructing the text encoder draws weights, which the checkpoint replaces
    settings = trained.settings
    if features is None:
        overrides = trained.feature_overrides
        features = prepare_features(settings, **overrides, splits=(split,), to_predict=to_predict)
    else:
        features = dataclasses.replace(features, splits={split: features.splits[split]})
    _check_sizes(features, state, settings.use_bert, checkpoint)
    model = build_model(settings, features)
    load_weights(model, checkpoint, state)
    loaders = make_loaders(
        features, settings.batch_size, settings.eval_batch_size, seed=0, device=device
    )
    return LoadedRun(
        model=model.to(device).eval(),
        settings=settings,
        features=features,
        split=features.splits[split],
        loader=loaders[split],
        device=device,
        precision=trained.precision,
    )


def _check_sizes(features: FeatureSet, state: dict, use_bert: bool, checkpoint: str | Path) -> None:
    """Raise DataError if a checkpoint is for data of other widths or steps."""
    sizes = infer_sizes(state)
    if sizes is None:
        return  # load_weights reports the missing weights
    first = 1 if use_bert else 0  # with BERT the file has no text features
    widths, steps = sizes[0][first:], sizes[1]
    actual_widths, actual_steps = features.feature_dims[first:], features.seq_lens
    if (actual_widths, actual_steps) == (widths, steps):
        return
    flags = " ".join(f"--{field}-steps {n}" for field, n in zip(FIELDS, steps, strict=True))
    raise DataError(
        f"{features.path}: {', '.join(FIELDS[first:])} are {actual_widths} wide and have "
        f"{actual_steps} steps, but {checkpoint} expects {widths} and {steps}. Give its data set "
        f"(-d), or build the file like its training data (python -m dataset.build … {flags}, or "
        "--pool-to)."
    )


def describe_changes(trained: CheckpointSettings, to_predict: bool = False) -> list[str]:
    """Describe how the current settings and data differ from those in run.json.

    Args:
        trained: The current settings, and run.json.
        to_predict: The data are not the training data, and are not compared.

    Returns:
        A line for each difference.
    """
    if not trained.run_config:
        return []
    present = {"settings": dict(trained.settings)}
    if not to_predict:
        present["data"] = hash_features(trained.settings, trained.feature_overrides)
    lines = []
    for difference in describe_differences(trained.run_config, present, ignore=("featurePath",)):
        lines.append(
            f"{difference.key} is {difference.second!r} now, but was {difference.first!r} in "
            "training."
        )
    return lines
