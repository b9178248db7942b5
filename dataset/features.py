"""Read and check feature pickles in the layout of MMSA or MulT.

Legend: N utterances, T_m steps and d_m width of modality m. Lists of three are [text, audio,
vision].
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset import mult
from dataset.pickles import load_pickle, write_pickle
from dataset.synthetic import SYNTHETIC_FILE, generate
from utils.errors import DataError
from utils.files import sha256_of
from utils.reading import printable

SPLITS = ("train", "valid", "test")
FIELDS = ("text", "audio", "vision")  # of a Split; arguments and feature_dims have this order
PUBLISHED_SHA256 = {  # by name of the data set and need_data_aligned
    ("mosi", True): "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9",
    ("mosi", False): "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524",
    ("mosei", True): "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791",
    ("mosei", False): "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f",
}
# The settings that determine which data are read.
DATA_SETTINGS = (
    "featurePath",
    "dataset_root_dir",
    "feature_dims",
    "use_bert",
    "need_data_aligned",
)
LABELS = "regression_labels"
LARGEST_LABEL = 3
GLOVE_WIDTH = 300
BERT_WIDTH = 768
HINTS = {  # for a field that is missing
    "text_bert": " Set use_bert=false for a file without tokens.",
    "text": " python -m dataset.glove makes it from raw_text.",
}


@dataclass(frozen=True)
class Split:
    """The utterances of one split; arrays are float32."""

    text: np.ndarray  # (N, T_l, d_l) features, or (N, 3, T_l) token ids, mask and segment ids
    audio: np.ndarray  # (N, T_a, d_a)
    vision: np.ndarray  # (N, T_v, d_v)
    labels: np.ndarray  # (N,) sentiment in [-3, 3]; NaN if the file has no labels
    ids: list[str]
    raw_text: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labeled(self) -> bool:
        """Whether the utterances have labels."""
        return not np.isnan(self.labels).any()


@dataclass(frozen=True)
class FeatureSet:
    """The splits of a data set, and the sizes that a model for them needs."""

    path: str
    splits: dict[str, Split]
    feature_dims: list[int]  # widths; with BERT the first is taken from the settings
    seq_lens: list[int]  # steps
    provenance: str = ""  # how dataset.build made the file; empty for other files
    text_path: str = ""  # the file of the text, if it is not `path`


def prepare_features(
    args,
    feature_T: str = "",  # noqa: N803
    feature_A: str = "",  # noqa: N803
    feature_V: str = "",  # noqa: N803
    splits: Sequence[str] = SPLITS,
    to_predict: bool = False,
) -> FeatureSet:
    """Read and check the features of a data set.

    The built-in synthetic data are generated first if their file is missing.

    Args:
        args: Settings: dataset_name, featurePath, feature_dims, use_bert, need_data_aligned.
        feature_T: A pickle whose text replaces that of featurePath; its width may differ.
        feature_A: The same for audio.
        feature_V: The same for vision.
        splits: The splits to read; others may be missing.
        to_predict: The file may lack labels, and its widths and steps may differ from `args`: the
            checkpoint defines them.

    Returns:
        The features, with widths args.feature_dims except for replaced modalities.

    Raises:
        DataError: A file is missing, unreadable or invalid.
    """
    path = str(args.featurePath)
    is_synthetic = args.dataset_name == "synthetic" and Path(path).match(SYNTHETIC_FILE)
    if is_synthetic and not os.path.exists(path):
        write_pickle(Path(path), generate())
    # A file to predict on is the user's own and has no published checksum.
    dataset_name = "" if to_predict else args.dataset_name
    if not os.path.exists(path):
        raise DataError(_explain_missing_file(path, args.dataset_name, args.need_data_aligned))

    raw = {path: load_published(path, dataset_name, args.need_data_aligned)}
    sources = []
    for replacement in (feature_T, feature_A, feature_V):
        source = str(replacement or path)
        sources.append(source)
        if source not in raw:
            raw[source] = load_pickle(source)
    return take_features(raw, args, sources, splits, to_predict)


def load_published(path: str | Path, dataset_name: str, aligned: bool) -> dict:
    """Read a feature pickle; if it is unreadable, compare its checksum with the published one.

    Args:
        path: The file.
        dataset_name: "mosi" and "mosei" have published files; others are read by load_pickle alone.
        aligned: Compare with the aligned or the unaligned published file.

    Returns:
        The content, {split: {field: values}}.

    Raises:
        DataError: The file is unreadable.
        OSError: It cannot be opened.
    """
    try:
        return load_pickle(path)
    except DataError as error:
        published = PUBLISHED_SHA256.get((dataset_name, aligned))
        if published is None:
            raise
        raise DataError(
            f"{error} SHA-256 of this file: {sha256_of(path)}; published: {published}."
        ) from error


def take_features(
    raw: dict[str, dict],
    args,
    sources: Sequence[str],
    splits: Sequence[str] = SPLITS,
    to_predict: bool = False,
) -> FeatureSet:
    """Take the splits out of pickles that have been read, and check them.

    Args:
        raw: {path: content}. Arrays are removed from it, and may be changed in place. MulT's
            layout is converted.
        args: Settings, as for prepare_features.
        sources: The paths of text, audio and vision.
        splits: The splits to take.
        to_predict: As in prepare_features.

    Returns:
        The features.

    Raises:
        DataError: The content is invalid.
    """
    path = str(args.featurePath)
    keys = ("text_bert" if args.use_bert else "text", "audio", "vision")
    _convert_layout(raw, args.use_bert, sources[0])
    parts = {}
    for name in splits:
        parts[name] = _pop_split(raw, path, name, keys, sources, to_predict)

    dims = []
    steps = []
    for i, field in enumerate(FIELDS):
        shape = _shape_in_all_splits(parts, field, keys[i], sources[i])
        if keys[i] == "text_bert":  # (3, steps); the encoder determines the width
            dims.append(args.feature_dims[i])
            steps.append(shape[1])
        else:  # (steps, width)
            dims.append(shape[1])
            steps.append(shape[0])
    if not to_predict:
        _check_sizes(args, sources, dims, steps)
    return FeatureSet(
        path,
        parts,
        feature_dims=dims,
        seq_lens=steps,
        provenance=read_provenance(raw[path]),
        text_path="" if sources[0] == path else str(sources[0]),
    )


def read_provenance(content: dict) -> str:
    """Read how dataset.build made a pickle.

    Args:
        content: Content of a pickle. Those of earlier versions have the key `made` instead of
            `provenance`, and flags by their former names.

    Returns:
        A description with the current names; empty if the pickle has none.
    """
    if "provenance" in content:
        return str(content["provenance"])
    made = str(content.get("made", ""))
    return made.replace("--average", "--pool-to").replace("standardised", "standardized")


def video_of(utterance_id: str) -> str:
    """The video of an id of the form video$_$clip, as in MOSI and MOSEI; empty for other ids."""
    return utterance_id.rpartition("$_$")[0]


def shorten(names: Iterable[str]) -> str:
    """The first three names in order, and an ellipsis if there are more."""
    names = sorted(names)
    shown = ", ".join(printable(name) for name in names[:3])
    return f"{shown}, …" if len(names) > 3 else shown


def to_strings(values, path: str, split: str, field: str) -> list[str]:
    """Convert texts, bytes or numbers to strings that can be written to any file.

    Args:
        values: A list or array (N,).
        path: The file, for the error message.
        split: The split, for the error message.
        field: The field, for the error message.

    Returns:
        N strings.

    Raises:
        DataError: They cannot be converted.
    """
    texts = []
    try:
        for value in values:
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            texts.append(text.encode("utf-8", "replace").decode())  # without lone surrogates
    except (TypeError, ValueError, SystemError) as error:  # also numpy's, for damaged strings
        raise DataError(
            f"{path}: '{field}' of split '{split}' is not a list of strings ({printable(error)})."
        ) from error
    return texts


def _explain_missing_file(path: str, dataset_name: str, aligned: bool) -> str:
    """The message for a file that does not exist."""
    source = ""
    digest = PUBLISHED_SHA256.get((dataset_name, aligned))
    if digest:
        source = f" The MMSA project shares it (see the README); its SHA-256 is {digest}."
    elif dataset_name in mult.SIZES:
        source = " The authors of MulT share it (github.com/yaohungt/Multimodal-Transformer)."
    return (
        f"{os.path.abspath(path)}: no such feature file.{source} "
        "Without a download, use --dataset synthetic."
    )


def _shape_in_all_splits(
    parts: dict[str, Split], field: str, key: str, source: str
) -> tuple[int, int]:
    """The shape of an utterance's array. Raises DataError if it differs between splits."""
    shapes = {}
    for name, part in parts.items():
        shapes[name] = getattr(part, field).shape[1:]
    if len(set(shapes.values())) > 1:
        raise DataError(
            f"{source}: the size of '{key}' differs between splits: {shapes}. Extract all splits "
            "with the same settings."
        )
    return next(iter(shapes.values()))


