"""Read feature pickles without executing code in them, and write them.

A pickle is a program that can call any function. Here it can only refer to numpy's array, dtype and
scalar, which are replaced by stand-ins: they check their arguments, and np.frombuffer creates the
arrays after everything has been read.

The standard library's Python implementation is used, not the one in C. The latter accepts tuples as
keys, and hashing a deeply nested tuple crashes the interpreter; here tuples are read as lists,
which cannot be keys. It also keeps the bytes of all arrays until the end, which for float64 takes
three times the memory of the result.
"""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.errors import DataError
from utils.files import write_atomically
from utils.reading import printable

LARGE = 2**20  # bytes
PICKLE_STARTS = (b"\x80", b"}", b"(d")  # of a dict, in protocols 2 and up, 1 and 0
UTF8_MARK = b"\xef\xbb\xbf"
ARCHIVES = {  # by the first bytes of their files
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
}


def load_pickle(path: str | Path) -> dict:
    """Read a dict of numpy arrays, numpy scalars, lists and dicts from a pickle of any protocol.

    Args:
        path: The file.

    Returns:
        The dict. Tuples become lists, float64 becomes float32; arrays may be read-only.

    Raises:
        DataError: The file is damaged, or refers to anything else, which is never executed.
        OSError: It cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            content = _with_arrays(_Reader(file).load())
            if not isinstance(content, dict):
                raise pickle.UnpicklingError(f"it holds a {type(content).__name__}")
            return content
        except Exception as error:  # a damaged pickle can raise any error of numpy
            message = f"{path}: not a readable pickle{_explain(file, error)}"
            raise DataError(message) from error


def write_pickle(path: Path, content: dict) -> None:
    """Write a feature pickle completely or not at all.

    Args:
        path: The file; its folder is created.
        content: {split: {field: values}}

    Raises:
        OSError: It cannot be written.
    """
    write_atomically(path, lambda file: pickle.dump(content, file, protocol=5))


def _explain(file: BinaryIO, error: Exception) -> str:
    """The rest of the message about an unreadable pickle: the kind of file, and the remedy."""
    file.seek(0)
    start = file.read(512)
    size = file.seek(0, os.SEEK_END)
    text = start.removeprefix(UTF8_MARK).lstrip()
    if size == 0:
        return ": the file is empty (0 bytes). Download it again."
    if text.startswith(b"<"):
        return (
            f": it is a web page of {size} bytes, not the file. Open its link in a browser to "
            "download the file."
        )
    if text.startswith(b"version https://git-lfs"):
        return ": it is a Git LFS pointer, not the file itself. Get the file with: git lfs pull"
    if start.startswith(b"PK") and b"/data.pkl" in start:
        return ": it is a checkpoint of PyTorch, not features."
    for signature, kind in ARCHIVES.items():
        if start.startswith(signature):
            return f": it is an archive ({kind}). Unpack it, and use the .pkl file inside."
    if isinstance(error, _EndsEarly) and start.startswith(PICKLE_STARTS):
        return (
            f": it ends early ({size} bytes), as after an interrupted download. Download it again."
        )
    reason = printable(error, 120) or type(error).__name__
    return (
        f" ({reason}). Expected a dict of numpy arrays and lists: the file is damaged, unsafe, or "
        "of another kind. Download or make it again."
    )


class _Dtype:
    """Stand-in for numpy.dtype. Only the byte order of its state is used."""

    def __init__(self, code: str, *_):
        if not re.fullmatch(r"[biufSUO]\d{0,9}", code):
            raise pickle.UnpicklingError(f"an array of neither numbers nor strings: {code!r}")
        self.type = np.dtype(code)

    def __setstate__(self, state: list) -> None:
        self.type = self.type.newbyteorder(state[1])


class _Array:
    """Stand-in for numpy.ndarray and the functions that make one.

    _frombuffer passes the data as an argument, _reconstruct in the state that follows.
    """

    def __init__(
        self, data, dtype: _Dtype, shape: list, order: str = "C", axes: list | None = None
    ):
        self.shape = shape
        self.order = order
        self.axes = axes
        if isinstance(dtype, _Dtype):  # otherwise a state follows
            self._set_values(data, dtype.type)

    def __setstate__(self, state: list) -> None:
        self.shape, dtype, is_fortran, data = state[-4:]
        self.order = "F" if is_fortran else "C"
        self._set_values(data, dtype.type)

    def _set_values(self, data, dtype: np.dtype) -> None:
        """Keep the elements (one axis), or the list of objects that they are."""
        if dtype.hasobject:
            self.values = data
            return
        self.values = np.frombuffer(_bytes(data), dtype)
        if dtype == np.float64:  # now, so that at most one large array is in memory twice
            with np.errstate(over="ignore"):
                self.values = self.values.astype(np.float32)

    def make(self) -> np.ndarray:
        """Create the array."""
        values = self.values
        if not isinstance(values, np.ndarray):
            values = np.fromiter(_with_arrays(values), object, len(values))
        array = values.reshape(self.shape, order="C" if self.order == "K" else self.order)
        return array if self.axes is None else array.transpose(self.axes)


def _scalar(dtype: _Dtype, data: bytes | str) -> np.generic:
    """Stand-in for numpy's function of that name."""
    return np.frombuffer(_bytes(data), dtype.type)[0]


