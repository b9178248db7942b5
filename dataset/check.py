"""What is in a feature pickle, and what is wrong or odd about it.

python -m dataset.check dataset/MOSI/aligned_50.pkl -d mosi
"""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from easydict import EasyDict

from config import load_config
from dataset.features import (
    FIELDS,
    LARGEST_LABEL,
    PUBLISHED_SHA256,
    SPLITS,
    FeatureSet,
    load_splits,
    numbers_of,
    parts_of,
    strings_of,
    take_features,
)
from utils.cli import run_command
from utils.errors import ConfigError, DataError, DMDError
from utils.files import sha256_of
from utils.reading import printable, read_json

BERT_BASE = (30522, "bert-base-uncased", 512)  # size of its vocabulary, name, positions
PROJECT_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Finding:
    """One thing found: level is 'ok', 'note' (may be as it should) or 'error' (training would be wrong or fail)."""

    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:5} {self.text}"


def check_file(
    path: str | Path, dataset_name: str = "", to_predict: bool = False, vocabulary: tuple[int, str] | None = None
) -> list[Finding]:
    """Everything there is to say about a feature pickle; with `dataset_name`, also whether it fits that data set's
    settings in config/config.json.

    to_predict  the file is not trained on: any of the splits will do, and labels may be absent
    vocabulary  size and name of the one that the text is tokenised with (default: the data set's)

    Raises DataError if the file cannot be read at all, ConfigError for a data set that is not in the config.
    """
    content = load_splits(str(path))
    for name, fields in _splits(content).items():
        for key in (*FIELDS, "text_bert", "regression_labels"):
            if isinstance(fields.get(key), list):
                with contextlib.suppress(DataError):  # the verdict says so
                    fields[key] = numbers_of(fields[key], str(path), name, key)
    findings = [*_digest(str(path), dataset_name.lower()), *_layout(content)]
    bert = (*vocabulary, None) if vocabulary else _bert(dataset_name)
    for name, fields in _splits(content).items():
        findings += [*_arrays(name, fields), *_labels(name, fields), *_tokens(name, fields, *bert)]
    return findings + [*_identities(content), *_verdict(str(path), content, dataset_name, to_predict)]


def _splits(content: dict) -> dict[str, dict]:
    return {name: content[name] for name in SPLITS if isinstance(content.get(name), dict)}


def _digest(path: str, dataset_name: str) -> Iterator[Finding]:
    digest = sha256_of(path)
    for (name, aligned), published in PUBLISHED_SHA256.items():
        if digest == published:
            kind = f"the published {'aligned' if aligned else 'unaligned'} features of {name}"
            if dataset_name in ("", name):
                yield Finding("ok", f"SHA-256 {digest}: {kind}.")
            else:
                yield Finding("error", f"SHA-256 {digest}: {kind}. Use it with -d {name}.")
            return
    yield Finding("note", f"SHA-256 {digest}: no published file; published numbers cannot be expected of it.")


def _layout(content: dict) -> Iterator[Finding]:
    """Fields of each split with shape and type."""
    for name, fields in _splits(content).items():
        shown = [f"{printable(key)} {_describe(value)}" for key, value in list(fields.items())[:32]]
        yield Finding("ok", f"{name}: {', '.join(shown)}.")
        missing = [key for key in ("text", "text_bert", "raw_text") if key not in fields]
        uses = {"text": "use_bert=false", "text_bert": "use_bert=true", "raw_text": "a table of predictions with texts"}
        for key in missing:
            yield Finding("note", f"{name}: no field '{key}', which {uses[key]} needs.")
    others = [printable(key) for key in content if key not in SPLITS]
    if others:
        yield Finding("note", f"beside {', '.join(SPLITS)} there is {', '.join(others[:8])}, which is not read.")


def _describe(value) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


def _array(fields: dict, key: str, ndim: int = 3) -> np.ndarray | None:
    """The field if it is an array that can be looked into; what else is wrong with it, the verdict says."""
    value = fields.get(key)
    fits = isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.ndim == ndim and value.size
    return value if fits else None


