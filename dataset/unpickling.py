"""Reading pickles without running what is in them.

A pickle is a program: reading one can call anything that it names. Feature files need numpy arrays and built-in
containers only, so that nothing else is ever looked up.
"""

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


def _numpy_globals() -> dict[tuple[str, str], object]:
    reconstruct = np.empty(0).__reduce__()[0]  # numpy's own function, wherever this version keeps it
    scalar = np.float64(0).__reduce__()[0]
    from_buffer = np.empty(0).__reduce_ex__(5)[0]
    admitted = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        admitted[f"{core}.multiarray", "_reconstruct"] = reconstruct
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


class _ForbiddenGlobal(Exception):
    """The pickle asks for something that is no data."""


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise _ForbiddenGlobal(f"{module}.{name}") from None

    def persistent_load(self, pid):
        raise _ForbiddenGlobal("a persistent id")


def load_pickle(path: str | Path) -> object:
    """Read a pickle of numpy arrays, numpy scalars and built-in containers, of any protocol.

    Raises DataError if the file cannot be read, is damaged, or asks for anything else; nothing of it is run.
    """
    try:
        with open(path, "rb") as file:
            return _DataUnpickler(file, encoding="latin1").load()
    except _ForbiddenGlobal as error:
        raise DataError(
            f"{path}: the pickle contains {error}, which is forbidden: a feature file holds numpy arrays and built-in "
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
