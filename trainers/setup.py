"""From checked settings to features and a model that fits them."""

from collections.abc import Iterator
from pathlib import Path

import torch
from easydict import EasyDict
from torch.utils.data import DataLoader

from config import config_from_resolved, load_config
from dataset.features import FIELDS, FeatureSet, prepare_features
from dataset.loaders import make_loaders
from models.dmd import DMD
from models.text_encoder import most_tokens
from trainers.checkpoint import load_weights, read_checkpoint, sizes_of
from trainers.run_settings import data_sha256, different_settings, read_description
from utils.errors import CheckpointError, ConfigError, DataError
from utils.log import logger
from utils.seed import set_seed


def build_model(args, features: FeatureSet) -> DMD:
    """A DMD that fits the features. Raises ConfigError or DataError where config and features do not fit."""
    model = DMD(EasyDict(args, feature_dims=features.feature_dims, seq_lens=features.seq_lens))
    if args.use_bert:
        bert = model.text_model.model.config
        highest = max(int(part.text[:, 0].max()) for part in features.splits.values())
        if highest >= bert.vocab_size or features.seq_lens[0] > most_tokens(bert):
            raise DataError(
                f"{features.path}: 'text_bert' has the token id {highest} and {features.seq_lens[0]} steps, but "
                f"'{args.pretrained}' takes less than {bert.vocab_size} and at most {most_tokens(bert)}. "
                "Use the BERT that the text was tokenized for, or truncate the text."
            )
    return model


def load_model(
    checkpoint: str | Path, dataset: str = "", config_file: str | Path = "", config: dict | None = None
) -> tuple[DMD, EasyDict]:
    """A trained model in eval mode on the CPU, and the settings that it is made of; the arguments are DMD_test's."""
    state, (settings, *_) = read_checkpoint(checkpoint), settings_of(checkpoint, dataset, config_file, config)
    if (sizes := sizes_of(state)) is None:
        raise CheckpointError(f"{checkpoint}: not the weights of a DMD.")
    model = DMD(EasyDict(settings, feature_dims=sizes[0], seq_lens=sizes[1]))
    load_weights(model, checkpoint, state)
    return model.eval(), model.args


def settings_of(
    checkpoint: str | Path, dataset: str = "", config_file: str | Path = "", config: dict | None = None
) -> tuple[EasyDict, dict[str, str], dict]:
    """The settings of a checkpoint, as DMD_test takes them; the feature files that replaced a modality's; and the
    config.json beside it, {} where there is none."""
    beside = read_description(Path(checkpoint).parent) or {}
    if beside and not dataset and not config_file:
        return config_from_resolved(beside["settings"], config), beside["features"], beside
    if not dataset and not beside:
        read_checkpoint(checkpoint)  # what is none is told first
        raise ConfigError(f"{checkpoint}: no run's config.json beside it names its data set: -d mosi or -d mosei.")
    return load_config("dmd", dataset or beside["settings"]["dataset_name"], config_file, config), {}, beside


def warm_start(model: DMD, checkpoint: str | Path) -> None:
    """Load those weights of a checkpoint that fit the model by name and shape, and log which do not."""
    new, state = model.state_dict(), read_checkpoint(checkpoint)
    fit = {name: value for name, value in state.items() if name in new and value.shape == new[name].shape}
    if not fit:
        raise CheckpointError(f"--init: {checkpoint}: none of its weights fits the model.")
    model.load_state_dict(fit, strict=False)
    rest = ", ".join(sorted({name.partition(".")[0] for name in new.keys() - fit.keys()})) or "none"
    logger.info(f"{len(fit)} of {len(new)} tensors start from {checkpoint}; modules with others, as always: {rest}.")


def restore(
    checkpoint: str | Path, args, replaced: dict[str, str], split: str, device: torch.device, to_predict: bool = False
) -> tuple[DMD, FeatureSet, DataLoader]:
    """The model of a checkpoint, on the device, and one split in file order.

    to_predict: the features are other than in training, and may lack labels
    """
    state = read_checkpoint(checkpoint)  # a wrong file is told before anything else is read
    set_seed(0)  # nothing random is left in the result; this keeps what BERT's construction draws the same
    features = prepare_features(args, **replaced, splits=(split,), to_predict=to_predict)
    widths, steps = sizes_of(state) or (features.feature_dims, features.seq_lens)  # of no DMD: load_weights says so
    inputs = slice(1 if args.use_bert else 0, None)  # with BERT the file has no text features
    if (features.feature_dims[inputs], features.seq_lens) != (widths[inputs], steps):
        flags = " ".join(f"--{field}-steps {n}" for field, n in zip(FIELDS, steps, strict=True))
        raise DataError(
            f"{features.path}: {', '.join(FIELDS[inputs])} are {features.feature_dims[inputs]} wide and have "
            f"{features.seq_lens} steps, but {checkpoint} is for {widths[inputs]} and {steps}: another data set (-d), "
            f"or not made as for its training (python -m dataset.build … {flags}, or --pool-to)."
        )
    model = build_model(args, features)
    load_weights(model, checkpoint, state)
    loaders = make_loaders(features, args.batch_size, args.eval_batch_size, seed=0, device=device)
    return model.to(device), features, loaders[split]


def differences(trained: dict, args, replaced: dict[str, str], to_predict: bool = False) -> Iterator[str]:
    """A line for each way in which settings and data are not those of the training that config.json describes; of the
    data nothing where they are other ones, `to_predict` on."""
    now = {"settings": dict(args)} | ({} if to_predict else {"data": data_sha256(args, replaced)})
    for key, was, here in different_settings(trained, now, ("featurePath",)) if trained else ():
        yield f"{key} is {here!r} here, but was {was!r} in training."