def _check_sizes(args, sources: Sequence[str], dims: list[int], steps: list[int]) -> None:
    """Raise DataError if widths or steps contradict the settings."""
    path = str(args.featurePath)
    expects_glove = not args.use_bert and args.feature_dims[0] == GLOVE_WIDTH
    if expects_glove and sources[0] == path and dims[0] == BERT_WIDTH:
        raise DataError(
            f"{path}: 'text' is {BERT_WIDTH} wide, not {GLOVE_WIDTH}: the published MMSA pickles "
            "contain BERT features instead of GloVe vectors. Use MulT's pickles, make GloVe "
            "features with python -m dataset.glove, or set "
            f"feature_dims={str(dims).replace(' ', '')}."
        )
    remedy = ""
    if args.need_data_aligned and set(sources) == {path} and len(set(steps)) > 1:
        remedy = "need_data_aligned=false, as it is unaligned"
    for source, width, expected in zip(sources, dims, args.feature_dims, strict=True):
        if source == path and width != expected:  # a replaced modality may have another width
            remedy = f"feature_dims={str(dims).replace(' ', '')}"
    if remedy:
        raise DataError(
            f"{path}: {', '.join(FIELDS)} are {dims} wide and have {steps} steps. Set {remedy}; or "
            "point featurePath to the intended file."
        )


