"""The small corpus that the commands are tried on."""

import os
from pathlib import Path

# Before torch is imported. Two workers run at a time (pyproject.toml), and more threads than cores slow each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from dataset.synthetic import generate
from tests.commands import write_pickle


@pytest.fixture(scope="session")
def corpus() -> dict:
    """The embedded data set cut to 24/10/10 utterances."""
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
