"""Feature pickles in the MMSA layout, read and verified.

Legend: N utterances, T_m steps and d_m width of modality m. Lists of three are [text, audio, vision].
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.pickles import load_pickle, write_pickle
from dataset.synthetic import SYNTHETIC_FILE, generate
from utils.errors import DataError
from utils.files import sha256_of
from utils.reading import printable

SPLITS = ("train", "valid", "test")
FIELDS = ("text", "audio", "vision")  # of a Split; arguments and feature_dims have this order
PUBLISHED_SHA256 = {
    ("mosi", True): "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9",
    ("mosi", False): "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524",
    ("mosei", True): "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791",
    ("mosei", False): "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f",
}
# The settings that decide what is read.
DATA_SETTINGS = ("featurePath", "dataset_root_dir", "feature_dims", "use_bert", "need_data_aligned")
LABELS, LARGEST_LABEL = "regression_labels", 3
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
    made: str = ""  # how, where dataset.build says so
    text_path: str = ""  # the file of the text, where it is another one than `path`


def prepare_features(
    args,
    feature_T: str = "",  # noqa: N803
    feature_A: str = "",  # noqa: N803
    feature_V: str = "",  # noqa: N803
    splits: Sequence[str] = SPLITS,
    to_predict: bool = False,
) -> FeatureSet:
    """Read the pickle at args.featurePath, and replace text, audio or vision by another pickle's where one is given.
    The built-in synthetic data are made first where they are asked for and not there yet.

    Widths must be args.feature_dims, but a replaced modality takes the width of its file. A file `to_predict` on may
    lack labels, and has the widths and steps that it has: what they must be, the checkpoint says.

    Raises DataError, in one line, for whatever is wrong with a file.
    """
    path = str(args.featurePath)
    if args.dataset_name == "synthetic" and Path(path).match(SYNTHETIC_FILE) and not os.path.exists(path):
        write_pickle(Path(path), generate())  # another featurePath is the user's own, and must exist
    if not os.path.exists(path):
        digest = PUBLISHED_SHA256.get((args.dataset_name, args.need_data_aligned))
        source = f" The MMSA project shares it (see the README); its SHA-256 is {digest}." if digest else ""
        raise DataError(
            f"{os.path.abspath(path)}: no such feature file.{source} Without a download there is --dataset synthetic."
        )
    sources = [str(file or path) for file in (feature_T, feature_A, feature_V)]
    raw = {path: load_pickle(path) if to_predict else load_published(path, args.dataset_name, args.need_data_aligned)}
    for source in sources:
        if source not in raw:
            raw[source] = load_pickle(source)
    return take_features(raw, args, sources, splits, to_predict)


def load_published(path: str | Path, dataset_name: str, aligned: bool) -> dict:
    """Read a feature pickle like load_pickle. If it is unreadable and the published file of this data set has a known
    SHA-256, the error has that and the file's own, which differ for an incomplete download. Raises DataError, OSError.
    """
    try:
        return load_pickle(path)
    except DataError as error:
        published = PUBLISHED_SHA256.get((dataset_name, aligned))
        if published is None:
            raise
        raise DataError(f"{error} SHA-256 of this file: {sha256_of(path)}; published: {published}.") from error


def take_features(
    raw: dict[str, dict], args, sources: Sequence[str], splits: Sequence[str] = SPLITS, to_predict: bool = False
) -> FeatureSet:
    """Take the splits out of pickles that were read, {path: content}, and check them. `sources` are the paths of text,
    audio and vision, `to_predict` is as in prepare_features.

    The arrays leave `raw` and may be changed in place. Raises DataError.
    """
    path, keys = str(args.featurePath), ("text_bert" if args.use_bert else "text", "audio", "vision")
    parts = {name: _take_split(raw, path, name, keys, sources, to_predict) for name in splits}
    dims, steps = [], []
    for field, key, source, expected in zip(FIELDS, keys, sources, args.feature_dims, strict=True):
        shapes = {name: getattr(part, field).shape[1:] for name, part in parts.items()}
        if len(set(shapes.values())) > 1:
            raise DataError(f"{source}: '{key}' has other sizes in other splits: {shapes}. Extract all of them alike.")
        rows, columns = next(iter(shapes.values()))
        steps.append(columns if key == "text_bert" else rows)
        dims.append(expected if key == "text_bert" else columns)
    wrong = [s == path and dim != expected for s, dim, expected in zip(sources, dims, args.feature_dims, strict=True)]
    right = ""
    if any(wrong):
        right = f"feature_dims={str(dims).replace(' ', '')}"
    elif args.need_data_aligned and set(sources) == {path} and len(set(steps)) > 1:
        right = "need_data_aligned=false, as it is unaligned"
    if right and not to_predict:
        raise DataError(
            f"{path}: {', '.join(FIELDS)} are {dims} wide and have {steps} steps. Set {right}; or point featurePath to "
            "the file that was meant."
        )
    text_path = str(sources[0]) if sources[0] != path else ""
    return FeatureSet(path, parts, dims, steps, str(raw[path].get("made", "")), text_path)


def _take_split(
    raw: dict[str, dict], path: str, name: str, keys: Sequence[str], sources: Sequence[str], to_predict: bool
) -> Split:
    """Take one split out of the raw pickles (arrays are moved, not copied) and check it by itself."""
    ids = strings_of(_take(raw[path], path, name, "id"), path, name, "id")
    raw_text = strings_of(raw[path][name].get("raw_text", [""] * len(ids)), path, name, "raw_text")
    if len(raw_text) != len(ids):
        raise DataError(f"{path}: split '{name}' has {len(raw_text)} 'raw_text', but {len(ids)} 'id'.")
    arrays = []
    for key, source in zip(keys, sources, strict=True):
        arrays.append(_take_array(raw[source], source, name, key, ids))
        if source != path and strings_of(raw[source][name].get("id", ids), source, name, "id") != ids:
            raise DataError(f"{source}: split '{name}' is of other utterances than in {path}, or in another order.")
    if to_predict and LABELS not in raw[path][name]:
        labels = np.full(len(ids), np.nan, np.float32)
    else:
        labels = _take_array(raw[path], path, name, LABELS, ids)
    return Split(*arrays, labels, ids, raw_text)


def _take_array(content: dict, path: str, split: str, key: str, ids: list[str]) -> np.ndarray:
    """Take a field of numbers out of a pickle's content, and check it."""
    value, where = _take(content, path, split, key), f"{path}: '{key}' of split '{split}'"
    try:  # copied only where its type differs
        array = np.require(value, np.float32, ["C", "W"])
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where} is no array of numbers ({printable(error)}).") from error
    if key == LABELS:
        array = array.reshape(-1)
    expected = {LABELS: "(N,)", "text_bert": "(N, 3, steps)"}.get(key, "(N, steps, width)")
    fits = array.ndim == (1 if key == LABELS else 3) and (key != "text_bert" or array.shape[1] == 3)
    if not fits or len(array) != len(ids) or not array.size:
        raise DataError(f"{where} is {array.shape}; expected {expected} with N = {len(ids)}, as 'id' has.")
    if key == "audio":  # published audio holds -inf (the logarithm of silence)
        array[np.isneginf(array)] = 0
    if key == LABELS:
        what, right = "is no number in [-3, 3]", np.abs(array) <= LARGEST_LABEL
    elif key == "text_bert":
        what, right = "is not token ids, attention masks (0, 1) and segment ids (0, 1)", (array >= 0) & (array % 1 == 0)
        right[:, 1:] &= array[:, 1:] <= 1
    else:
        what, right = "is NaN or infinite", np.isfinite(array)
    wrong = [name for name, row in zip(ids, right, strict=True) if not row.all()]
    if wrong:
        raise DataError(f"{where} {what} in {len(wrong)} utterances: {shorten(wrong)}.")
    return array


def shorten(names: Iterable[str]) -> str:
    """The first three names and, where there are more, dots."""
    names = sorted(names)
    return ", ".join(map(printable, names[:3])) + (", …" if len(names) > 3 else "")


def _take(content: dict, path: str, split: str, field: str):
    """A field of a split, removed from the content: what is converted need not be held twice."""
    if not isinstance(content.get(split), dict) or field not in content[split]:
        found = {key: list(value) for key, value in content.items() if isinstance(value, dict)}
        hint = HINTS.get(field, "")
        raise DataError(f"{path}: split '{split}' lacks the field '{field}'; there are {printable(found, 600)}.{hint}")
    return content[split].pop(field)


def strings_of(value, path: str, split: str, field: str) -> list[str]:
    """A list or array (N,) of texts, or of numbers, as strings that can be written to any file."""
    try:
        texts = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in value]
    except (TypeError, ValueError, SystemError) as error:  # also an array of texts with bytes that are none
        raise DataError(f"{path}: '{field}' of split '{split}' is no list of strings ({printable(error)}).") from error
    return [text.encode("utf-8", "replace").decode() for text in texts]  # halves of surrogate pairs cannot be written
