"""The restricted reader reads all that feature files hold, and runs nothing."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from dataset.unpickling import load_pickle
from utils.errors import DataError

HARMLESS = {
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "strings": np.array(["a", "bc"]),
    "objects": np.array(["a", "bc"], dtype=object),
    "fortran": np.asfortranarray(np.ones((2, 3))),
    "scalar": np.float64(1.5),
    "bytes": b"\x00\xff",
    "containers": [1, (2.5, "x"), {"y": None}, {1, 2}, True, OrderedDict(a=1)],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_of_every_protocol(protocol, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(HARMLESS, protocol))
    content = load_pickle(tmp_path / "a.pkl")
    assert content.keys() == HARMLESS.keys()
    for name, value in HARMLESS.items():
        assert type(content[name]) is type(value)
        assert np.array_equal(content[name], value) if isinstance(value, np.ndarray) else content[name] == value


class Call:
    """A pickle of this calls `function` when it is read by an unrestricted reader."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("kind", ["system", "eval", "nested", "in an array"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(kind, protocol, tmp_path):
    canary = tmp_path / "canary"
    evil = {
        "system": Call(os.system, f"touch {canary}"),
        "eval": Call(eval, f"open({str(canary)!r}, 'w')"),
        "nested": {"train": [{"audio": Call(open, str(canary), "w")}]},
        "in an array": np.array([Call(open, str(canary), "w")], dtype=object),
    }[kind]
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(evil, protocol))
    with pytest.raises(DataError, match="evil.pkl: the pickle contains .* forbidden"):
        load_pickle(tmp_path / "evil.pkl")
    assert not canary.exists()
