"""Loose pickles: a folder of files, each with one or several utterances to predict on.

A file has the fields of a split, under a split's name or at the top, with or without the axis of
the utterances: `audio` is (N, steps, width) or, for one utterance, (steps, width). Sequences may
have any number of steps; they are brought to those of the checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.features import (
    FIELDS,
    HINTS,
    LABELS,
    SPLITS,
    read_provenance,
    to_array,
    to_strings,
)
from dataset.mult import join_columns
from dataset.pickles import load_pickle
from utils.errors import DataError
from utils.reading import printable

EXTENSIONS = (".pkl", ".pickle")


@dataclass(frozen=True)
class InputSizes:
    """The input sizes of a model.

    Attributes:
        feature_dims: Widths of text, audio and vision.
        seq_lens: Steps of text, audio and vision.
        use_bert: Whether the text is tokens.
        vocab_size: Token ids are below it; 0 without BERT.
        pad_token: The id that shorter texts are padded with.
    """

    feature_dims: list[int]
    seq_lens: list[int]
    use_bert: bool
    vocab_size: int = 0
    pad_token: int = 0


@dataclass(frozen=True)
class LooseFile:
    """The N utterances of a file; arrays are float32.

    Attributes:
        path: The file.
        text: (N, T_l, d_l), or tokens (N, 3, T_l)
        audio: (N, T_a, d_a)
        vision: (N, T_v, d_v)
        labels: (N,); NaN if the file has no labels.
        ids: N strings.
        raw_text: N strings.
        truncated: Number of sequences that lost steps other than padding.
        provenance: How dataset.build made the file; empty for other files.
    """

    path: Path
    text: np.ndarray
    audio: np.ndarray
    vision: np.ndarray
    labels: np.ndarray
    ids: list[str]
    raw_text: list[str]
    truncated: int
    provenance: str


def list_pickles(folder: str | Path) -> list[Path]:
    """List the pickles of a folder; hidden files, other files and folders are ignored.

    Args:
        folder: The folder.

    Returns:
        The .pkl and .pickle files, sorted by name.

    Raises:
        DataError: The folder has no pickles.
    """
    paths = []
    for path in sorted(Path(folder).iterdir()):
        hidden = path.name.startswith(".")
        if path.suffix.lower() in EXTENSIONS and not hidden and not path.is_dir():
            paths.append(path)
    if not paths:
        raise DataError(
            f"{folder}: has no pickles. Expected {' or '.join(EXTENSIONS)} files of one or more "
            "utterances each; subfolders are not searched."
        )
    return paths


def read_loose(path: Path, sizes: InputSizes, split: str = "test") -> LooseFile:
    """Read a file, check it, and bring its sequences to the steps of the model.

    Longer sequences are cut at the end, shorter ones padded at the end: features with zeros, tokens
    with the padding token and mask 0. Of a text that is cut, the last token ([SEP]) is kept.

    Args:
        path: The pickle.
        sizes: The input sizes of the model.
        split: The split to read if the file has several.

    Returns:
        Its utterances. If the file has no ids, they are its name: `name`, or `name-0`, `name-1`, …

    Raises:
        DataError: The file is unreadable or does not match the model.
        OSError: It cannot be opened.
    """
    content = load_pickle(path)
    keys = ("text_bert" if sizes.use_bert else "text", "audio", "vision")
    fields = _find_fields(content, path, keys, split)
    sequences = {}
    for key in keys:
        sequences[key] = _to_sequences(fields, path, key)
    count = len(sequences["audio"])
    for key in keys:
        _check_count(len(sequences[key]), count, path, key)
    ids = _read_ids(fields, path, count)
    raw_text = _read_strings(fields, path, "raw_text", count)
    arrays = {}
    truncated = 0
    for i, field in enumerate(FIELDS):
        fitted = []
        for sequence, name in zip(sequences[keys[i]], ids, strict=True):
            if keys[i] == "text_bert":
                sequence, is_cut = _fit_text_bert(sequence, path, name, sizes)
            else:
                sequence, is_cut = _fit_sequence(sequence, path, name, keys[i], sizes, i)
            fitted.append(sequence)
            truncated += is_cut
        arrays[field] = np.stack(fitted)
    return LooseFile(
        path=path,
        **arrays,
        labels=_read_labels(fields, path, ids),
        ids=ids,
        raw_text=raw_text or [""] * count,
        truncated=truncated,
        provenance=read_provenance(content),
    )


def _fit_text_bert(
    sequence: np.ndarray, path: Path, name: str, sizes: InputSizes
) -> tuple[np.ndarray, bool]:
    """Check and fit the tokens of an utterance.  -> (3, T_l), and whether real ones were cut"""
    tokens = _check_tokens(sequence, path, name, sizes)
    steps = sizes.seq_lens[0]
    return fit_tokens(tokens, steps, sizes.pad_token), bool(tokens[1, steps:].any())


def _fit_sequence(
    sequence: np.ndarray, path: Path, name: str, key: str, sizes: InputSizes, i: int
) -> tuple[np.ndarray, bool]:
    """Check and fit the features of an utterance.  -> (T, d), and whether real steps were cut"""
    features = _check_features(sequence, path, name, key, sizes.feature_dims[i])
    steps = sizes.seq_lens[i]
    return fit_features(features, steps), bool(features[steps:].any())


def fit_features(sequence: np.ndarray, steps: int) -> np.ndarray:
    """Cut a sequence at the end, or pad it with zeros.

    Args:
        sequence: (T, width)
        steps: Number of steps to return.

    Returns:
        (steps, width)
    """
    fitted = np.zeros((steps, sequence.shape[1]), np.float32)
    kept = min(len(sequence), steps)
    fitted[:kept] = sequence[:kept]
    return fitted


def fit_tokens(tokens: np.ndarray, steps: int, pad_token: int) -> np.ndarray:
    """Cut tokens at the end, keeping the last one, or pad them.

    Args:
        tokens: (3, T) ids, mask and segments.
        steps: Number of steps to return.
        pad_token: The id of padding, whose mask and segment are 0.

    Returns:
        (3, steps)
    """
    fitted = np.zeros((3, steps), np.float32)
    fitted[0] = pad_token
    kept = min(tokens.shape[1], steps)
    fitted[:, :kept] = tokens[:, :kept]
    real = np.flatnonzero(tokens[1])
    if len(real) and real[-1] >= steps:  # as a tokenizer truncates: the text ends with [SEP]
        fitted[:, -1] = tokens[:, real[-1]]
    return fitted


def _find_fields(content: dict, path: Path, keys: Sequence[str], split: str) -> dict:
    """The part of a pickle that has the fields: its top, the split, or the only other split."""
    for key in keys:
        if key in content:
            return content
    if isinstance(content.get(split), dict):
        return content[split]
    others = []
    for name in SPLITS:
        if isinstance(content.get(name), dict):
            others.append(name)
    if len(others) == 1:
        return content[others[0]]
    raise DataError(
        f"{path}: has neither the fields {', '.join(keys)} nor the split '{split}'; it has "
        f"{printable(list(content), 300)}."
    )


def _to_sequences(fields: dict, path: Path, key: str) -> list[np.ndarray]:
    """The utterances of a field as an array each, whatever their lengths."""
    value = fields.get(key)
    if value is None:
        hint = HINTS["text"] if key == "text" else ""
        raise DataError(f"{path}: lacks '{key}'; it has {printable(list(fields), 300)}.{hint}")
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        return _to_arrays(value, path, key)  # sequences of different lengths
    if array.ndim == 2:
        return [array]
    if array.ndim == 3:
        return list(array)
    layout = "3, steps" if key == "text_bert" else "steps, width"
    raise DataError(
        f"{path}: '{key}' is {array.shape}; expected (N, {layout}), or ({layout}) for one "
        "utterance."
    )


def _to_arrays(value, path: Path, key: str) -> list[np.ndarray]:
    """The items of a list or an array of objects as arrays."""
    try:
        return [np.asarray(item, np.float32) for item in value]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: '{key}' is not an array of numbers ({printable(error)})."
        ) from error


def _check_count(found: int, count: int, path: Path, key: str) -> None:
    """Raise DataError if a field has another number of utterances than audio."""
    if found != count or count == 0:
        raise DataError(
            f"{path}: '{key}' has {found} utterances, but 'audio' has {count}. Expected the same "
            "number, at least 1; an array without the axis of utterances counts as one."
        )


def _check_tokens(tokens: np.ndarray, path: Path, name: str, sizes: InputSizes) -> np.ndarray:
    """The tokens (3, T) of an utterance, after a check that the text encoder accepts them."""
    if tokens.ndim != 2 or len(tokens) != 3 or tokens.size == 0:
        raise DataError(
            f"{path}: 'text_bert' is {tokens.shape} for an utterance; expected (3, steps): ids, "
            "mask and segments."
        )
    tokens = to_array(tokens[None], "text_bert", [name], f"{path}: 'text_bert'")[0]
    largest = int(tokens[0].max())
    if largest >= sizes.vocab_size:
        raise DataError(
            f"{path}: 'text_bert' has token ids up to {largest}, but the checkpoint's encoder "
            f"accepts ids below {sizes.vocab_size}. Use the tokenizer of its training data."
        )
    return tokens


def _check_features(
    sequence: np.ndarray, path: Path, name: str, key: str, width: int
) -> np.ndarray:
    """The features (T, width) of an utterance, checked; -inf in audio becomes 0."""
    if sequence.ndim != 2 or sequence.size == 0:
        raise DataError(
            f"{path}: '{key}' is {sequence.shape} for an utterance; expected (steps, {width})."
        )
    if sequence.shape[1] != width:
        raise DataError(
            f"{path}: '{key}' is {sequence.shape[1]} wide, but the checkpoint expects {width}. "
            "Extract it in the same way as the training data."
        )
    return to_array(sequence[None], key, [name], f"{path}: '{key}'")[0]


def _read_strings(fields: dict, path: Path, key: str, count: int) -> list[str]:
    """The strings of a field, which may be a single one; [] if it is missing."""
    value = fields.get(key)
    if value is None:
        return []
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list):
        value = [value]
    strings = to_strings(value, str(path), "test", key)
    _check_count(len(strings), count, path, key)
    return strings


def _read_ids(fields: dict, path: Path, count: int) -> list[str]:
    """The ids; made from the file's name if it has none."""
    if isinstance(fields.get("id"), (list, np.ndarray)):
        fields["id"] = join_columns(fields["id"])  # MulT's: video, start, end
    ids = _read_strings(fields, path, "id", count)
    if ids:
        return ids
    name = to_strings([path.stem], str(path), "test", "id")[0]
    if count == 1:
        return [name]
    return [f"{name}-{row}" for row in range(count)]


def _read_labels(fields: dict, path: Path, ids: list[str]) -> np.ndarray:
    """The labels (N,); NaN if the file has none."""
    for key in (LABELS, "labels"):
        value = fields.get(key)
        if value is not None:
            return to_array(value, LABELS, ids, f"{path}: '{key}'")
    return np.full(len(ids), np.nan, np.float32)
