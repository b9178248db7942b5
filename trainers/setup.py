"""From checked settings to features and a model that fits them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dataset.features import FIELDS, SPLITS, FeatureSet, load_features
from dataset.loaders import make_loaders
from dataset.synthetic import SYNTHETIC_FILE, ensure_synthetic
from models.dmd import ARGUMENT_ORDER, DMD
from trainers.checkpoint import load_state, sizes_of
from utils.errors import ConfigError, DataError
from utils.files import sha256_of
from utils.seed import set_seed


def prepare_features(
    args,
    feature_T: str = "",  # noqa: N803
    feature_A: str = "",  # noqa: N803
    feature_V: str = "",  # noqa: N803
    splits: Sequence[str] = SPLITS,
    to_predict: bool = False,
) -> FeatureSet:
    """Read the features that `args` names (making the embedded data set where it is asked for and not there yet),
    and tell `args` their widths and lengths. `to_predict` is as in load_features."""
    if args.dataset_name == "synthetic" and Path(args.featurePath).match(SYNTHETIC_FILE):
        ensure_synthetic(args.featurePath)  # another featurePath is the user's own, and must exist
    features = load_features(args, feature_T, feature_A, feature_V, splits, to_predict)
    args.feature_dims, args.seq_lens = features.feature_dims, features.seq_lens
    return features


def data_sha256(args, replaced: dict[str, str]) -> dict[str, str]:
    """The SHA-256 of the feature files by their role: featurePath, and feature_T/A/V where one replaces a modality."""
    return {role: sha256_of(path) for role, path in ({"featurePath": args.featurePath} | replaced).items() if path}


def build_model(args, features: FeatureSet) -> DMD:
    """A DMD that fits the features.

    Raises ConfigError or DataError where config and features do not fit each other.
    """
    try:
        model = DMD(args)
    except ValueError as error:
        raise ConfigError(f"{features.path}: {error}.") from error
    if args.use_bert:
        bert = model.text_model.model.config
        highest = max(int(part.text[:, 0].max()) for part in features.splits.values())
        if highest >= bert.vocab_size:
            raise DataError(
                f"{features.path}: 'text_bert' holds token id {highest}, but the vocabulary of pretrained "
                f"'{args.pretrained}' has {bert.vocab_size}. Use the BERT that the text was tokenised for."
            )
        if features.seq_lens[0] > bert.max_position_embeddings:
            raise DataError(
                f"{features.path}: 'text_bert' has {features.seq_lens[0]} steps, but pretrained '{args.pretrained}' "
                f"has {bert.max_position_embeddings} positions. Truncate the text, or use another BERT."
            )
    return model


def restore(
    state: dict[str, Tensor],
    checkpoint: str | Path,
    args,
    replaced: dict[str, str],
    split: str,
    device: torch.device,
    to_predict: bool = False,
) -> tuple[DMD, FeatureSet, DataLoader]:
    """A trained model on the device, from the weights `state` of a checkpoint, and one split in file order.

    replaced    the feature files that stand for a modality's, by feature_T, feature_A, feature_V
    to_predict  the features are other than in training, and may lack labels

    Raises as prepare_features, build_model and load_state do, and DataError where a file to predict on does not fit.
    """
    set_seed(0)  # nothing random is left in the result; this keeps what BERT's construction draws the same
    features = prepare_features(args, **replaced, splits=(split,), to_predict=to_predict)
    if to_predict:
        _check_fit(features, state, checkpoint, args.use_bert)
    model = build_model(args, features)
    load_state(model, state, checkpoint)
    loaders = make_loaders(features, args.batch_size, args.eval_batch_size, seed=0, device=device)
    return model.to(device), features, loaders[split]


def _check_fit(features: FeatureSet, state: dict[str, Tensor], checkpoint: str | Path, use_bert: bool) -> None:
    """Raise DataError where the features are not of the widths and steps that the weights are for."""
    sizes = sizes_of(state)
    if sizes is None:
        return  # load_state says so
    widths, steps = ([size[m] for m in ARGUMENT_ORDER] for size in sizes)
    if features.feature_dims[use_bert:] != widths[use_bert:]:  # with BERT the file has no text features
        names = ", ".join(FIELDS[use_bert:])
        raise DataError(
            f"{features.path}: {names} are {features.feature_dims[use_bert:]} wide, but {checkpoint} is for "
            f"{widths[use_bert:]}. Extract the features as for its training."
        )
    if features.seq_lens != steps:
        flags = " ".join(f"--{field}-steps {n}" for field, n in zip(FIELDS, steps, strict=True))
        raise DataError(
            f"{features.path}: {', '.join(FIELDS)} have {features.seq_lens} steps, but {checkpoint} is for {steps}. "
            f"Make the file with python -m dataset.build … {flags} (or --average, if training had it)."
        )


def differences(trained: dict, args, replaced: dict[str, str], to_predict: bool = False) -> Iterator[str]:
    """A line for each way in which settings and data are not those of the training that config.json describes; of the
    data nothing where they are other ones, `to_predict` on."""
    for key, value in trained.get("settings", {}).items():
        if key in args and json.loads(json.dumps(args[key])) != value and not (to_predict and key == "featurePath"):
            yield f"{key} is {args[key]!r} here, but was {value!r} in training."
    if to_predict:
        return
    data = data_sha256(args, replaced) if "data" in trained else {}
    for role in sorted(data.keys() | trained.get("data", {}).keys()):
        if data.get(role) != trained["data"].get(role):
            yield f"{role} is another file than in training: its SHA-256 is {data.get(role)}."
