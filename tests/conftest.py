"""The small corpus that the commands are tried on."""

import os
import shutil
from pathlib import Path

# Before torch is imported. Two workers run at a time (pyproject.toml), and more threads than cores slow each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from dataset.synthetic import generate
from tests.commands import train, write_pickle
from tests.reference import Reference


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where parity and gpu tests run: cpu, cuda, cuda:N")


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
        split: {field: value[: sizes[split]] for field, value in fields.items()} for split, fields in generate().items()
    }


@pytest.fixture
def folder(tmp_path, corpus, monkeypatch) -> Path:
    """A working folder with the small corpus as its synthetic data set."""
    write_pickle(tmp_path / "dataset/SYNTHETIC/aligned_50.pkl", corpus)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory, corpus) -> Path:
    """A folder in which train() was run: the run of the name dmd, of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    write_pickle(folder / "dataset/SYNTHETIC/aligned_50.pkl", corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train() == 0
    return folder


@pytest.fixture
def trained(folder, trained_once) -> Path:
    """A working folder of the test's own, with a copy of that run."""
    for name in ("pt", "result"):
        shutil.copytree(trained_once / name, folder / name)
    return folder
