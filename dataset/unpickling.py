"""Reading feature pickles without running what is in them.

Feature files need numpy arrays, numpy scalars and built-in containers only, so that nothing else is ever looked up.
"""

import io
import math
import pickle
import re
from pathlib import Path

import numpy as np

from utils.errors import DataError
from utils.reading import printable, regular_size
from utils.unpickling import (
    LARGE,
    ForbiddenContent,
    RestrictedUnpickler,
    check_extent,
    checked_list,
    latin1_bytes,
    ordered_dict,
)

MAX_AXES, MAX_STEPS = 32, 2**40
PLAIN = (str, bytes, bytearray, int, float, complex, type(None), np.ndarray, np.generic, np.dtype)

_numpy_scalar = np.float64(0).__reduce__()[0]  # numpy's own functions, wherever this version keeps them
_numpy_from_buffer = np.empty(0).__reduce_ex__(5)[0]


def _empty_array(*_) -> np.ndarray:
    """What an array starts as; its state follows, and brings shape, type and values."""
    return np.empty(0, np.int8)


def _dtype(_, code: str, *__) -> np.dtype:
    """A dtype of numbers, strings or objects; its state follows, and may change the byte order only."""
    if type(code) is not str or not re.fullmatch(r"[biufcSUO]\d{0,9}", code):
        shown = printable(code, 20) if type(code) is str else type(code).__name__
        raise pickle.UnpicklingError(f"an array type other than numbers and strings: {shown!r}")
    return np.dtype(code, copy=True)  # a copy, as the state is written into it


def _scalar(_, dtype: np.dtype, data: bytes | str) -> np.generic:
    data = data.encode("latin1") if type(data) is str else data  # from Python 2
    if not isinstance(dtype, np.dtype) or dtype.hasobject or type(data) is not bytes or len(data) != dtype.itemsize:
        raise pickle.UnpicklingError("a number or string of another size than its type")
    return _numpy_scalar(dtype, data)


def _from_buffer(_, buffer, dtype: np.dtype, shape: tuple, order: str, axes: tuple | None = None) -> np.ndarray:
    """What protocol 5 makes an array of; a view of the buffer."""
    _check_values(shape, dtype, buffer)
    transposed = order == "K" and axes is not None
    if order not in ("C", "F", "K") or (transposed and sorted(axes) != list(range(len(shape)))):
        raise pickle.UnpicklingError("an array with axes in no order")
    return _numpy_from_buffer(buffer, dtype, shape, order, *([axes] if transposed else []))


def _bytearray(_, content: bytes | str = b"", encoding: str = "latin1") -> bytearray:
    return bytearray(content if type(content) is bytes else latin1_bytes(_, content, encoding))


def _complex(_, real: float, imaginary: float) -> complex:
    if not type(real) is type(imaginary) is float:
        raise pickle.UnpicklingError("a complex number made of other than two numbers")
    return complex(real, imaginary)


def _set(unpickler: RestrictedUnpickler, members: list | tuple = ()) -> set:
    unpickler.check_keys(checked_list(members))
    return set(members)


def _frozenset(unpickler: RestrictedUnpickler, members: list | tuple = ()) -> frozenset:
    return frozenset(_set(unpickler, members))


def _makers() -> dict:
    # The class itself is only ever an argument of _reconstruct, so that a name that cannot be called will do.
    admitted = {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): _dtype}
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        admitted[f"{core}.multiarray", "_reconstruct"] = _empty_array
        admitted[f"{core}.multiarray", "scalar"] = _scalar
        admitted[f"{core}.numeric", "_frombuffer"] = _from_buffer
    for builtins in ("builtins", "__builtin__"):  # in Python 3 and 2
        made = {"set": _set, "frozenset": _frozenset, "bytearray": _bytearray, "complex": _complex}
        admitted |= {(builtins, name): maker for name, maker in made.items()}
    return admitted | {("_codecs", "encode"): latin1_bytes, ("collections", "OrderedDict"): ordered_dict}


ADMITTED = _makers()


class _DataUnpickler(RestrictedUnpickler):
    """Lets states be set on dtypes and arrays, after a look at them, and keeps one copy of what is large."""

    def __init__(self, file: io.BufferedIOBase, size: int, makers: dict):
        super().__init__(file, size, makers)
        self.memo = _Memo()

    def set_state(self, target, state) -> None:
        if isinstance(target, np.dtype):
            _check_dtype_state(target, state)
        elif isinstance(target, np.ndarray):
            if target.size:  # setting it again would free what views of it still read
                raise pickle.UnpicklingError("an array that is set twice")
            _, shape, dtype, _, values = state
            _check_values(shape, dtype, values)
        else:
            super().set_state(target, state)
        target.__setstate__(state)
        self.spend(getattr(target, "nbytes", 0))
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
        self.memo.replace(array, slim)


