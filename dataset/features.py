"""Feature pickles in the MMSA layout, read and verified.

Legend: N utterances, T_m steps and d_m width of modality m. Lists of three are [text, audio, vision].
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dataset.unpickling import load_pickle
from utils.errors import DataError
from utils.reading import printable

SPLITS = ("train", "valid", "test")
FIELDS = ("text", "audio", "vision")  # of a Split; arguments and feature_dims have this order
PUBLISHED_SHA256 = {
    ("mosi", True): "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9",
    ("mosi", False): "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524",
    ("mosei", True): "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791",
    ("mosei", False): "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f",
}
LARGEST_LABEL = 3
PART_BYTES = 2**24
MENDED_BY = {
    "text_bert": " Set use_bert=false for a file without tokens.",
    "text": " python -m dataset.glove makes it of raw_text.",
}
ONE_EXTRACTION = "All splits must come from one extraction. Download the file again, or point featurePath elsewhere."


@dataclass(frozen=True)
class Split:
    """The utterances of one split; arrays are float32."""

    text: np.ndarray  # (N, T_l, d_l) features, or (N, 3, T_l) input ids, attention mask, segment ids for BERT
    audio: np.ndarray  # (N, T_a, d_a)
    vision: np.ndarray  # (N, T_v, d_v)
    labels: np.ndarray  # (N,) sentiment; NaN where the file has no labels
    ids: list[str]
    raw_text: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        return not np.isnan(self.labels).any()


@dataclass(frozen=True)
class FeatureSet:
    """Splits that agree with each other, and the sizes a model for them needs."""

    path: str
    splits: dict[str, Split]
    feature_dims: list[int]  # widths; with BERT the first is what the config says
    seq_lens: list[int]  # steps


def load_features(
    args,
    feature_T: str = "",  # noqa: N803
    feature_A: str = "",  # noqa: N803
    feature_V: str = "",  # noqa: N803
    splits: Sequence[str] = SPLITS,
    to_predict: bool = False,
) -> FeatureSet:
    """Read the pickle at args.featurePath, and replace text, audio or vision by another pickle's where one is given.

    Widths must be args.feature_dims, but a replaced modality takes the width of its file. A file `to_predict` on may
    lack labels, and has the widths and steps that it has: what they must be, the checkpoint says.

    Raises DataError, in one line, for whatever is wrong with a file.
    """
    path = str(args.featurePath)
    source_of = dict(zip(FIELDS, (str(f or path) for f in (feature_T, feature_A, feature_V)), strict=True))
    raw = {source: _read(source, args) for source in dict.fromkeys([path, *source_of.values()])}
    return take_features(raw, args, source_of, splits, to_predict)


def take_features(
    raw: dict[str, dict], args, source_of: dict[str, str], splits: Sequence[str] = SPLITS, to_predict: bool = False
) -> FeatureSet:
    """Take the splits out of pickles that were read, {path: content}, and check them; `source_of` each field is a path,
    `to_predict` is as in load_features.

    The arrays leave `raw` and may be changed in place. Raises DataError.
    """
    path, field_of = str(args.featurePath), {"text": "text_bert" if args.use_bert else "text"}
    parts = {name: _read_split(raw, path, source_of, field_of, name, args.use_bert, to_predict) for name in splits}
    raw.clear()

    first_name, first = next(iter(parts.items()))
    widths, steps = {}, {}
    for field, expected in zip(FIELDS, args.feature_dims, strict=True):
        source, key = source_of[field], field_of.get(field, field)
        tokens = field == "text" and args.use_bert
        for name, part in parts.items():
            shape, reference = getattr(part, field).shape, getattr(first, field).shape
            for axis, unit in ((1, "steps long"), (2, "wide")):
                if shape[axis] != reference[axis]:
                    unit = "steps long" if tokens else unit
                    raise DataError(
                        f"{source}: '{key}' of split '{name}' is {shape}, but '{first_name}' is {reference[axis]} "
                        f"{unit}. {ONE_EXTRACTION}"
                    )
        _, rows, columns = getattr(first, field).shape
        widths[field], steps[field] = (expected, columns) if tokens else (columns, rows)
        if widths[field] != expected and source == path and not to_predict:
            theirs = [own if f == "text" and args.use_bert else getattr(first, f).shape[2]
                      for f, own in zip(FIELDS, args.feature_dims, strict=True)]  # fmt: skip
            raise DataError(
                f"{path}: '{key}' is {columns} wide, but feature_dims says {expected} for {field}. Set "
                f"feature_dims={str(theirs).replace(' ', '')}, or point featurePath to the file that was meant."
            )
    one_file = source_of == dict.fromkeys(FIELDS, path)
    if args.need_data_aligned and one_file and len(set(steps.values())) > 1 and not to_predict:
        raise DataError(
            f"{path}: text, audio and vision have {list(steps.values())} steps, so the file is unaligned, but "
            "need_data_aligned is true. Set need_data_aligned=false, or use the aligned file."
        )
    return FeatureSet(path, parts, list(widths.values()), list(steps.values()))


def _read(path: str, args) -> dict:
    if not os.path.exists(path):
        raise DataError(_missing(path, args))
    return load_splits(path)


def load_splits(path: str) -> dict:
    """A pickle's content. Raises DataError if it is no dict, or as load_pickle does."""
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected a dict with the splits {list(SPLITS)}.")
    return content


