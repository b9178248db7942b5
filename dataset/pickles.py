"""Reading feature pickles without running what is in them, and writing them.

A pickle is a program that can call whatever it names. Here it can name numpy's array, dtype and scalar only, and these
names mean stand-ins: they check what they are given, and np.frombuffer makes the arrays when all has been read.

The standard library's reader in Python is used, not the one in C. That one lets tuples be keys, and the hash of a
deeply nested tuple crashes the interpreter: here tuples are read as lists, which cannot be keys. And it keeps what
arrays are made of until the end, which of float64 is three times the result.
"""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.errors import ConfigError, DataError
from utils.files import write_atomically
from utils.reading import printable

LARGE = 2**20  # bytes
PICKLE_STARTS = (b"\x80", b"}", b"(d")  # of a dict, in protocols 2 and up, 1 and 0
ARCHIVES = {  # by the first bytes of their files
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
}


class _Dtype:
    """Stands for numpy.dtype. Of its state only the byte order is taken."""

    def __init__(self, code: str, *_):
        if not re.fullmatch(r"[biufSUO]\d{0,9}", code):
            raise pickle.UnpicklingError(f"an array of other than real numbers and texts: {code!r}")
        self.type = np.dtype(code)

    def __setstate__(self, state: list) -> None:
        self.type = self.type.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray, and for what makes one: _frombuffer at once, _reconstruct with a state that follows."""

    def __init__(self, data, dtype: _Dtype, shape: list, order: str = "C", axes: list | None = None):
        self.shape, self.order, self.axes = shape, order, axes
        if isinstance(dtype, _Dtype):  # else a state follows
            self._take(data, dtype.type)

    def __setstate__(self, state: list) -> None:
        self.shape, dtype, is_fortran, data = state[-4:]
        self.order = "F" if is_fortran else "C"
        self._take(data, dtype.type)

    def _take(self, data, dtype: np.dtype) -> None:
        if dtype.hasobject:
            self.values = data
            return
        self.values = np.frombuffer(_bytes(data), dtype)
        if dtype == np.float64:  # now, so that no two of the large arrays are held twice
            with np.errstate(over="ignore"):
                self.values = self.values.astype(np.float32)

    def make(self) -> np.ndarray:
        array = self.values
        if not isinstance(array, np.ndarray):
            array = np.fromiter(_with_arrays(array), object, len(array))
        array = array.reshape(self.shape, order="C" if self.order == "K" else self.order)
        return array if self.axes is None else array.transpose(self.axes)


def _scalar(dtype: _Dtype, data: bytes | str) -> np.generic:
    return np.frombuffer(_bytes(data), dtype.type)[0]


def _encode(text: str, _: str) -> str:
    """Protocols below 3 make bytes with _codecs.encode. They stay text until `_bytes`, so as not to be held twice."""
    return text


def _bytes(data: bytes | bytearray | str) -> bytes | bytearray:
    return data.encode("latin1") if isinstance(data, str) else data


NAMES = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _encode}
for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    NAMES |= {
        (f"{core}.multiarray", "_reconstruct"): _Array,
        (f"{core}.multiarray", "scalar"): _scalar,
        (f"{core}.numeric", "_frombuffer"): _Array,
    }


class _Memo(dict):
    """What the pickle may refer back to by number, but for the bytes of arrays, which would be held until the end."""

    def __setitem__(self, number: int, value: object) -> None:
        parts = value if isinstance(value, list) else [value]
        large = any(isinstance(part, (str, bytes, bytearray)) and len(part) >= LARGE for part in parts)
        super().__setitem__(number, None if large else value)


class _EndsEarly(Exception):
    """The file ends in the middle of the pickle."""


class _File:
    """A file of which an end within the pickle is an error of its own; pickle has many for it."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def read(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise _EndsEarly
        return data

    def readline(self) -> bytes:
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise _EndsEarly
        return line


class _Reader(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file):
        super().__init__(_File(file), encoding="latin1")
        self.memo = _Memo()

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is forbidden")
        return NAMES[module, name]

    def load_bytearray8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))  # as bytes: one copy less

    def last_as_list(self, count: int) -> None:
        self.stack[-count:] = [self.stack[-count:]]


_Reader.dispatch |= {
    pickle.BYTEARRAY8[0]: _Reader.load_bytearray8,
    pickle.EMPTY_TUPLE[0]: _Reader.load_empty_list,
    pickle.TUPLE1[0]: lambda reader: reader.last_as_list(1),
    pickle.TUPLE2[0]: lambda reader: reader.last_as_list(2),
    pickle.TUPLE3[0]: lambda reader: reader.last_as_list(3),
    pickle.TUPLE[0]: _Reader.load_list,
}


def _with_arrays(value: object) -> object:
    """The value, where arrays have taken the places of their stand-ins."""
    if isinstance(value, _Array):
        return value.make()
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            value[key] = _with_arrays(item)
    return value


def load_pickle(path: str | Path) -> dict:
    """Read a dict of numpy arrays, numpy scalars, lists and dicts from a pickle of any protocol. Tuples come as lists,
    float64 as float32; arrays may be read-only.

    Raises DataError if the file is damaged, or asks for anything else; nothing of it is run. OSError, as open does.
    """
    with open(path, "rb") as file:
        try:
            content = _with_arrays(_Reader(file).load())
            if not isinstance(content, dict):
                raise pickle.UnpicklingError(f"it holds a {type(content).__name__}")
            return content
        except Exception as error:  # a damaged pickle can fail in any way that Python and numpy know
            raise DataError(f"{path}: not a readable pickle{_explain(file, error)}") from error


def _explain(file: BinaryIO, error: Exception) -> str:
    """The rest of a sentence on a file that is no readable pickle: what it is instead, and what to do."""
    file.seek(0)
    start = file.read(512)
    size = file.seek(0, os.SEEK_END)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()  # without the mark of UTF-8
    if size == 0:
        return ": the file is empty (0 bytes). Download it again."
    if text.startswith(b"<"):
        return f": it is a web page of {size} bytes, not the file. Open its link in a browser to download the file."
    if text.startswith(b"version https://git-lfs"):
        return ": it is a Git LFS pointer, not the file itself. Get the file with: git lfs pull"
    if start.startswith(b"PK") and b"/data.pkl" in start:
        return ": it is a checkpoint of PyTorch, not features."
    for signature, kind in ARCHIVES.items():
        if start.startswith(signature):
            return f": it is an archive ({kind}). Unpack it, and use the .pkl file inside."
    if isinstance(error, _EndsEarly) and start.startswith(PICKLE_STARTS):
        return f": it ends early ({size} bytes), as after an interrupted download. Download it again."
    reason = printable(error, 120) or type(error).__name__
    return (
        f" ({reason}). Expected a dict of numpy arrays and lists: the file is damaged, unsafe, or of another kind. "
        "Download or make it again."
    )


def check_output(path: str | Path, overwrite: bool) -> Path:
    """The path, unless something is there that may not be replaced. Raises ConfigError."""
    path = Path(path)
    if path.exists() and not (overwrite and path.is_file()):
        raise ConfigError(f"--output: {path} is there already; --overwrite replaces a file.")
    return path


def write_pickle(path: Path, content: dict) -> None:
    """Write a feature pickle, whole or not at all. Raises OSError."""
    write_atomically(path, lambda file: pickle.dump(content, file, protocol=5))
