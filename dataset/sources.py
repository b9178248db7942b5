"""Read the sources of your own data set: a table of utterances, and folders of feature files.

A feature file is <id>.npy or <id>.csv: rows are time steps, columns are features, all of them
numbers. Legend: N utterances, T steps, d width.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.preprocessing import StandardScaler

from dataset.features import SPLITS, shorten
from utils.errors import DataError
from utils.reading import printable

TRANSCRIPTS = "The words of a clip belong in the column text of its row; speech is not recognized."


def read_table(path: str | Path, unlabeled: bool = False) -> pd.DataFrame:
    """Read the table of utterances.

    Args:
        path: A CSV file with the columns id, split, label (a float), text.
        unlabeled: Ignore the column `label`; without a column `split`, all rows belong to test.

    Returns:
        The columns id, text, split and, unless `unlabeled`, label (NaN if it is not a number).

    Raises:
        DataError: The table is unreadable or empty, an id is repeated, or a split is unknown.
    """
    columns = ["id", "text"] if unlabeled else ["id", "split", "label", "text"]
    try:
        table = _read_columns(path, columns, unlabeled)
    except (ValueError, KeyError, FileNotFoundError) as error:
        hint = TRANSCRIPTS
        if not unlabeled:
            hint += " A file to predict on needs only id and text: --unlabeled."
        raise DataError(
            f"{path}: expected a CSV table in UTF-8 with the columns {','.join(columns)}, and "
            f"double quotes around texts with commas ({printable(error, 160)}). {hint}"
        ) from error
    if table.empty:
        raise DataError(f"{path}: the table has no rows.")
    wrong = table["id"].duplicated() | ~table["split"].isin(SPLITS)
    if wrong.any():
        raise DataError(
            f"{path}: {wrong.sum()} rows have an id of another row, or a split other than "
            f"{', '.join(SPLITS)} ({shorten(set(table['id'][wrong]))})."
        )
    if not unlabeled:
        table["label"] = pd.to_numeric(table["label"], errors="coerce")
    return table


def _read_columns(path: str | Path, columns: list[str], unlabeled: bool) -> pd.DataFrame:
    """Read columns of a CSV file, and the split, as strings."""
    table = pd.read_csv(
        path,
        dtype=str,
        keep_default_na=False,
        skipinitialspace=True,
        encoding="utf-8-sig",
    )
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("a row has more fields than the header")
    if unlabeled:
        columns = [*columns, "split"]
        if "split" not in table:
            table["split"] = "test"
    return table[columns].fillna("")  # rows may end early


def read_folder(
    path: str | Path, ids: Sequence[str], is_audio: bool = False, width: int | None = None
) -> dict[str, np.ndarray]:
    """Read the feature files of one modality.

    Args:
        path: The folder.
        ids: The ids of the table.
        is_audio: Read -inf, the logarithm of silence, as 0.
        width: The expected d; by default that of the first utterance.

    Returns:
        {id: sequence (T, d), float32}

    Raises:
        DataError: Files are missing, surplus, or not arrays (T, d).
    """
    files = []
    for file in Path(path).iterdir():
        if file.suffix in (".npy", ".csv") and file.name[0] != ".":
            files.append(file)
    found = Counter(file.stem for file in files)
    needed = Counter(ids)
    missing = needed - found
    surplus = found - needed
    if missing or surplus:
        raise DataError(
            f"{path}: expected one file for each id of the table, <id>.npy or <id>.csv, and no "
            f"others. Missing: {len(missing)} of {len(ids)} ({shorten(missing)}); surplus: "
            f"{len(surplus)} ({shorten(surplus)})."
        )

    sequences = {}
    for file in files:
        sequence = _read_array(file)
        if is_audio:
            sequence[np.isneginf(sequence)] = 0
        sequences[file.stem] = sequence
    if width is None:
        width = sequences[ids[0]].shape[1]
    others = [name for name, sequence in sequences.items() if sequence.shape[1] != width]
    if others:
        raise DataError(
            f"{path}: expected {width} columns in all files; {len(others)} files have another "
            f"number ({shorten(others)})."
        )
    return sequences


def _read_array(file: Path) -> np.ndarray:
    """The numbers of a feature file (T, d)."""
    try:
        if file.suffix == ".csv":
            array = pd.read_csv(file, header=None, dtype=np.float32).to_numpy()
        else:
            array = np.load(file, allow_pickle=False)
        if array.dtype.kind not in "fiub" or array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"it is {array.shape} {array.dtype}")
        return array.astype(np.float32)
    except Exception as error:  # a damaged file can raise any error of numpy and pandas
        raise DataError(
            f"{file}: expected a table of numbers, steps x features ({printable(error, 120)})."
        ) from error


def fit_scaling(sequences: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Compute mean and scale of features.

    Args:
        sequences: Arrays (T, d). Steps of zeros are padding or missing data, and do not count.

    Returns:
        {"mean": (d,), "scale": (d,)}. Features that never change have the scale 1.
    """
    steps = np.concatenate(list(sequences))
    real = steps[steps.any(axis=1) & np.isfinite(steps).all(axis=1)]
    scaler = StandardScaler().fit(real if len(real) else np.zeros_like(steps))
    return {
        "mean": scaler.mean_.astype(np.float32),
        "scale": scaler.scale_.astype(np.float32),
    }


def standardize(sequence: np.ndarray, scaling: dict[str, np.ndarray]) -> np.ndarray:
    """Subtract the mean and divide by the scale; steps of zeros stay zeros.

    Args:
        sequence: (T, d)
        scaling: The result of `fit_scaling`.

    Returns:
        (T, d)
    """
    real = sequence.any(axis=1, keepdims=True)
    return np.where(real, (sequence - scaling["mean"]) / scaling["scale"], 0)


def pool(sequence: np.ndarray, segments: int) -> np.ndarray:
    """Average a sequence over segments of about equal length.

    Args:
        sequence: (T, d). Steps of zeros do not count.
        segments: Segment i begins at step floor(i·T/segments).

    Returns:
        (segments, d); the sequence itself if it has at most `segments` steps.
    """
    if len(sequence) <= segments:
        return sequence
    starts = np.arange(segments) * len(sequence) // segments
    counts = np.add.reduceat(sequence.any(axis=1), starts, dtype=np.float64).clip(1)
    sums = np.add.reduceat(sequence, starts, axis=0, dtype=np.float64)
    return (sums / counts[:, None]).astype(np.float32)


def pad(sequences: Sequence[np.ndarray], steps: int) -> tuple[np.ndarray, list[int]]:
    """Bring sequences to one length: cut them at the end, or pad them with zeros.

    Args:
        sequences: N arrays (T, d).
        steps: The length.

    Returns:
        The array (N, steps, d), and the N lengths without padding.
    """
    array = np.zeros((len(sequences), steps, sequences[0].shape[1]), np.float32)
    lengths = []
    for row, sequence in zip(array, sequences, strict=True):
        row[: len(sequence)] = sequence[:steps]
        lengths.append(min(len(sequence), steps))
    return array, lengths