def _convert_layout(raw: dict[str, dict], use_bert: bool, text_source: str) -> None:
    """Convert MulT's layout. Raises DataError if tokens are required."""
    for path, content in raw.items():
        in_layout_of_mult = mult.convert(content, path)
        if in_layout_of_mult and use_bert and path == text_source:
            raise DataError(f"{path}: {mult.WITHOUT_TOKENS}")


def _pop_split(
    raw: dict[str, dict],
    path: str,
    name: str,
    keys: Sequence[str],
    sources: Sequence[str],
    to_predict: bool,
) -> Split:
    """Remove one split from the pickles (arrays are moved, not copied), and check it."""
    ids = to_strings(_pop_field(raw[path], path, name, "id"), path, name, "id")
    raw_text = raw[path][name].get("raw_text", [""] * len(ids))
    raw_text = to_strings(raw_text, path, name, "raw_text")
    if len(raw_text) != len(ids):
        raise DataError(
            f"{path}: split '{name}' has {len(raw_text)} 'raw_text', but {len(ids)} 'id'."
        )
    arrays = []
    for key, source in zip(keys, sources, strict=True):
        arrays.append(_pop_array(raw[source], source, name, key, ids))
        other_ids = raw[source][name].get("id", ids)
        if source != path and to_strings(other_ids, source, name, "id") != ids:
            raise DataError(
                f"{source}: split '{name}' does not have the same utterances in the same order as "
                f"in {path}."
            )
    if to_predict and LABELS not in raw[path][name]:
        labels = np.full(len(ids), np.nan, np.float32)
    else:
        labels = _pop_array(raw[path], path, name, LABELS, ids)
    text, audio, vision = arrays
    return Split(text, audio, vision, labels, ids, raw_text)


def _pop_field(content: dict, path: str, split: str, field: str):
    """Remove a field of a split from the content, so that it is not in memory twice."""
    if isinstance(content.get(split), dict) and field in content[split]:
        return content[split].pop(field)
    found = {}
    for key, fields in content.items():
        if isinstance(fields, dict):
            found[key] = list(fields)
    raise DataError(
        f"{path}: split '{split}' lacks the field '{field}'; it has {printable(found, 600)}."
        f"{HINTS.get(field, '')}"
    )


def _pop_array(content: dict, path: str, split: str, key: str, ids: list[str]) -> np.ndarray:
    """Remove a field of numbers from a pickle's content, convert it to float32, and check it."""
    value = _pop_field(content, path, split, key)
    return to_array(value, key, ids, f"{path}: '{key}' of split '{split}'")


def to_array(value, key: str, ids: list[str], where: str) -> np.ndarray:
    """Convert a field of numbers to float32, and check it.

    Args:
        value: The numbers; an array of float32 may be changed in place.
        key: The field's name, which decides its layout and range.
        ids: The N utterances.
        where: The file and field, for the error message.

    Returns:
        Labels (N,), tokens (N, 3, steps) or features (N, steps, width).

    Raises:
        DataError: The field cannot have this shape or these values.
    """
    try:
        array = np.require(value, np.float32, ["C", "W"])  # copies only another type or layout
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where} is not an array of numbers ({printable(error)}).") from error
    if key == LABELS:
        array = array.reshape(-1)
    _check_shape(array, key, len(ids), where)
    if key == "audio":  # published audio has -inf, the logarithm of silence
        array[np.isneginf(array)] = 0
    _check_values(array, key, ids, where)
    return array


def _check_shape(array: np.ndarray, key: str, count: int, where: str) -> None:
    """Raise DataError if the array of a field does not have the layout of its kind."""
    if key == LABELS:
        expected = "(N,)"
        fits = array.ndim == 1
    elif key == "text_bert":
        expected = "(N, 3, steps)"
        fits = array.ndim == 3 and array.shape[1] == 3
    else:
        expected = "(N, steps, width)"
        fits = array.ndim == 3
    if not fits or len(array) != count or array.size == 0:
        raise DataError(
            f"{where} is {array.shape}; expected {expected} with N = {count}, as 'id' has."
        )


def _check_values(array: np.ndarray, key: str, ids: list[str], where: str) -> None:
    """Raise DataError, naming the utterances, if an array has values that its kind cannot have."""
    if key == LABELS:
        problem = "is not a number in [-3, 3]"
        valid = np.abs(array) <= LARGEST_LABEL
    elif key == "text_bert":
        problem = "is not token ids, attention masks (0, 1) and segment ids (0, 1)"
        valid = (array >= 0) & (array % 1 == 0)
        valid[:, 1:] &= array[:, 1:] <= 1
    else:
        problem = "is NaN or infinite"
        valid = np.isfinite(array)
    rows = np.flatnonzero(~valid.reshape(len(ids), -1).all(axis=1))
    if len(rows):
        wrong = [ids[row] for row in rows]
        raise DataError(f"{where} {problem} in {len(wrong)} utterances: {shorten(wrong)}.")
