"""Reading pickles without running what is in them.

A pickle is a program: reading one can call anything that it names. Feature files need numpy arrays and built-in
containers only, so that nothing else is ever looked up.
"""

import math
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np

from utils.errors import DataError


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """What protocols below 3 call to make bytes; other encodings are refused."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _empty_array(*_) -> np.ndarray:
    """What an array starts as; its state follows, and brings shape, type and values."""
    return np.empty(0, np.int8)


def _plain_dtype(code: str, *_) -> np.dtype:
    """A dtype of numbers, strings or objects; its state follows, and may change the byte order only."""
    dtype = np.dtype(code) if isinstance(code, str) else None
    if dtype is None or dtype.kind not in "biufcSUO":
        raise pickle.UnpicklingError(f"an array type other than numbers and strings: {code!r}")
    return np.dtype(code, copy=True)  # a copy, as the state is written into it


def _numpy_globals() -> dict[tuple[str, str], object]:
    scalar = np.float64(0).__reduce__()[0]  # numpy's own functions, wherever this version keeps them
    from_buffer = np.empty(0).__reduce_ex__(5)[0]
    # The class itself is only ever an argument of _reconstruct, so that a name that cannot be called will do.
    admitted = {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): _plain_dtype}
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        admitted[f"{core}.multiarray", "_reconstruct"] = _empty_array
        admitted[f"{core}.multiarray", "scalar"] = scalar
        admitted[f"{core}.numeric", "_frombuffer"] = from_buffer
    return admitted


ADMITTED = _numpy_globals() | {
    ("_codecs", "encode"): _latin1_bytes,
    ("collections", "OrderedDict"): OrderedDict,
    **{(module, name): kind for module in ("builtins", "__builtin__") for name, kind in
       (("set", set), ("frozenset", frozenset), ("bytearray", bytearray), ("complex", complex),
        ("list", list), ("dict", dict), ("tuple", tuple), ("str", str), ("int", int), ("float", float))},
}  # fmt: skip


LARGE = 2**20  # bytes


class _ForbiddenGlobal(Exception):
    """The pickle asks for something that is no data."""


class _DataUnpickler(pickle._Unpickler):
    """The reader written in Python: unlike the one in C, it lets the state of an object be checked before it is set.

    The bulk of a feature file is a few large arrays, so that it is no slower.
    """

    def find_class(self, module: str, name: str):
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise _ForbiddenGlobal(f"{module}.{name}") from None

    def get_extension(self, code: int):
        raise _ForbiddenGlobal("a name from the extension registry")

    def persistent_load(self, pid):
        raise _ForbiddenGlobal("a persistent id")

    def load_build(self) -> None:
        target, state = self.stack[-2:]
        if isinstance(target, np.dtype):
            _check_dtype_state(target, state)
        elif isinstance(target, np.ndarray):
            if target.size:  # setting it again would free what views of it still read
                raise pickle.UnpicklingError("an array that is set twice")
            _check_array_state(state)
        else:
            raise pickle.UnpicklingError(f"state for a {type(target).__name__}")
        super().load_build()
        self._slim(target)

    def load_reduce(self) -> None:
        super().load_reduce()
        self._slim(self.stack[-1])

    def _slim(self, array) -> None:
        """Keep one copy of a large array, in float32 if it is of 64 bits: the reader remembers all that it has read."""
        if not isinstance(array, np.ndarray) or array.nbytes < LARGE:
            return
        with np.errstate(over="ignore"):
            slim = array.astype(np.float32) if array.dtype.kind == "f" and array.itemsize > 4 else array
        self.stack[-1] = slim
        for key, value in self.memo.items():
            if value is array:
                self.memo[key] = slim
            elif any(isinstance(x, (bytes, bytearray, str)) and len(x) >= LARGE for x in _members(value)):
                self.memo[key] = None  # what the array was made of

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build, pickle.REDUCE[0]: load_reduce}


def _members(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _check_dtype_state(dtype: np.dtype, state) -> None:
    """numpy believes what the state says of sizes and flags: an object array said to be plain bytes would make
    pointers of them. So they must be what the dtype has already."""
    sizes = (-1, -1) if dtype.kind not in "SU" else (dtype.itemsize, dtype.alignment)
    if state[0] != 3 or state[1] not in ("<", ">", "|", "=") or state[2:] != (None, None, None, *sizes, dtype.flags):
        raise pickle.UnpicklingError(f"a forged state of the array type {dtype}")


def _check_array_state(state) -> None:
    _, shape, dtype, _, values = state
    if not isinstance(dtype, np.dtype) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise pickle.UnpicklingError("an array without a type or shape")
    if dtype.hasobject:
        if not isinstance(values, list) or len(values) != math.prod(shape):  # numpy would read on behind the list
            raise pickle.UnpicklingError(f"an array of shape {shape} with other than that many values")
        for value in values:
            if not isinstance(value, (str, bytes, int, float, np.generic, type(None))):
                raise pickle.UnpicklingError(f"an array with a {type(value).__name__} in it")


def load_pickle(path: str | Path) -> object:
    """Read a pickle of numpy arrays, numpy scalars and built-in containers, of any protocol.

    Arrays of 64-bit floats come as float32 where they are large.

    Raises DataError if the file cannot be read, is damaged, or asks for anything else; nothing of it is run.
    """
    try:
        with open(path, "rb") as file:
            return _DataUnpickler(file, encoding="latin1").load()
    except _ForbiddenGlobal as error:
        named = " ".join(str(error).split())
        raise DataError(
            f"{path}: the pickle contains {named}, which is forbidden: a feature file holds numpy arrays and built-in "
            "containers only. Do not use this file."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except Exception as error:  # a damaged pickle can fail in any way that Python and numpy know
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"{path}: not a readable pickle ({reason}): truncated, damaged, or another kind of file. "
            "Download or make it again."
        ) from error
