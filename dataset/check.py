"""Report the content of a feature pickle, and errors and anomalies in it.

python -m dataset.check dataset/MOSI/aligned_50.pkl -d mosi
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from easydict import EasyDict

from config import load_config, parse_overrides
from dataset import mult
from dataset.features import (
    FIELDS,
    PUBLISHED_SHA256,
    SPLITS,
    FeatureSet,
    load_published,
    shorten,
    take_features,
    video_of,
)
from dataset.pickles import load_pickle
from dataset.tokens import check_tokens, local_folder
from utils.cli import ArgumentParser, run_command
from utils.errors import ConfigError, DataError, DMDError
from utils.files import sha256_of
from utils.reading import printable, read_json

BERT_BASE = "bert-base-uncased"
VOCABULARY_SIZES = {BERT_BASE: 30522}  # known without the hub


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: str  # "ok", "note" (may be intended) or "error" (training would fail or be wrong)
    text: str


def check_content(
    path: str,
    content: dict,
    settings: EasyDict | None,
    to_predict: bool,
    pretrained: str = "",
    vocabulary_size: int | None = None,
) -> Iterator[Finding]:
    """Check the content of a feature pickle.

    Args:
        path: The file, for messages; it may not exist yet.
        content: {split: {field: values}}
        settings: Settings of the data set that the file should match.
        to_predict: The file is not for training: one split suffices, and labels may be missing.
        pretrained: The text encoder (default: that of `settings`, or bert-base-uncased).
        vocabulary_size: Size of its vocabulary, if the caller knows it.

    Yields:
        Findings, in the order of the report.
    """
    splits = {}
    for name in SPLITS:
        if isinstance(content.get(name), dict):
            splits[name] = content[name]
            yield Finding("ok", f"{name}: {_describe_fields(splits[name])}.")
    names = tuple(splits) if to_predict and splits else SPLITS
    yield from _check_layout(path, splits, settings)

    feature_sets = {}  # by the field of their text
    for key in _text_fields(splits, names[0]):
        args = _settings_to_read(path, splits.get(names[0], {}), settings, key)
        features, finding = _try_to_read(splits, args, names, to_predict)
        yield finding
        if features:
            feature_sets[key] = features
    if not feature_sets:
        return

    if not pretrained:
        pretrained = settings.pretrained if settings else BERT_BASE
    if "text_bert" in feature_sets:
        tokens = feature_sets["text_bert"]
        yield from _check_text_bert(tokens, settings, pretrained, vocabulary_size)
    if "text" in feature_sets:
        yield from _check_sequences(feature_sets["text"], "text")
    features = next(iter(feature_sets.values()))  # the other fields are the same in both
    if mult.is_mult(splits[names[0]]):
        yield _compare_sizes(features)
    yield from _check_common_fields(features)


def _check_common_fields(features: FeatureSet) -> Iterator[Finding]:
    """The fields that are used with and without tokens."""
    yield from _check_labels(features)
    yield from _check_sequences(features, "audio")
    yield from _check_sequences(features, "vision")
    yield from _check_ids(features)


def _describe_fields(fields: dict) -> str:
    """Shape and type of each field of a split."""
    descriptions = []
    for key, values in fields.items():
        kind = getattr(values, "dtype", type(values).__name__)
        descriptions.append(f"{key} {getattr(values, 'shape', '')} {kind}")
    return printable(", ".join(descriptions), 1000)


def _check_layout(
    path: str, splits: dict[str, dict], settings: EasyDict | None
) -> Iterator[Finding]:
    """How a pickle in MulT's layout is converted, and whether it matches the settings."""
    if not any(mult.is_mult(fields) for fields in splits.values()):
        return
    ids = "ids of video, start and end are joined"
    if any("id" not in fields for fields in splits.values()):
        ids = "without ids, utterances are named train-0, train-1, …"
    yield Finding(
        "ok",
        f"MulT's layout: 'labels' are read as 'regression_labels'; {ids}; -inf in audio is read as "
        "0.",
    )
    if settings and settings.use_bert:
        yield Finding("error", f"{path}: {mult.WITHOUT_TOKENS}")


def _compare_sizes(features: FeatureSet) -> Finding:
    """Whether the splits have the sizes of a file by MulT's authors."""
    found = [len(split) for split in features.splits.values()]
    for dataset, sizes in mult.SIZES.items():
        if found == sizes:
            return Finding("ok", f"Numbers of utterances as in MulT's files: {dataset}.")
    return Finding("note", f"Numbers of utterances differ from MulT's files: {mult.SIZES}.")


