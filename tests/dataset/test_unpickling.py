"""The restricted reader reads all that feature files hold, and runs nothing."""

import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from dataset.pickles import load_pickle
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
def test_large_arrays_of_64_bit_floats_come_as_float32(protocol, tmp_path):
    """One of them twice, and others before and behind it."""
    arrays = [np.full(2**17 + shift, shift, dtype) for shift, dtype in enumerate(("f8", "f8", "f4", "f8"))]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([*arrays, arrays[1]], protocol))
    content = load_pickle(tmp_path / "a.pkl")
    assert [array.dtype for array in content] == ["float32"] * 5 and content[1] is content[4]
    assert all(np.array_equal(read, array) for read, array in zip(content, arrays, strict=False))


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


class ForgedType:
    """An object type whose state says that its items are plain bytes, which numpy would take for pointers."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)


def array_with_state(dtype, data):
    reconstruct, arguments, _ = np.empty(0).__reduce__()

    class Forged:
        def __reduce__(self):
            return reconstruct, arguments, (1, (1,), dtype, False, data)

    return Forged()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (array_with_state(ForgedType(), b"A" * 8), "forged state"),
        (array_with_state(np.dtype("O"), []), "that many values"),
        (np.array([{"a": 1}], dtype=object), "an array with a dict"),
        (np.zeros(2, dtype=[("x", "f4"), ("y", "O")]), "other than numbers"),
        (np.zeros(2, dtype="M8[s]"), "other than numbers"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_that_numpy_would_trust_too_far_are_refused(content, reason, protocol, tmp_path):
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol).dump(content)
    (tmp_path / "forged.pkl").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=f"forged.pkl: not a readable pickle .*{reason}") as error:
        load_pickle(tmp_path / "forged.pkl")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2", "?", "U3", ">U3", "S3", "c8", "f2"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_every_plain_type_keeps_its_values(dtype, protocol, tmp_path):
    value = np.array([[1, 0], [1, 1]]).astype(dtype)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([value, value.T, value[0, 0]], protocol))
    array, transposed, scalar = load_pickle(tmp_path / "a.pkl")
    assert array.dtype == pickle.loads(pickle.dumps(value, protocol)).dtype  # the byte order, as numpy reads it
    assert np.array_equal(array, value) and np.array_equal(transposed, value.T)
    assert scalar == value[0, 0]


def test_every_truncation_and_damage_is_one_line(tmp_path):
    data, path = pickle.dumps({"a": np.arange(4.0), "b": ["x", None, np.array(["y"], object)]}), tmp_path / "a.pkl"
    rng = np.random.default_rng(0)
    damaged = [bytearray(data) for _ in range(300)]
    for one in damaged:
        one[rng.integers(len(one))] = rng.integers(256)
    for content in [data[:n] for n in range(len(data))] + damaged:
        path.write_bytes(content)
        try:
            load_pickle(path)  # damage in a number or a string cannot be seen
        except DataError as error:
            assert "\n" not in str(error)


def test_persistent_ids_and_names_over_two_lines_are_refused_in_one(tmp_path):
    path = tmp_path / "a.pkl"
    for content, named in ((b"Pabc\n.", "a persistent id"), (b"\x80\x04\x8c\x03o\ns\x8c\x06system\x93.", "o s.system")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"contains {named}, which is forbidden") as error:
            load_pickle(path)
        assert "\n" not in str(error.value)


def test_an_array_is_set_once(tmp_path):
    once = pickle.dumps(np.arange(3.0), 2)
    state = once[once.rindex(b"(K\x01K\x03") : -1]  # from the state to before the end
    (tmp_path / "a.pkl").write_bytes(once[:-1] + state + b".")
    with pytest.raises(DataError, match="an array that is set twice"):
        load_pickle(tmp_path / "a.pkl")