def _encode(text: str, _: str) -> str:
    """Stand-in for _codecs.encode, with which protocols below 3 make bytes.

    The text is converted only in `_bytes`, so that it is not in memory twice.
    """
    return text


def _bytes(data: bytes | bytearray | str) -> bytes | bytearray:
    """Convert text, which old protocols use for bytes, to bytes."""
    return data.encode("latin1") if isinstance(data, str) else data


NAMES = {
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}
for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    NAMES[f"{core}.multiarray", "_reconstruct"] = _Array
    NAMES[f"{core}.multiarray", "scalar"] = _scalar
    NAMES[f"{core}.numeric", "_frombuffer"] = _Array


class _Memo(dict):
    """Objects that the pickle may refer to by number.

    The bytes of arrays are left out, because they would stay in memory until the end.
    """

    def __setitem__(self, number: int, value: object) -> None:
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if isinstance(part, (str, bytes, bytearray)) and len(part) >= LARGE:
                value = None
        super().__setitem__(number, value)


class _EndsEarly(Exception):
    """The file ends in the middle of the pickle."""


class _File:
    """A file that raises one kind of error at its end, where pickle raises many kinds."""

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
    """The reader of the standard library, with other names and without tuples."""

    dispatch = dict(pickle._Unpickler.dispatch)  # {code of an instruction: the method for it}

    def __init__(self, file: BinaryIO):
        super().__init__(_File(file), encoding="latin1")
        self.memo = _Memo()

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is forbidden")
        return NAMES[module, name]

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(self.read(size))  # as bytes, which saves a copy

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_tuple1(self) -> None:
        self.stack[-1:] = [self.stack[-1:]]

    dispatch[pickle.TUPLE1[0]] = load_tuple1

    def load_tuple2(self) -> None:
        self.stack[-2:] = [self.stack[-2:]]

    dispatch[pickle.TUPLE2[0]] = load_tuple2

    def load_tuple3(self) -> None:
        self.stack[-3:] = [self.stack[-3:]]

    dispatch[pickle.TUPLE3[0]] = load_tuple3

    dispatch[pickle.TUPLE[0]] = pickle._Unpickler.load_list
    dispatch[pickle.EMPTY_TUPLE[0]] = pickle._Unpickler.load_empty_list


def _with_arrays(value: object) -> object:
    """The value, with arrays in place of their stand-ins."""
    if isinstance(value, _Array):
        return value.make()
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _with_arrays(item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            value[index] = _with_arrays(item)
    return value