def _text_fields(splits: dict[str, dict], first: str) -> list[str]:
    """The text fields of the first split; both if it has none, which is then reported."""
    fields = ["text_bert", "text"]
    return [key for key in fields if key in splits.get(first, {})] or fields


def _settings_to_read(path: str, fields: dict, settings: EasyDict | None, key: str) -> EasyDict:
    """Settings that match the file itself, except for the widths that the data set should have."""
    dims = []
    for field in FIELDS:
        array = fields.get(field)
        dims.append(array.shape[2] if getattr(array, "ndim", 0) == 3 else 1)
    use_bert = key == "text_bert"
    if settings:
        # With use_bert the width of the settings is that of the encoder, not of text features.
        other_text = settings.use_bert and not use_bert
        text_width = dims[0] if other_text else settings.feature_dims[0]
        dims = [text_width, *settings.feature_dims[1:]]
    return EasyDict(featurePath=path, need_data_aligned=False, use_bert=use_bert, feature_dims=dims)


def _try_to_read(
    splits: dict[str, dict], args: EasyDict, names: Sequence[str], to_predict: bool
) -> tuple[FeatureSet | None, Finding]:
    """Read the features with one kind of text; None if they cannot be used, and a finding."""
    mode = f"use_bert={str(args.use_bert).lower()}"
    path = args.featurePath
    # A copy of two levels, since reading removes the fields.
    raw = {path: {name: dict(fields) for name, fields in splits.items()}}
    try:
        features = take_features(raw, args, [path] * 3, names, to_predict)
    except DataError as error:
        return None, Finding("error", f"{mode}: {error}")
    use = "predicted" if to_predict else "trained"
    needed = "" if args.use_bert else f", with feature_dims={features.feature_dims}"
    return features, Finding("ok", f"{mode}: can be {use} on{needed}.")


def _check_text_bert(
    features: FeatureSet, settings: EasyDict | None, pretrained: str, size: int | None
) -> Iterator[Finding]:
    """Padding and vocabulary of the tokens."""
    foreign = check_tokens(features, settings) if settings else None
    if foreign:
        yield Finding("error", foreign)
    if size is None:
        size = _vocabulary_size(pretrained)
    for name, split in features.splits.items():
        ids, mask = split.text[:, 0], split.text[:, 1]
        where = f"{name}: 'text_bert'"
        yield _check_padding(where, mask != 0)
        if size is None:
            yield Finding(
                "note",
                f"{where}: ids up to {ids.max():g}; the vocabulary of {pretrained} is not on this "
                "machine.",
            )
            continue
        outside = (ids >= size).sum()
        yield Finding(
            "error" if outside else "ok",
            f"{where}: ids up to {ids.max():g}; the vocabulary of {pretrained} has {size} entries, "
            f"and {outside} ids are outside it.",
        )


def _vocabulary_size(pretrained: str) -> int | None:
    """The size of the vocabulary of an encoder, or None if it is not known on this machine."""
    folder = local_folder(pretrained)
    if folder and (folder / "config.json").is_file():
        return read_json(folder / "config.json").get("vocab_size")
    return VOCABULARY_SIZES.get(pretrained)


def _check_labels(features: FeatureSet) -> Iterator[Finding]:
    """The distribution of the labels of each split."""
    for name, split in features.splits.items():
        if not split.labeled:
            continue
        counts = Counter(np.rint(split.labels).astype(int).tolist())
        shown = ", ".join(f"{value:+d}: {count}" for value, count in sorted(counts.items()))
        yield Finding("ok", f"{name}: labels, rounded: {shown}.")


def _check_sequences(features: FeatureSet, field: str) -> Iterator[Finding]:
    """Padding, and features that never change, of one modality."""
    for name, split in features.splits.items():
        array = getattr(split, field)  # (N, T, d)
        where = f"{name}: '{field}'"
        yield _check_padding(where, (array != 0).any(axis=2))
        constant = np.flatnonzero(array.min((0, 1)) == array.max((0, 1)))
        if len(constant) == 0:
            continue
        problem = "never change"
        if not array.any():
            problem = "are all zero, so that nothing can be learned from them"
        yield Finding(
            "note",
            f"{where}: {len(constant)} of {array.shape[2]} features {problem}: "
            f"{constant[:8].tolist()}.",
        )


