"""Folders of feature files, one utterance each, as padded arrays.

A file is <id>.npy or <id>.csv: rows are time steps, columns are features, all of them numbers.
Legend: N utterances, T steps, d width.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.check import few
from utils.errors import DataError
from utils.reading import printable, regular_size

EXTENSIONS = (".npy", ".csv")


@dataclass(frozen=True)
class FeatureFolder:
    """The files of one modality, by utterance; `lengths` are their steps, `width` is that of all of them."""

    path: Path
    files: dict[str, Path]
    lengths: dict[str, int]
    width: int

    def padded(
        self, ids: Sequence[str], steps: int, segments: int | None = None, silence: bool = False
    ) -> tuple[np.ndarray, list[int]]:
        """The sequences of these utterances as (N, steps, d) float32, and how many steps of each are its own.

        What is longer loses its end, what is shorter gets zeros behind. With `segments`, each is averaged first.
        With `silence`, -inf is read as 0: the logarithm of silence, which audio may hold.

        Raises DataError, with the utterances, where anything else is not finite.
        """
        array, lengths, broken = np.zeros((len(ids), steps, self.width), np.float32), [], []
        for row, name in zip(array, ids, strict=True):
            with np.errstate(over="ignore"):
                sequence = np.array(read_sequence(self.files[name]), np.float32)
            if silence:
                sequence[np.isneginf(sequence)] = 0
            if not np.isfinite(sequence).all():
                broken.append(name)
            if segments:
                sequence = averaged(sequence, segments)
            lengths.append(min(len(sequence), steps))
            row[: lengths[-1]] = sequence[:steps]
        if broken:
            raise DataError(
                f"{self.path}: {len(broken)} files hold NaN or infinite numbers ({named(broken)}). Repair them, or "
                "remove these utterances."
            )
        return array, lengths


def open_folder(path: str | Path, ids: Sequence[str], table: str | Path) -> FeatureFolder:
    """The feature files of the utterances that `table` lists, and their sizes.

    Raises DataError where the folder has other utterances, or a file is no array (T, d) of the others' width.
    """
    path = Path(path)
    files = _list(path)
    if not files:
        raise DataError(f"{path}: no {' or '.join(EXTENSIONS)} file is there; expected one for each id of {table}.")
    missing, surplus = [name for name in ids if name not in files], sorted(files.keys() - set(ids))
    if missing or surplus:
        parts = [f"no file for {len(missing)} of {len(ids)} ids of {table} ({named(missing)})"] if missing else []
        parts += [f"{len(surplus)} files without a row in {table} ({named(surplus)})"] if surplus else []
        raise DataError(
            f"{path}: {'; '.join(parts)}. Each id needs one file, named <id>.npy or <id>.csv, and each file a row."
        )
    shapes = {name: read_sequence(files[name]).shape for name in ids}
    width = shapes[ids[0]][1]
    others = [name for name, shape in shapes.items() if shape[1] != width]
    if others:
        raise DataError(
            f"{path}: {files[ids[0]].name} is {width} wide, but {len(others)} files are not ({named(others)}: "
            f"{shapes[others[0]][1]} wide). All must come from one extraction."
        )
    return FeatureFolder(path, files, {name: shape[0] for name, shape in shapes.items()}, width)


def named(ids: Sequence[str]) -> str:
    return few([printable(name) for name in ids])


def _list(folder: Path) -> dict[str, Path]:
    """-> {id: its file}; what has another extension is no feature file"""
    files = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); expected a folder of feature files.") from error
    for file in map(folder.joinpath, names):
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith("."):
            if file.stem in files:
                raise DataError(f"{folder}: both {files[file.stem].name} and {file.name} are there. Remove one.")
            files[file.stem] = file
    return files


def read_sequence(file: Path) -> np.ndarray:
    """The numbers of a feature file (T, d), in their own type; of a .npy only what is looked at is read.

    Raises DataError, and runs nothing that the file may contain.
    """
    try:
        regular_size(file)
        array = _read_csv(file) if file.suffix.lower() == ".csv" else np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise ValueError("it holds other than numbers")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # a damaged file can fail in any way that numpy knows
        reason = printable(error, 120) or type(error).__name__
        raise DataError(
            f"{file}: no array of numbers ({reason}); expected steps x features, without a header."
        ) from error
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{file}: its shape is {array.shape}; expected two axes (steps, features), neither empty.")
    return array


def _read_csv(file: Path) -> np.ndarray:
    with open(file, encoding="utf-8-sig") as lines:
        rows = [line for line in lines if line.strip()]
    return np.loadtxt(rows, np.float32, comments=None, delimiter=",", ndmin=2) if rows else np.empty((0, 0))


def averaged(sequence: np.ndarray, segments: int) -> np.ndarray:
    """The means (segments, d) of about equal parts of a sequence (T, d): part i begins at step floor(i·T/segments).

    A sequence of no more steps than that stays as it is.
    """
    if len(sequence) <= segments:
        return sequence
    starts = np.arange(segments) * len(sequence) // segments
    counts = np.diff(starts, append=len(sequence))
    return np.add.reduceat(sequence, starts, axis=0, dtype=np.float64) / counts[:, None]
