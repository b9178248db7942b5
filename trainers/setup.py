"""From checked settings to features and a model that fits them."""

from collections.abc import Sequence
from pathlib import Path

from dataset.features import SPLITS, FeatureSet, load_features
from dataset.synthetic import SYNTHETIC_FILE, ensure_synthetic
from models.dmd import DMD
from utils.errors import ConfigError, DataError
from utils.files import sha256_of


def prepare_features(
    args,
    feature_T: str = "",  # noqa: N803
    feature_A: str = "",  # noqa: N803
    feature_V: str = "",  # noqa: N803
    splits: Sequence[str] = SPLITS,
) -> FeatureSet:
    """Read the features that `args` names (making the embedded data set where it is asked for and not there yet),
    and tell `args` their widths and lengths."""
    if args.dataset_name == "synthetic" and Path(args.featurePath).match(SYNTHETIC_FILE):
        ensure_synthetic(args.featurePath)  # another featurePath is the user's own, and must exist
    features = load_features(args, feature_T, feature_A, feature_V, splits=splits)
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