def _missing(path: str, args) -> str:
    digest = PUBLISHED_SHA256.get((args.dataset_name, args.need_data_aligned))
    published = (
        f" The published file is among those that the MMSA project shares (a Google Drive and a Baidu folder, "
        f"linked from the README of MMSA and MMSA-FET on GitHub); its SHA-256 is {digest}."
        if digest
        else ""
    )
    hint = " To try the program without a download: --dataset synthetic." if args.dataset_name != "synthetic" else ""
    return f"{path}: no such feature file.{published}{hint}"


def _read_split(
    raw: dict[str, dict], path: str, source_of: dict, field_of: dict, name: str, use_bert: bool, to_predict: bool
) -> Split:
    """Take one split out of the raw pickles (arrays are moved, not copied) and check it by itself."""
    ids = strings_of(_take(raw[path], path, name, "id"), path, name, "id")
    where = f"split '{name}'"
    if not ids:
        raise DataError(f"{path}: {where} has no utterance. Each split needs at least one.")
    arrays = {}
    for field in FIELDS:
        source, key = source_of[field], field_of.get(field, field)
        array = numbers_of(_take(raw[source], source, name, key), source, name, key, ndim=3)
        if len(array) != len(ids):
            raise DataError(f"{source}: '{key}' of {where} has {len(array)} utterances, but 'id' of {path} {len(ids)}.")
        if 0 in array.shape:
            raise DataError(f"{source}: '{key}' of {where} is {array.shape}: an axis is empty.")
        if source != path:
            _check_same_utterances(raw[source], source, path, name, ids)
        if field == "audio":  # published audio holds -inf (the logarithm of silence)
            for part in parts_of(array):
                part[np.isneginf(part)] = 0
        _check_finite(array, source, name, key, ids)
        if field == "text" and use_bert:
            _check_tokens(array, source, name)
        arrays[field] = array
    if to_predict and "regression_labels" not in raw[path][name]:
        labels = np.full(len(ids), np.nan, np.float32)
    else:
        labels = _take_labels(raw, path, name, ids)
    texts = raw[path][name].get("raw_text")
    raw_text = [""] * len(ids) if texts is None else strings_of(texts, path, name, "raw_text")
    if len(raw_text) != len(ids):
        raise DataError(f"{path}: 'raw_text' of {where} has {len(raw_text)} entries, but 'id' {len(ids)}.")
    return Split(**arrays, labels=labels, ids=ids, raw_text=raw_text)


def _take_labels(raw: dict[str, dict], path: str, name: str, ids: list[str]) -> np.ndarray:
    labels = _take(raw[path], path, name, "regression_labels")
    labels = np.array(numbers_of(labels, path, name, "regression_labels")).reshape(-1)
    if len(labels) != len(ids):
        raise DataError(
            f"{path}: 'regression_labels' of split '{name}' has {len(labels)} entries, but 'id' {len(ids)}."
        )
    _check_finite(labels, path, name, "regression_labels", ids)
    _check_range(labels, path, name, ids)
    return labels


def _take(content: dict, path: str, split: str, field: str):
    """A field of a split, removed from the content: what is converted need not be held twice."""
    if not isinstance(content.get(split), dict):
        raise DataError(f"{path}: the split '{split}' is missing or no dict; it has {_names(content)}.")
    if field not in content[split]:
        hint = MENDED_BY.get(field, "")
        raise DataError(f"{path}: split '{split}' lacks the field '{field}'; it has {_names(content[split])}.{hint}")
    return content[split].pop(field)