class _Memo(dict):
    """What the pickle may refer back to, by number. It knows where arrays are, and what large ones are made of, so
    that no search is needed: a file may have many numbers, and many arrays."""

    def __init__(self):
        super().__init__()
        self._arrays: dict[int, list[int]] = {}  # by id: the numbers
        self._parts: list[int] = []  # numbers of large texts, and of tuples with one

    def __setitem__(self, number: int, value) -> None:
        super().__setitem__(number, value)
        if isinstance(value, np.ndarray):
            self._arrays.setdefault(id(value), []).append(number)
        elif _has_large_text(value):
            self._parts.append(number)

    def replace(self, array: np.ndarray, other: np.ndarray) -> None:
        """Put an array in another one's place, and forget what it was made of."""
        for number in self._arrays.pop(id(array), ()):
            if self[number] is array:
                super().__setitem__(number, other)
        for number in self._parts:
            if _has_large_text(self[number]):
                super().__setitem__(number, None)
        self._parts.clear()


def _has_large_text(value) -> bool:
    """Whether it is one, or a tuple with one as arrays are made of."""
    members = value if isinstance(value, tuple) and len(value) <= 5 else (value,)
    return any(isinstance(x, (bytes, bytearray, str)) and len(x) >= LARGE for x in members)


def _check_dtype_state(dtype: np.dtype, state) -> None:
    """numpy believes what the state says of sizes and flags: an object array said to be plain bytes would make
    pointers of them. So they must be what the dtype has already."""
    sizes = (-1, -1) if dtype.kind not in "SU" else (dtype.itemsize, dtype.alignment)
    if state[0] != 3 or state[1] not in ("<", ">", "|", "=") or state[2:] != (None, None, None, *sizes, dtype.flags):
        raise pickle.UnpicklingError(f"a forged state of the array type {dtype}")


def _check_values(shape: tuple, dtype: np.dtype, values) -> None:
    """Shape, type and values of an array must agree: numpy would make room for, or read, what shape and type say."""
    if not isinstance(dtype, np.dtype) or type(shape) is not tuple or len(shape) > MAX_AXES:
        raise pickle.UnpicklingError("an array without a type or shape")
    if not all(type(n) is int and 0 <= n < MAX_STEPS for n in shape):
        raise pickle.UnpicklingError("an array with an impossible shape")
    if dtype.hasobject:
        if type(values) is not list or len(values) != math.prod(shape):  # numpy would read on behind the list
            raise pickle.UnpicklingError(f"an array of shape {shape} with other than that many values")
        for value in values:
            if not isinstance(value, (str, bytes, int, float, np.generic, type(None))):
                raise pickle.UnpicklingError(f"an array with a {type(value).__name__} in it")
    elif not isinstance(values, (bytes, bytearray, str)) or len(values) != math.prod(shape) * dtype.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {shape} with other than that many values")
    elif not dtype.itemsize and math.prod(shape) > 1:
        raise pickle.UnpicklingError("an array of items without a size")


def load_pickle(path: str | Path) -> object:
    """Read a pickle of numpy arrays, numpy scalars and built-in containers, of any protocol.

    Arrays of 64-bit floats come as float32 where they are large.

    Raises DataError if the file cannot be read, is damaged, or asks for anything else; nothing of it is run, and
    neither reading nor walking the result costs more than a file of its size honestly could.
    """
    try:
        size = regular_size(path)
        with open(path, "rb") as file:
            content = _DataUnpickler(file, size, ADMITTED).load()
        check_extent(content, size, PLAIN)
        return content
    except ForbiddenContent as error:
        raise DataError(
            f"{path}: the pickle contains {printable(error)}, which is forbidden: a feature file holds numpy arrays "
            "and built-in containers only. Do not use this file."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except Exception as error:  # a damaged pickle can fail in any way that Python and numpy know
        reason = printable(error, 120) or type(error).__name__
        raise DataError(
            f"{path}: not a readable pickle ({reason}): truncated, damaged, or another kind of file. "
            "Download or make it again."
        ) from error
