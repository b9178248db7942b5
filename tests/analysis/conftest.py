"""Runs on the small corpus, trained once."""

import contextlib
import shutil
from pathlib import Path

import pytest

from tests.commands import train, write_pickle


@pytest.fixture(scope="session")
def trained(tmp_path_factory, corpus) -> Path:
    """A folder with one command's two seeds, and a run with other settings."""
    folder = tmp_path_factory.mktemp("trained")
    write_pickle(folder / "dataset/SYNTHETIC/aligned_50.pkl", corpus)
    with contextlib.chdir(folder):
        assert train("-s", "1", "2", "--set", "keep_checkpoints=1") == 0
        assert train("-s", "1", "--name", "paper", "--set", "objective=paper", "--set", "keep_checkpoints=1") == 0
    return folder


@pytest.fixture
def runs(trained, tmp_path, monkeypatch) -> Path:
    """A copy of them, as the working folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("pt"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