def _names(keys) -> list[str]:
    return sorted(printable(key) for key in keys)[:16]


def numbers_of(value, path: str, split: str, field: str, ndim: int | None = None) -> np.ndarray:
    """The value as a writable float32 array, copied only where its type differs."""
    try:
        _check_numbers(value)
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"its type is {array.dtype}")
        with np.errstate(over="ignore"):
            array = np.require(array, np.float32, ["C", "W"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: '{field}' of split '{split}' is no array of numbers ({error}).") from error
    if ndim is not None and array.ndim != ndim:
        raise DataError(
            f"{path}: '{field}' of split '{split}' is {array.shape}; expected {ndim} axes (N, steps, width)."
        )
    return array


def _check_numbers(value) -> None:
    """Raise ValueError where lists hold anything else: numpy makes room for the longest text in every place."""
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_numbers(item)
    elif not isinstance(value, (int, float, np.generic, np.ndarray)) or np.asarray(value).dtype.kind not in "fiub":
        raise ValueError(f"it holds a {type(value).__name__}")


def parts_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """Views of a few utterances each: what is computed of an array of gigabytes must not be of its size."""
    rows = max(1, PART_BYTES * len(array) // array.nbytes)
    return (array[start : start + rows] for start in range(0, len(array), rows))


def strings_of(value, path: str, split: str, field: str) -> list[str]:
    if not isinstance(value, (list, tuple, np.ndarray)) or getattr(value, "ndim", 1) != 1:
        raise DataError(f"{path}: '{field}' of split '{split}' is no list of strings.")
    try:
        return [_string(item, path, split, field) for item in value]
    except (SystemError, ValueError) as error:  # an array of texts with bytes that are none
        raise DataError(f"{path}: '{field}' of split '{split}' is no list of strings ({error}).") from error


def _string(item, path: str, split: str, field: str) -> str:
    """A text or number as a string that can be written to any file."""
    if isinstance(item, bytes):
        return item.decode("utf-8", "replace")
    if not isinstance(item, (str, float, np.number, type(None))) and not (type(item) is int and abs(item) < 2**64):
        found = type(item).__name__
        raise DataError(f"{path}: '{field}' of split '{split}' is no list of strings: it holds a {found}.")
    return str(item).encode("utf-8", "replace").decode()  # halves of surrogate pairs cannot be written


def _check_same_utterances(content: dict, source: str, path: str, split: str, ids: list[str]) -> None:
    if "id" not in content[split]:
        return
    theirs = strings_of(content[split]["id"], source, split, "id")
    for ours, other in zip(ids, theirs, strict=False):
        if ours != other:
            raise DataError(
                f"{source}: split '{split}' has utterance {other!r} where {path} has {ours!r}. Features that replace "
                "others must list the same utterances in the same order."
            )


def _check_finite(array: np.ndarray, path: str, split: str, field: str, ids: list[str]) -> None:
    bad = np.concatenate([~np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in parts_of(array)])
    if bad.any():
        named = ", ".join(repr(ids[i])[1:-1] for i in np.flatnonzero(bad)[:3])
        raise DataError(
            f"{path}: '{field}' of split '{split}' is not finite (NaN or infinite) in {int(bad.sum())} utterances: "
            f"{named}{', …' if bad.sum() > 3 else ''}. Repair or remove them."
        )


def _check_range(labels: np.ndarray, path: str, split: str, ids: list[str]) -> None:
    outside = np.flatnonzero(np.abs(labels) > LARGEST_LABEL)
    if len(outside):
        named = ", ".join(f"{printable(ids[i])} ({labels[i]:g})" for i in outside[:3])
        raise DataError(
            f"{path}: 'regression_labels' of split '{split}' is outside [-3, 3] in {len(outside)} utterances: "
            f"{named}{', …' if len(outside) > 3 else ''}. Scale the labels to [-3, 3]."
        )


def _check_tokens(tokens: np.ndarray, path: str, split: str) -> None:
    if tokens.shape[1] != 3:
        raise DataError(f"{path}: 'text_bert' of split '{split}' is {tokens.shape}; expected (N, 3, steps).")
    if (tokens < 0).any() or (tokens != np.rint(tokens)).any():
        raise DataError(f"{path}: 'text_bert' of split '{split}' holds other numbers than token ids.")
    if tokens[:, 1:].max() > 1:
        raise DataError(
            f"{path}: 'text_bert' of split '{split}' has attention masks or segment ids other than 0 and 1."
        )
