"""What is in a feature pickle, and what is wrong or odd about it.

python -m dataset.check dataset/MOSI/aligned_50.pkl -d mosi
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from easydict import EasyDict

from config import load_config
from dataset.features import FIELDS, PUBLISHED_SHA256, SPLITS, load_splits, numbers_of, strings_of, take_features
from utils.cli import run_command
from utils.errors import DataError, DMDError
from utils.files import sha256_of
from utils.reading import printable, read_json

BERT_BASE = (30522, "bert-base-uncased")  # size of its vocabulary, name
PROJECT_ROOT = Path(__file__).resolve().parent.parent


class Finding(NamedTuple):
    """One thing found: level is 'ok', 'note' (may be as it should) or 'error' (training would be wrong or fail)."""

    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:5} {' '.join(self.text.split())}"


def check_file(
    path: str | Path, dataset_name: str = "", to_predict: bool = False, vocabulary: tuple[int, str] | None = None
) -> list[Finding]:
    """Everything there is to say about a feature pickle; with `dataset_name`, also whether it fits that data set's
    settings in config/config.json.

    to_predict  the file is not trained on: any of the splits will do, and labels may be absent
    vocabulary  size and name of the one that the text is tokenised with (default: the data set's)

    Raises DataError if the file cannot be read at all, ConfigError for a data set that is not in the config.
    """
    path, content = str(path), load_splits(str(path))
    settings = load_config("dmd", dataset_name) if dataset_name else None
    size, name = vocabulary or _vocabulary(settings.pretrained if settings else BERT_BASE[1])
    findings = [_digest(path, dataset_name.lower())]
    for split, fields in _splits(content).items():
        findings += [*_layout(split, fields), *_arrays(path, split, fields), *_tokens(path, split, fields, size, name)]
    return findings + [*_identities(path, content), *_verdict(path, content, settings, to_predict)]


def _splits(content: dict) -> dict[str, dict]:
    return {name: content[name] for name in SPLITS if isinstance(content.get(name), dict)}


def _digest(path: str, dataset_name: str) -> Finding:
    digest = sha256_of(path)
    for (name, aligned), published in PUBLISHED_SHA256.items():
        if digest == published:
            kind = f"SHA-256 {digest}: the published {'aligned' if aligned else 'unaligned'} features of {name}."
            return Finding("ok" if dataset_name in ("", name) else "error", f"{kind} Use it with -d {name}.")
    return Finding("note", f"SHA-256 {digest}: no published file; published numbers cannot be expected of it.")


def _layout(split: str, fields: dict) -> Iterator[Finding]:
    """The fields of a split with shape and type, and those that some use needs and that are not there."""
    shown = [
        f"{printable(key)} {value.shape} {value.dtype}" if isinstance(value, np.ndarray) else
        f"{printable(key)} {type(value).__name__}" for key, value in list(fields.items())[:32]
    ]  # fmt: skip
    yield Finding("ok", f"{split}: {', '.join(shown)}.")
    uses = {"text": "use_bert=false", "text_bert": "use_bert=true", "raw_text": "a table of predictions with texts"}
    for key in uses.keys() - fields.keys():
        yield Finding("note", f"{split}: no field '{key}', which {uses[key]} needs.")


def _array(path: str, split: str, fields: dict, key: str, ndim: int = 3) -> np.ndarray | None:
    """The field as an array, if it can be one; what else is wrong with it, the verdict says."""
    try:
        fields[key] = numbers_of(fields[key], path, split, key)
    except (DataError, KeyError):
        return None
    return fields[key] if fields[key].ndim == ndim and fields[key].size else None


def _arrays(path: str, split: str, fields: dict) -> Iterator[Finding]:
    """Silence, features that never change, lengths and the side of the padding; labels."""
    for key in FIELDS:
        array = _array(path, split, fields, key)
        if array is None:
            continue
        where = f"{split}: '{key}'"
        silent = int(np.isneginf(array).sum())
        if silent and key == "audio":
            yield Finding("note", f"{where} holds {silent} times -inf, read as 0, as in the published files.")
        constant = np.flatnonzero(array.min((0, 1)) == array.max((0, 1)))
        if not array.any():
            yield Finding("note", f"{where} is all zero: a dead modality, from which nothing can be learned.")
        elif len(constant):
            shown = f"{len(constant)} of {array.shape[2]} features that never change: {constant[:8].tolist()}"
            yield Finding("note", f"{where} has {shown}.")
        yield _padding(where, (array != 0).any(axis=2))
    labels = _array(path, split, fields, "regression_labels", ndim=1)
    if labels is not None:
        counts = Counter(np.rint(labels[np.isfinite(labels)]).astype(int).tolist())
        shown = ", ".join(f"{value:+d}: {counts[value]}" for value in sorted({*range(-3, 4), *counts}))
        yield Finding("ok", f"{split}: rounded labels {shown}.")


def _padding(where: str, real: np.ndarray) -> Finding:
    """real (N, T): steps that are not padding."""
    filled = real.any(axis=1)
    before, after = (np.where(filled, side.argmax(axis=1), 0) for side in (real, real[:, ::-1]))
    lengths = np.where(filled, real.shape[1] - before - after, 0)
    text = (
        f"{where}: {lengths.min()} to {lengths.max()} of {real.shape[1]} steps, median {np.median(lengths):g}; padded "
        f"in front in {(before > 0).sum()} and after in {(after > 0).sum()} utterances; {(~filled).sum()} empty."
    )
    return Finding("note" if before.any() and after.any() else "ok", text)


def _vocabulary(pretrained: str) -> tuple[int | None, str]:
    """Size and name of a BERT's vocabulary; None where that cannot be told without the hub."""
    for folder in (Path(pretrained), PROJECT_ROOT / pretrained):
        if (folder / "config.json").is_file():
            return read_json(folder / "config.json").get("vocab_size"), pretrained
    return BERT_BASE if pretrained == BERT_BASE[1] else (None, pretrained)


def _tokens(path: str, split: str, fields: dict, size: int | None, name: str) -> Iterator[Finding]:
    tokens = _array(path, split, fields, "text_bert")
    if tokens is None or tokens.shape[1] != 3:
        return
    yield _padding(f"{split}: 'text_bert'", tokens[:, 1] != 0)
    text = f"{split}: token ids up to {tokens[:, 0].max():g}; the vocabulary of {name}"
    if size is None:
        yield Finding("note", f"{text} is not known here.")
    elif outside := int((tokens[:, 0] >= size).sum()):
        yield Finding("error", f"{text} has {size}. {outside} are outside it: set pretrained to their BERT.")
    else:
        yield Finding("ok", f"{text} has {size}.")


def _identities(path: str, content: dict) -> Iterator[Finding]:
    """Utterances that occur twice, and videos of which splits share utterances."""
    seen = {}
    for name, fields in _splits(content).items():
        try:
            counts = Counter(strings_of(fields.get("id"), path, name, "id"))
        except DataError:
            continue  # the verdict says so
        twice = [item for item, count in counts.items() if count > 1]
        if twice:
            yield Finding("note", f"{name}: {len(twice)} ids occur more than once ({shorten(twice)}); they weigh more.")
        seen[name] = set(counts)
    for (first, one), (second, other) in combinations(seen.items(), 2):
        both, shared = f"{first} and {second} share", one & other
        if shared:
            remedy = "scores would be of what was trained on. Remove them from one of the two"
            yield Finding("error", f"{both} {len(shared)} utterances ({shorten(shared)}): {remedy}.")
        # MOSI's and MOSEI's ids are video$_$clip.
        videos = set.intersection(*({i.split("$_$")[0] for i in ids - shared if "$_$" in i} for ids in (one, other)))
        if videos:
            yield Finding("note", f"{both} {len(videos)} videos ({shorten(videos)}): the same speaker is in both.")


def shorten(names: Iterable[str]) -> str:
    """The first three names and, where there are more, dots."""
    names = sorted(names)
    return ", ".join(map(printable, names[:3])) + (", …" if len(names) > 3 else "")


def _verdict(path: str, content: dict, settings: EasyDict | None, to_predict: bool) -> Iterator[Finding]:
    """What reading the file for its use says, with BERT's tokens and with ready-made text features."""
    splits = (tuple(_splits(content)) or SPLITS) if to_predict else SPLITS
    first = _splits(content).get(splits[0], {})
    dims = [first[key].shape[2] if getattr(first.get(key), "ndim", 0) == 3 else 1 for key in FIELDS]
    args = EasyDict(featurePath=path, need_data_aligned=False, dataset_name="", feature_dims=dims)
    if settings:
        args.feature_dims = [dims[0], *settings.feature_dims[1:]]
    modes = {True: "text_bert", False: "text"}
    for use_bert in [mode for mode, key in modes.items() if key in first] or modes:
        args.use_bert, mode = use_bert, f"use_bert={str(use_bert).lower()}"
        # Copied two levels deep: taking a field out leaves it to the next round.
        raw = {name: dict(fields) if isinstance(fields, dict) else fields for name, fields in content.items()}
        try:
            take_features({path: raw}, args, [path] * 3, splits, to_predict)
            dims_needed = "" if use_bert else f", with feature_dims={dims}"
            yield Finding("ok", f"{mode}: can be {'predicted' if to_predict else 'trained'} on{dims_needed}.")
        except DataError as error:
            yield Finding("error", f"{mode}: {error}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dataset.check", description="Say what is in a feature pickle.")
    parser.add_argument("file")
    parser.add_argument("-d", "--dataset", default="", help="a data set of the config: check against its settings")
    parser.add_argument("--to-predict", action="store_true", help="for test.py --features: any split, labels or none")
    options = parser.parse_args(argv)
    findings = check_file(options.file, options.dataset, options.to_predict)
    print(*findings, sep="\n")
    errors = sum(finding.level == "error" for finding in findings)
    if errors and not options.to_predict:
        print("note  a file to predict on, without train, valid or labels, is checked with --to-predict.")
    if errors:
        raise DMDError(f"{options.file}: {errors} {'error' if errors == 1 else 'errors'}, above.")


if __name__ == "__main__":
    sys.exit(run_command(main))