def _check_padding(where: str, real: np.ndarray) -> Finding:
    """real (N, T): steps that are not padding."""
    steps = real.shape[1]
    filled = real.any(axis=1)
    before = np.where(filled, real.argmax(axis=1), 0)
    after = np.where(filled, real[:, ::-1].argmax(axis=1), 0)
    lengths = np.where(filled, steps - before - after, 0)
    return Finding(
        "note" if before.any() and after.any() else "ok",
        f"{where}: {lengths.min()} to {lengths.max()} of {steps} steps, median "
        f"{np.median(lengths):g}; padded in front in {(before > 0).sum()} and after in "
        f"{(after > 0).sum()} utterances; {(~filled).sum()} empty.",
    )


def _check_ids(features: FeatureSet) -> Iterator[Finding]:
    """Utterances that occur twice, and splits that share utterances or videos."""
    for name, split in features.splits.items():
        twice = [item for item, count in Counter(split.ids).items() if count > 1]
        if twice:
            yield Finding(
                "note",
                f"{name}: {len(twice)} ids occur more than once ({shorten(twice)}); these "
                "utterances have more weight.",
            )
    for first, second in combinations(features.splits, 2):
        first_ids = set(features.splits[first].ids)
        second_ids = set(features.splits[second].ids)
        shared = first_ids & second_ids
        if shared:
            yield Finding(
                "error",
                f"{first} and {second} share {len(shared)} utterances ({shorten(shared)}): scores "
                "would include training data. Remove them from one of the two.",
            )
        videos = _videos(first_ids - shared) & _videos(second_ids - shared)
        if videos:
            yield Finding(
                "note",
                f"{first} and {second} share {len(videos)} videos ({shorten(videos)}): the same "
                "speaker is in both.",
            )


def _videos(ids: set[str]) -> set[str]:
    """The videos of utterance ids."""
    videos = {video_of(utterance_id) for utterance_id in ids}
    return videos - {""}


def _check_sha256(path: str, dataset_name: str) -> Finding:
    """Whether the file is a published one, and the one of this data set."""
    digest = sha256_of(path)
    for (name, aligned), published in PUBLISHED_SHA256.items():
        if digest == published:
            kind = "aligned" if aligned else "unaligned"
            return Finding(
                "ok" if dataset_name in ("", name) else "error",
                f"SHA-256 {digest}: the published {kind} features of {name}. Use it with -d "
                f"{name}.",
            )
    return Finding(
        "note",
        f"SHA-256 {digest}: not one of MMSA's published files; do not expect the published "
        "results of runs with BERT.",
    )


def make_parser() -> ArgumentParser:
    """The flags of the command."""
    parser = ArgumentParser(prog="python -m dataset.check", description="Check a feature pickle.")
    parser.add_argument("file")
    parser.add_argument(
        "-d", "--dataset", default="", help="a data set of the config: check against its settings"
    )
    parser.add_argument(
        "-c", "--config", default="", help="JSON config with -d (default: config/config.json)"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override settings",
    )
    parser.add_argument(
        "--to-predict",
        action="store_true",
        help="for test.py --features: any split, with or without labels",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].

    Raises:
        DMDError: The file has errors, which have been printed.
    """
    options = make_parser().parse_args(argv)
    settings = None
    if options.dataset:
        overrides = parse_overrides(options.set)
        settings = load_config("dmd", options.dataset, options.config, overrides)
    elif options.config or options.set:
        raise ConfigError("-c and --set need a data set, whose settings they change. Add -d.")
    if settings and not options.to_predict:
        aligned = settings.need_data_aligned
        content = load_published(options.file, settings.dataset_name, aligned)
    else:
        content = load_pickle(options.file)

    findings = [_check_sha256(options.file, options.dataset.lower())]
    findings += check_content(options.file, content, settings, options.to_predict)
    errors = 0
    for finding in findings:
        print(f"{finding.level:5} {' '.join(finding.text.split())}")
        errors += finding.level == "error"
    if errors:
        plural = "s" if errors > 1 else ""
        hint = ""
        if not options.to_predict:
            hint = " (Use --to-predict to check a file to predict on.)"
        raise DMDError(f"{options.file}: {errors} error{plural}, above.{hint}")


if __name__ == "__main__":
    sys.exit(run_command(main))
