"""Feature pickles in the MMSA layout, read and verified.

Legend: N utterances, T_m steps and d_m width of modality m. Lists of three are [text, audio, vision].
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataset.pickles import load_pickle
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
HINTS = {
    "text_bert": " Set use_bert=false for a file without tokens.",
    "text": " python -m dataset.glove makes it from raw_text.",
}


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
    if not os.path.exists(path):
        raise DataError(_missing(path, args))
    sources = [str(file or path) for file in (feature_T, feature_A, feature_V)]
    raw = {source: load_splits(source) for source in dict.fromkeys([path, *sources])}
    return take_features(raw, args, sources, splits, to_predict)


def take_features(
    raw: dict[str, dict], args, sources: Sequence[str], splits: Sequence[str] = SPLITS, to_predict: bool = False
) -> FeatureSet:
    """Take the splits out of pickles that were read, {path: content}, and check them. `sources` are the paths of text,
    audio and vision, `to_predict` is as in load_features.

    The arrays leave `raw` and may be changed in place. Raises DataError.
    """
    path, keys = str(args.featurePath), ("text_bert" if args.use_bert else "text", "audio", "vision")
    parts = {name: _take_split(raw, path, name, keys, sources, to_predict) for name in splits}
    dims, steps = [], []
    for field, key, source, expected in zip(FIELDS, keys, sources, args.feature_dims, strict=True):
        shapes = {name: getattr(part, field).shape[1:] for name, part in parts.items()}
        if len(set(shapes.values())) > 1:
            raise DataError(
                f"{source}: '{key}' has other sizes in other splits: {shapes}. All splits must come from one "
                "extraction. Download the file again, or point featurePath elsewhere."
            )
        rows, columns = next(iter(shapes.values()))
        steps.append(columns if key == "text_bert" else rows)
        dims.append(expected if key == "text_bert" else columns)
    wrong = [s == path and own != expected for s, own, expected in zip(sources, dims, args.feature_dims, strict=True)]
    if any(wrong) and not to_predict:
        raise DataError(
            f"{path}: {', '.join(FIELDS)} are {dims} wide, but feature_dims is {list(args.feature_dims)}. Set "
            f"feature_dims={str(dims).replace(' ', '')}, or point featurePath to the file that was meant."
        )
    if args.need_data_aligned and set(sources) == {path} and len(set(steps)) > 1 and not to_predict:
        raise DataError(
            f"{path}: text, audio and vision have {steps} steps, so the file is unaligned, but "
            "need_data_aligned is true. Set need_data_aligned=false, or use the aligned file."
        )
    return FeatureSet(path, parts, dims, steps)


def load_splits(path: str) -> dict:
    """A pickle's content. Raises DataError if it is no dict, or as load_pickle does."""
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected a dict with the splits {list(SPLITS)}.")
    return content


def _missing(path: str, args) -> str:
    digest = PUBLISHED_SHA256.get((args.dataset_name, args.need_data_aligned))
    published = (
        " It is among the files that the MMSA project shares (linked from the README of MMSA on GitHub); its SHA-256 "
        f"is {digest}."
    )
    hint = " To try the program without a download: --dataset synthetic." if args.dataset_name != "synthetic" else ""
    return f"{path}: no such feature file.{published if digest else ''}{hint}"


def _take_split(
    raw: dict[str, dict], path: str, name: str, keys: Sequence[str], sources: Sequence[str], to_predict: bool
) -> Split:
    """Take one split out of the raw pickles (arrays are moved, not copied) and check it by itself."""
    content, where = raw[path], f"{path}: split '{name}'"
    ids = strings_of(_take(content, path, name, "id"), path, name, "id")
    arrays = []
    for key, source in zip(keys, sources, strict=True):
        array = numbers_of(_take(raw[source], source, name, key), source, name, key)
        field = f"{source}: '{key}' of split '{name}'"
        if array.ndim != 3 or len(array) != len(ids) or 0 in array.shape:
            raise DataError(f"{field} is {array.shape}; expected (N, steps, width) with N = {len(ids)}, as 'id' has.")
        if source != path and strings_of(raw[source][name].get("id", ids), source, name, "id") != ids:
            raise DataError(f"{field} is of other utterances than those of {path}, or in another order.")
        if key == "audio":  # published audio holds -inf (the logarithm of silence)
            array[np.isneginf(array)] = 0
        broken = ~np.isfinite(array).all(axis=(1, 2))
        if broken.any():
            raise DataError(f"{field} is NaN or infinite in {_named(broken, ids)}. Repair or remove them.")
        if key == "text_bert" and not _are_tokens(array):
            raise DataError(f"{field} is not (N, 3, steps) of token ids, attention masks (0, 1), segment ids (0, 1).")
        arrays.append(array)
    labels, labelled = np.full(len(ids), np.nan, np.float32), "regression_labels" in content[name] or not to_predict
    if labelled:
        key = "regression_labels"
        labels = numbers_of(_take(content, path, name, key), path, name, key).reshape(-1)
    raw_text = strings_of(content[name].get("raw_text", [""] * len(ids)), path, name, "raw_text")
    if not len(labels) == len(raw_text) == len(ids):
        raise DataError(
            f"{where} has {len(ids)} 'id', but {len(labels)} 'regression_labels' and {len(raw_text)} 'raw_text'."
        )
    wrong = ~(np.abs(labels) <= LARGEST_LABEL)  # NaN too
    if labelled and wrong.any():
        raise DataError(
            f"{where}: 'regression_labels' is no number in [-3, 3] in {_named(wrong, ids)}. Scale or repair the labels."
        )
    return Split(*arrays, labels=labels, ids=ids, raw_text=raw_text)


def _named(wrong: np.ndarray, ids: list[str]) -> str:
    """'5 utterances: a, b, c, …' of those where wrong (N,) is true."""
    shown = ", ".join(printable(ids[i]) for i in np.flatnonzero(wrong)[:3])
    return f"{int(wrong.sum())} utterances: {shown}{', …' if wrong.sum() > 3 else ''}"


def _take(content: dict, path: str, split: str, field: str):
    """A field of a split, removed from the content: what is converted need not be held twice."""
    if not isinstance(content.get(split), dict) or field not in content[split]:
        found = {printable(key): sorted(map(printable, value)) for key, value in content.items() if type(value) is dict}
        raise DataError(
            f"{path}: split '{split}' lacks the field '{field}'; the file has {printable(found, 600)}."
            f"{HINTS.get(field, '')}"
        )
    return content[split].pop(field)


def numbers_of(value, path: str, split: str, field: str) -> np.ndarray:
    """An array or a list of numbers as a writable float32 array, copied only where its type differs."""
    try:
        with np.errstate(over="ignore"):
            return np.require(value, np.float32, ["C", "W"])
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: '{field}' of split '{split}' is no array of numbers ({printable(error)}).") from error


def strings_of(value, path: str, split: str, field: str) -> list[str]:
    """A list or array (N,) of texts, or of numbers, as strings that can be written to any file."""
    try:
        texts = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in value]
    except (TypeError, ValueError, SystemError) as error:  # also an array of texts with bytes that are none
        raise DataError(f"{path}: '{field}' of split '{split}' is no list of strings ({printable(error)}).") from error
    return [text.encode("utf-8", "replace").decode() for text in texts]  # halves of surrogate pairs cannot be written


def _are_tokens(tokens: np.ndarray) -> bool:
    """Whether (N, 3, T) holds what BERT takes: whole numbers, and masks and segments of 0 and 1."""
    return tokens.shape[1] == 3 and (tokens >= 0).all() and not (tokens % 1).any() and tokens[:, 1:].max() <= 1
