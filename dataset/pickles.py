"""Reading feature pickles without running what is in them, and writing them.

A pickle is a program that can call whatever it names. Here it can name numpy's array, dtype and scalar only, and these
names stand for methods that check what they are given and make the value by np.frombuffer.

Built on the Python version of the standard library's reader, not the C one, as that keeps all that an array is made of
until the end, where a file of float64 would take three times its result.
"""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from utils.errors import ConfigError, DataError
from utils.files import write_atomically
from utils.reading import printable

LARGE = 2**20  # bytes
PLAIN = (str, bytes, bool, int, float, np.generic, type(None))  # what an array of objects may hold
NAMES = {
    ("numpy", "ndarray"): "_reconstruct",  # only ever an argument
    ("numpy", "dtype"): "_dtype",
    ("_codecs", "encode"): "_encode",  # protocols below 3 make bytes with it
}
for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    NAMES[f"{core}.multiarray", "_reconstruct"] = "_reconstruct"
    NAMES[f"{core}.multiarray", "scalar"] = "_scalar"
    NAMES[f"{core}.numeric", "_frombuffer"] = "_from_buffer"


class _Pending:
    """A value that `make` builds from the state that follows; `numbers` are those the pickle may refer to it by."""

    def __init__(self, make: Callable):
        self.make, self.numbers = make, []


class _Memo(dict):
    """What the pickle may refer back to, by number, but for large texts and bytes: an array holds its own copy."""

    def __setitem__(self, number: int, value) -> None:
        if isinstance(value, _Pending):
            value.numbers.append(number)
        parts = value if isinstance(value, tuple) else (value,)
        large = any(isinstance(part, (str, bytes, bytearray)) and len(part) >= LARGE for part in parts)
        super().__setitem__(number, None if large else value)


class _Reader(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file):
        super().__init__(file, encoding="latin1")
        self.memo = _Memo()

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is forbidden")
        return getattr(self, NAMES[module, name])

    def load_build(self) -> None:
        """Put what is made of a state in the place of the value that waited for it."""
        state, pending = self.stack.pop(), self.stack[-1]
        self.stack[-1] = value = pending.make(state)
        for number in pending.numbers:
            self.memo[number] = value

    def load_bytearray8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))  # as bytes: one copy less

    def _reconstruct(self, *_) -> _Pending:
        return _Pending(lambda state: _array(state[-1], state[-3], state[-4], "F" if state[-2] else "C"))

    def _dtype(self, code: str, *_) -> _Pending:
        if not re.fullmatch(r"[biufSUO]\d{0,9}", code):
            raise pickle.UnpicklingError(f"an array of other than real numbers and texts: {code!r}")
        return _Pending(lambda state: np.dtype(code).newbyteorder(state[1]))  # of its state only the byte order

    def _scalar(self, dtype: np.dtype, data: bytes | str = b"") -> np.generic:
        return np.frombuffer(_encoded(data), dtype)[0] if data else dtype.type()

    def _from_buffer(self, buffer, dtype: np.dtype, shape: tuple, order: str, axes: tuple | None = None) -> np.ndarray:
        array = _array(buffer, dtype, shape, "C" if order == "K" else order)
        return array if axes is None else array.transpose(axes)

    def _encode(self, text: str, _: str) -> bytes:
        return text.encode("latin1")


def _encoded(data: bytes | str) -> bytes:
    """Bytes, which old protocols and Python 2 write as text in latin1."""
    return data.encode("latin1") if isinstance(data, str) else data


def _array(values, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    """A writable array; float64 as float32. numpy checks that bytes, dtype and shape agree."""
    if dtype.hasobject:
        if not all(isinstance(value, PLAIN) for value in values):
            raise pickle.UnpicklingError("an array of other than texts and numbers")
        array = np.empty(len(values), object)
        array[:] = values
    elif values:
        array = np.frombuffer(_encoded(values), dtype)
        with np.errstate(over="ignore"):
            array = array.astype(np.float32 if dtype == np.float64 else dtype)
    else:
        array = np.zeros(0, dtype)
    return array.reshape(shape, order=order)


def _checking_keys(load: Callable, keys: slice) -> Callable:
    def checked(reader: _Reader) -> None:
        if any(isinstance(key, tuple) for key in reader.stack[keys]):  # the hash of a deep one crashes Python
            raise pickle.UnpicklingError("a tuple as a key")
        load(reader)

    return checked


_Reader.dispatch |= {pickle.BUILD[0]: _Reader.load_build, pickle.BYTEARRAY8[0]: _Reader.load_bytearray8}
for code in (pickle.SETITEM, pickle.SETITEMS, pickle.DICT):
    keys = slice(-2, -1) if code == pickle.SETITEM else slice(0, None, 2)
    _Reader.dispatch[code[0]] = _checking_keys(_Reader.dispatch[code[0]], keys)
for code in (pickle.ADDITEMS, pickle.FROZENSET):  # sets, which would hash what they hold
    del _Reader.dispatch[code[0]]


def load_pickle(path: str | Path) -> object:
    """Read a pickle of numpy arrays, numpy scalars, lists, tuples and dicts, of any protocol; float64 comes as float32.

    Raises DataError if the file is damaged, or asks for anything else; nothing of it is run. OSError, as open does.
    """
    with open(path, "rb") as file:
        try:
            return _Reader(file).load()
        except Exception as error:  # a damaged pickle can fail in any way that Python and numpy know
            reason = printable(error, 120) or type(error).__name__
            raise DataError(
                f"{path}: not a readable pickle ({reason}). Expected numpy arrays, lists and dicts: the file is "
                "damaged, unsafe, or of another kind. Download or make it again."
            ) from error


def check_output(path: str | Path, overwrite: bool) -> Path:
    """The path, if a file can be written there. Raises ConfigError where one is there already, or no folder for it."""
    path = Path(path)
    if path.exists() and not (overwrite and path.is_file()) or not os.access(path.parent, os.W_OK):
        raise ConfigError(
            f"--output: {path} is there already (--overwrite replaces a file), or its folder cannot be written to."
        )
    return path


def write_pickle(path: Path, content: dict) -> None:
    """Write a feature pickle, whole or not at all. Raises DataError where that cannot be."""
    try:
        write_atomically(path, lambda file: pickle.dump(content, file, protocol=5))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}). Name a writable folder.") from error
