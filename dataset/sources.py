"""What a data set of one's own is made of: a table of utterances, and a folder of feature files for a modality.

A feature file is <id>.npy or <id>.csv: rows are time steps, columns are features, all of them numbers.
Legend: N utterances, T steps, d width.
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

TRANSCRIPTS = "What is said in a clip goes into the column text of its row; there is no speech recognition here."


def read_table(path: str | Path, unlabelled: bool = False) -> pd.DataFrame:
    """The rows of a CSV table with the columns id, split, label (a float), text. `unlabelled`: `label` is not read, and
    without a column `split` all rows are of test.

    Raises DataError, with the first few rows, for what is wrong.
    """
    columns = ["id", "text"] if unlabelled else ["id", "split", "label", "text"]
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("a row has more fields than the header")
        if unlabelled:
            table["split"] = table.get("split", "test")
        table = table[[*columns, "split"] if unlabelled else columns].fillna("")  # rows may end early
    except (ValueError, KeyError, FileNotFoundError) as error:
        hint = TRANSCRIPTS + ("" if unlabelled else " For a file to predict on, id and text will do: --unlabelled.")
        raise DataError(
            f"{path}: no CSV table in UTF-8 with the columns {','.join(columns)}, a text with a comma in double quotes "
            f"({printable(error, 160)}). {hint}"
        ) from error
    wrong = table["id"].duplicated() | ~table["split"].isin(SPLITS)
    if wrong.any():
        raise DataError(
            f"{path}: {wrong.sum()} rows have an id that another has too, or a split other than {', '.join(SPLITS)} "
            f"({shorten(set(table['id'][wrong]))})."
        )
    return table if unlabelled else table.assign(label=pd.to_numeric(table["label"], errors="coerce"))


def read_folder(
    path: str | Path, ids: Sequence[str], silence: bool = False, width: int | None = None
) -> dict[str, np.ndarray]:
    """The sequence (T, d) of each of these utterances, as float32. `silence`: read -inf, its logarithm, as 0.

    Raises DataError where the folder has other utterances, or a file is no array (T, width), or of the others' width.
    """
    files = [file for file in Path(path).iterdir() if file.suffix in (".npy", ".csv") and file.name[0] != "."]
    found, needed = Counter(file.stem for file in files), Counter(ids)
    missing, surplus = needed - found, found - needed
    if missing or surplus:
        raise DataError(
            f"{path}: each id of the table needs one file here, <id>.npy or <id>.csv, and each file a row there. "
            f"Missing: {len(missing)} of {len(ids)} ({shorten(missing)}); surplus: {len(surplus)} ({shorten(surplus)})."
        )
    sequences = {}
    for file in files:
        sequence = _read(file)
        if silence:
            sequence[np.isneginf(sequence)] = 0
        sequences[file.stem] = sequence
    width = width or sequences[ids[0]].shape[1]
    others = [name for name, sequence in sequences.items() if sequence.shape[1] != width]
    if others:
        raise DataError(f"{path}: expected {width} wide, but {len(others)} files are not ({shorten(others)}).")
    return sequences


def _read(file: Path) -> np.ndarray:
    """The numbers of a feature file (T, d)."""
    try:
        if file.suffix == ".csv":
            array = pd.read_csv(file, header=None, dtype=np.float32).to_numpy()
        else:
            array = np.load(file, allow_pickle=False)
        if array.dtype.kind not in "fiub" or array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"it is {array.shape} {array.dtype}")
        return array.astype(np.float32)
    except Exception as error:  # a damaged file can fail in any way that numpy and pandas know
        raise DataError(f"{file}: no table of numbers, steps x features ({printable(error, 120)}).") from error


def scaling_of(sequences: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Mean and scale (d,) of the steps of sequences (T, d), but for those of zeros, which are no data. Features that
    never change have the scale 1."""
    steps = np.concatenate(list(sequences))
    real = steps[steps.any(axis=1) & np.isfinite(steps).all(axis=1)]
    scaler = StandardScaler().fit(real if len(real) else np.zeros_like(steps))
    return {"mean": scaler.mean_.astype(np.float32), "scale": scaler.scale_.astype(np.float32)}


def standardised(sequence: np.ndarray, scaling: dict[str, np.ndarray]) -> np.ndarray:
    """A sequence (T, d) less the mean, over the scale; steps of zeros stay zeros."""
    return np.where(sequence.any(axis=1, keepdims=True), (sequence - scaling["mean"]) / scaling["scale"], 0)


def averaged(sequence: np.ndarray, segments: int) -> np.ndarray:
    """The means (segments, d) of about equal parts of a sequence (T, d): part i begins at step floor(i·T/segments), and
    steps of zeros do not count. A sequence of no more steps than that stays as it is."""
    if len(sequence) <= segments:
        return sequence
    starts = np.arange(segments) * len(sequence) // segments
    counts = np.add.reduceat(sequence.any(axis=1), starts, dtype=np.float64).clip(1)
    return (np.add.reduceat(sequence, starts, axis=0, dtype=np.float64) / counts[:, None]).astype(np.float32)


def padded(sequences: Sequence[np.ndarray], steps: int) -> tuple[np.ndarray, list[int]]:
    """-> (N, steps, d), where what is longer has lost its end, and what is shorter gets zeros; and the lengths left"""
    array = np.zeros((len(sequences), steps, sequences[0].shape[1]), np.float32)
    for row, sequence in zip(array, sequences, strict=True):
        row[: len(sequence)] = sequence[:steps]
    return array, [min(len(sequence), steps) for sequence in sequences]