def _arrays(split: str, fields: dict) -> Iterator[Finding]:
    """Numbers that are not finite, features that never change, lengths and the side of the padding."""
    for key in FIELDS:
        array = _array(fields, key)
        if array is None:
            continue
        nan = silent = 0
        low, high = np.full(array.shape[2], np.inf), np.full(array.shape[2], -np.inf)
        real = []
        for part in parts_of(array):
            nan += int(np.isnan(part).sum())
            silent += int((part == -np.inf).sum())
            with np.errstate(invalid="ignore"):
                low, high = np.fmin(low, np.fmin.reduce(part, (0, 1))), np.fmax(high, np.fmax.reduce(part, (0, 1)))
            real.append((part != 0).any(axis=2))
        where = f"{split}: '{key}'"
        if nan:
            yield Finding("error", f"{where} holds {nan} NaN. Repair or remove these utterances.")
        if silent:
            known = "read as 0, as in the published files" if key == "audio" else "which only audio may hold"
            yield Finding("note" if key == "audio" else "error", f"{where} holds {silent} times -inf, {known}.")
        constant = np.flatnonzero(low == high)
        if len(constant) == array.shape[2] and not low.any():
            yield Finding("note", f"{where} is all zero: a dead modality, from which nothing can be learned.")
        elif len(constant):
            yield Finding("note", f"{where} has {len(constant)} of {array.shape[2]} features that never change: "
                                  f"{constant[:8].tolist()}.")  # fmt: skip
        yield _padding(where, np.concatenate(real))
    tokens = _array(fields, "text_bert")
    if tokens is not None and tokens.shape[1] == 3:
        yield _padding(f"{split}: 'text_bert'", tokens[:, 1] != 0)


def _padding(where: str, real: np.ndarray) -> Finding:
    """real (N, T): steps that are not padding."""
    steps = real.shape[1]
    filled = real.any(axis=1)
    before = np.where(filled, real.argmax(axis=1), 0)
    behind = np.where(filled, real[:, ::-1].argmax(axis=1), 0)
    lengths = np.where(filled, steps - before - behind, 0)
    n_before, n_behind = int((before > 0).sum()), int((behind > 0).sum())
    text = (
        f"{where}: {lengths.min()} to {lengths.max()} of {steps} steps, median {np.median(lengths):g}; padded in front "
        f"in {n_before} and behind in {n_behind} utterances; {int((~filled).sum())} empty."
    )
    return Finding("note" if n_before and n_behind else "ok", text)


def _labels(split: str, fields: dict) -> Iterator[Finding]:
    labels = fields.get("regression_labels")
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "fiub":
        return  # the verdict says so
    labels = labels.ravel()
    inside = labels[np.abs(labels) <= LARGEST_LABEL]
    counts = Counter(np.rint(inside).astype(int).tolist())
    histogram = ", ".join(f"{value:+d}: {counts[value]}" for value in range(-LARGEST_LABEL, LARGEST_LABEL + 1))
    outside = len(labels) - len(inside)
    yield Finding("ok", f"{split}: rounded labels {histogram}; outside [-3, 3]: {outside}.")


