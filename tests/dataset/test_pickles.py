"""The restricted reader reads all types in feature files, and executes nothing."""

import pickle

import numpy as np
import pytest

from dataset.pickles import load_pickle
from tests.dataset.hostile import CANARY, HOSTILE
from utils.errors import DataError

HARMLESS = {
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "strings": np.array(["a", "bc"]),
    "objects": np.array(["a", "bc"], dtype=object),
    "fortran": np.asfortranarray(np.ones((2, 3), np.float32)),
    "scalar": np.float64(1.5),
    "containers": [1, [2.5, "x"], {"y": None, 3: {}}, True],
}


def read(path, content, protocol: int):
    path.write_bytes(pickle.dumps({"content": content}, protocol))
    return load_pickle(path)["content"]


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_of_every_protocol_are_read(protocol, tmp_path):
    content = read(tmp_path / "a.pkl", HARMLESS, protocol)
    assert content.keys() == HARMLESS.keys()
    for name, value in HARMLESS.items():
        assert type(content[name]) is type(value)
        assert (
            np.array_equal(content[name], value)
            if isinstance(value, np.ndarray)
            else content[name] == value
        )
    # Large arrays, one of them twice, with others before and after it.
    arrays = [
        np.full(2**18 + shift, shift, dtype) for shift, dtype in enumerate(("f8", "f8", "f4", "f8"))
    ]
    content = read(tmp_path / "b.pkl", [*arrays, arrays[1]], protocol)
    for one, other in zip(content, [*arrays, arrays[1]], strict=True):
        assert np.array_equal(one, other) and one.dtype == np.float32


@pytest.mark.parametrize("dtype", [">f4", ">i2", "?", ">U3", "S3", "f2"])
@pytest.mark.parametrize("protocol", [0, 4, 5])
def test_every_plain_type_keeps_its_values(dtype, protocol, tmp_path):
    value = np.array([[1, 0], [1, 1]]).astype(dtype)
    array, transposed, scalar = read(tmp_path / "a.pkl", [value, value.T, value[0, 0]], protocol)
    assert array.dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
    assert np.array_equal(array, value) and np.array_equal(transposed, value.T)
    assert scalar == value[0, 0]


def test_pickles_of_python_2_and_numpy_1_are_read(tmp_path):
    """Texts for bytes, and the module's old name."""
    data = np.array([1.0, -2.0], "<f4").tobytes()
    state = b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS"
    written = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR" + state
    (tmp_path / "a.pkl").write_bytes(b"(S'a'\n" + written + repr(data)[1:].encode() + b"\ntbd.")
    assert load_pickle(tmp_path / "a.pkl")["a"].tolist() == [1, -2]


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickle_is_rejected_and_executes_nothing(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(HOSTILE[case])
    with pytest.raises(DataError, match="evil.pkl") as error:
        load_pickle("evil.pkl")
    assert "\n" not in str(error.value) and not (tmp_path / CANARY).exists()


def test_every_truncation_and_damage_gives_one_line(tmp_path):
    data, path = (
        pickle.dumps({"a": np.arange(4.0), "b": ["x", None, np.array(["y"], object)]}),
        tmp_path / "a.pkl",
    )
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
