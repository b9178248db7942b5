"""The small corpus that the commands are tried on."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

# Before torch is imported. Two workers run at a time (pyproject.toml), and more threads than cores
# slow each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# --deterministic, after tests that used cuBLAS
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest

from dataset.synthetic import generate
from tests.commands import train, write_pickle
from tests.reference import Reference


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cpu", help="where parity and gpu tests run: cpu, cuda, cuda:N"
    )


def pytest_configure(config):
    Reference.device = config.getoption("--device")


@pytest.fixture
def device() -> str:
    return Reference.device


@pytest.fixture(scope="session")
def corpus() -> dict:
    """The built-in synthetic data cut to 24/10/10 utterances."""
    sizes = {"train": 24, "valid": 10, "test": 10}
    return {
        split: {field: value[: sizes[split]] for field, value in fields.items()}
        for split, fields in generate().items()
    }


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory, corpus) -> Callable[[], Path]:
    def make() -> Path:
        """A folder with the small corpus as its synthetic data set."""
        path = write_pickle(
            tmp_path_factory.mktemp("work") / "dataset/SYNTHETIC/aligned_50.pkl", corpus
        )
        return path.parents[2]

    return make


@pytest.fixture
def folder(make_folder, monkeypatch) -> Path:
    """A folder with the small corpus, as the working directory."""
    monkeypatch.chdir(folder := make_folder())
    return folder


@pytest.fixture(scope="session")
def trained_once(make_folder) -> Path:
    """A folder in which train() was run: the run of the name dmd, of two epochs."""
    with contextlib.chdir(folder := make_folder()):
        assert train() == 0
    return folder


@pytest.fixture
def trained(folder, trained_once) -> Path:
    """A copy of `trained_once`, as the working directory of one test."""
    for name in ("pt", "result"):
        shutil.copytree(trained_once / name, folder / name)
    return folder