def _bert(dataset_name: str) -> tuple[int | None, str, int | None]:
    """Of the BERT that the tokens must be of: how many words it knows, its name, how many positions it has; None
    where that cannot be told without the hub."""
    pretrained = load_config("dmd", dataset_name).pretrained if dataset_name else BERT_BASE[1]
    for folder in (Path(pretrained), PROJECT_ROOT / pretrained):
        try:
            description = read_json(folder / "config.json")
            return int(description["vocab_size"]), pretrained, int(description["max_position_embeddings"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a local folder
    return BERT_BASE if pretrained == BERT_BASE[1] else (None, pretrained, None)


def _tokens(split: str, fields: dict, size: int | None, name: str, positions: int | None) -> Iterator[Finding]:
    tokens = _array(fields, "text_bert")
    if tokens is None:
        return
    if positions is not None and tokens.shape[2] > positions:
        yield Finding("error", f"{split}: 'text_bert' has {tokens.shape[2]} steps, but {name} has {positions} "
                               "positions. Cut the text, or set pretrained to another BERT.")  # fmt: skip
    if size is None:
        yield Finding("note", f"{split}: token ids up to {tokens[:, 0].max():g}; the vocabulary of {name} is not known "
                              "here.")  # fmt: skip
        return
    outside = int((tokens[:, 0] >= size).sum())
    level, hint = ("error", f" {outside} are outside it: set pretrained to their BERT.") if outside else ("ok", "")
    highest = tokens[:, 0].max()
    yield Finding(level, f"{split}: token ids up to {highest:g}; the vocabulary of {name} has {size}.{hint}")


def _identities(content: dict) -> Iterator[Finding]:
    """Utterances that occur twice, and videos of which splits share utterances."""
    seen = {}
    for name, fields in _splits(content).items():
        try:
            ids = strings_of(fields.get("id"), "", name, "id")
        except DataError:
            continue  # the verdict says so
        twice = [item for item, count in Counter(ids).items() if count > 1]
        if twice:
            yield Finding("note", f"{name}: {len(twice)} ids occur more than once ({few(twice)}); they weigh more.")
        seen[name] = set(ids)
    for first, second in (("train", "valid"), ("train", "test"), ("valid", "test")):
        ours, theirs = seen.get(first, set()), seen.get(second, set())
        shared = ours & theirs
        if shared:
            yield Finding("error", f"{first} and {second} share {len(shared)} utterances ({few(shared)}): scores "
                                   "would be of what was trained on. Remove them from one of the two.")  # fmt: skip
        videos = {_video(item) for item in ours - shared} & {_video(item) for item in theirs - shared} - {""}
        if videos:
            yield Finding("note", f"{first} and {second} share {len(videos)} videos ({few(videos)}): the same speaker "
                                  "is in both.")  # fmt: skip


def _video(utterance: str) -> str:
    """MOSI's and MOSEI's ids are video$_$clip."""
    video, mark, _ = utterance.partition("$_$")
    return video if mark else ""


def few(names) -> str:
    """The first three names and, where there are more, dots."""
    return ", ".join(map(printable, sorted(names)[:3])) + (", …" if len(names) > 3 else "")


def _verdict(path: str, content: dict, dataset_name: str, to_predict: bool) -> Iterator[Finding]:
    """What reading the file for its use says, with BERT's tokens and with ready-made text features."""
    present = _splits(content)
    splits, use = (tuple(present) or SPLITS, "predicted on") if to_predict else (SPLITS, "trained on")
    first = present.get(splits[0], {})
    widths = [np.shape(_array(first, key))[-1:] or (1,) for key in FIELDS]
    steps_axis = dict.fromkeys(FIELDS, 1) | {"text_bert": 2}
    lengths = {_array(first, key).shape[axis] for key, axis in steps_axis.items() if _array(first, key) is not None}
    said = set()
    for use_bert in (True, False):
        if ("text_bert" if use_bert else "text") not in first and (use_bert or "text_bert" in first):
            continue  # a note says so
        args = EasyDict(featurePath=path, use_bert=use_bert, need_data_aligned=False, dataset_name=dataset_name)
        args.feature_dims = [width[0] for width in widths]
        settings = None
        if dataset_name:
            aligned = len(lengths) == 1
            try:
                settings = load_config("dmd", dataset_name, overrides={"need_data_aligned": aligned})
            except ConfigError as error:  # the data set has features of the other layout only
                yield Finding("error", f"{error}")
                return
            args.need_data_aligned, args.feature_dims[1:] = aligned, settings.feature_dims[1:]
        # Copied two levels deep: taking a field out leaves it to the next round.
        raw = {name: dict(fields) if isinstance(fields, dict) else fields for name, fields in content.items()}
        mode = f"use_bert={str(use_bert).lower()}"
        try:
            features = take_features({path: raw}, args, dict.fromkeys(FIELDS, path), splits, to_predict)
            short = list(_too_short(features, settings)) if settings else []
            yield from (Finding("error", f"{mode}: {text}") for text in short)
            if short:
                continue
            widths_needed = "" if use_bert else f", with feature_dims={json.dumps(args.feature_dims)}"
            yield Finding("ok", f"{mode}: can be {use}{widths_needed}.")
        except DataError as error:
            if str(error) not in said:
                yield Finding("error", f"{mode}: {error}")
            said.add(str(error))


def _too_short(features: FeatureSet, settings) -> Iterator[str]:
    """What a convolution cannot span, by the settings of a data set."""
    for letter, field, steps in zip("lav", FIELDS, features.seq_lens, strict=True):
        key = f"conv1d_kernel_size_{letter}"
        if steps < settings[key]:
            yield f"'{field}' has {steps} steps, but {key} is {settings[key]}. Set it to at most {steps}."


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m dataset.check", description="Say what is in a feature pickle.")
    parser.add_argument("file")
    parser.add_argument("-d", "--dataset", default="", help="a data set of the config: check against its settings")
    parser.add_argument("--to-predict", action="store_true", help="for test.py --features: any split, labels or none")
    options = parser.parse_args(argv)
    findings = check_file(options.file, options.dataset, options.to_predict)
    for finding in findings:
        print(" ".join(str(finding).split("\n")))
    errors = sum(finding.level == "error" for finding in findings)
    if errors and not options.to_predict:
        print("note  a file to predict on, without train, valid or labels, is checked with --to-predict.")
    if errors:
        raise DMDError(f"{options.file}: {errors} {'error' if errors == 1 else 'errors'}, above.")


if __name__ == "__main__":
    sys.exit(run_command(main))
