"""What a data set of one's own is made of: a table of utterances, and a folder of feature files for a modality.

A feature file is <id>.npy or <id>.csv: rows are time steps, columns are features, all of them numbers.
Legend: N utterances, T steps, d width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dataset.check import shorten
from dataset.features import LARGEST_LABEL, SPLITS
from utils.errors import DataError
from utils.reading import printable


def read_table(path: str | Path, unlabelled: bool = False) -> pd.DataFrame:
    """The rows of a CSV table with the columns id, split, label, text: texts, but for `label` a float.

    Splits are train, valid and test, or test alone; labels are in [-3, 3]. `unlabelled`: `label` is not read, and
    without a column `split` all rows are of test.

    Raises DataError, with the first few rows, for what is wrong.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("a row has more fields than the header; a text with a comma stands in double quotes")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no CSV table in UTF-8 ({printable(error, 160)}).") from error
    table.columns = table.columns.str.strip()
    columns = ["id", "split", "label", "text"]
    if unlabelled:
        columns.remove("label")
        table["split"] = table.get("split", "test")
    missing = [name for name in columns if name not in table]
    if missing or table.empty:
        hint = " For a file to predict on, give --unlabelled." if {*missing} <= {"split", "label"} else ""
        raise DataError(
            f"{path}: has {len(table)} rows and no column {', '.join(missing)}. Expected a header "
            f"{','.join(columns)} and a row an utterance.{hint}"
        )
    table = table[columns]
    wrong = {
        "an id that another has too": table["id"].duplicated(keep=False),
        f"a split other than {', '.join(SPLITS)}": ~table["split"].isin(SPLITS),
        "no text": ~table["text"].str.strip().astype(bool),
    }
    if not unlabelled:
        table = table.assign(label=pd.to_numeric(table["label"], errors="coerce"))
        wrong["a label that is no number in [-3, 3]"] = ~(table["label"].abs() <= LARGEST_LABEL)
    for what, rows in wrong.items():
        if rows.any():
            raise DataError(f"{path}: {rows.sum()} rows have {what} ({shorten(set(table['id'][rows]))}).")
    if set(table["split"]) not in ({*SPLITS}, {"test"}):
        raise DataError(f"{path}: needs rows of each of {', '.join(SPLITS)}; or test alone for a file to predict on.")
    return table


@dataclass(frozen=True)
class FeatureFolder:
    """The files of one modality, by utterance; `lengths` are their steps, `width` is that of all of them."""

    path: Path
    files: dict[str, Path]
    lengths: dict[str, int]
    width: int

    def padded(self, ids: Sequence[str], steps: int, segments: int | None, silence: bool) -> tuple[np.ndarray, list]:
        """The sequences of these utterances as (N, steps, d) float32, and how many steps of each are its own.

        What is longer loses its end, what is shorter gets zeros after it. With `segments`, each is averaged first.
        With `silence`, -inf is read as 0: the logarithm of silence, which audio may hold.
        """
        array, lengths = np.zeros((len(ids), steps, self.width), np.float32), []
        for row, name in zip(array, ids, strict=True):
            with np.errstate(over="ignore"):  # what is not finite, reading the file back tells
                sequence = np.array(read_sequence(self.files[name]), np.float32)
            if silence:
                sequence[np.isneginf(sequence)] = 0
            if segments:
                sequence = averaged(sequence, segments)
            lengths.append(min(len(sequence), steps))
            row[: lengths[-1]] = sequence[:steps]
        return array, lengths


def open_folder(path: str | Path, ids: Sequence[str], table: str | Path) -> FeatureFolder:
    """The feature files of the utterances that `table` lists, and their sizes.

    Raises DataError where the folder has other utterances, or a file is no array (T, d) of the others' width.
    """
    path = Path(path)
    found = sorted(file for file in path.glob("[!.]*") if file.suffix in (".npy", ".csv"))
    files = {file.stem: file for file in found}
    missing, surplus = set(ids) - files.keys(), files.keys() - set(ids)
    if missing or surplus or len(files) < len(found):
        raise DataError(
            f"{path}: each id of {table} needs one file here, <id>.npy or <id>.csv, and each file a row there. "
            f"Ids without a file: {len(missing)} of {len(ids)} ({shorten(missing)}); files without a row: "
            f"{len(surplus)} ({shorten(surplus)}); second files: {len(found) - len(files)}."
        )
    shapes = {name: read_sequence(files[name]).shape for name in ids}
    width = shapes[ids[0]][1]
    others = [name for name, shape in shapes.items() if shape[1] != width]
    if others:
        raise DataError(
            f"{path}: {files[ids[0]].name} is {width} wide, but {len(others)} files are not ({shorten(others)}). All "
            "must come from one extraction."
        )
    return FeatureFolder(path, files, {name: shape[0] for name, shape in shapes.items()}, width)


def read_sequence(file: Path) -> np.ndarray:
    """The numbers of a feature file (T, d); of a .npy only what is looked at is read.

    Raises DataError, and runs nothing that the file may contain.
    """
    try:
        if file.suffix == ".csv":
            array = pd.read_csv(file, header=None, dtype=np.float32).to_numpy()
        else:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        if array.dtype.kind not in "fiub" or array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"it is {array.shape} {array.dtype}")
    except Exception as error:  # a damaged file can fail in any way that numpy and pandas know
        raise DataError(f"{file}: no table of numbers, steps x features ({printable(error, 120)}).") from error
    return array


def averaged(sequence: np.ndarray, segments: int) -> np.ndarray:
    """The means (segments, d) of about equal parts of a sequence (T, d): part i begins at step floor(i·T/segments).

    A sequence of no more steps than that stays as it is.
    """
    if len(sequence) <= segments:
        return sequence
    starts = np.arange(segments) * len(sequence) // segments
    counts = np.diff(starts, append=len(sequence))
    return np.add.reduceat(sequence, starts, axis=0, dtype=np.float64) / counts[:, None]
