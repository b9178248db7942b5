"""Hostile feature files run nothing, are refused in one line, and cost little: 2 s and 200 MB at most."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataset.pickles import load_pickle
from tests.dataset.hostile import CANARY, HOSTILE
from tests.limits import BYTES, SECONDS
from utils.errors import DataError

ROOT = Path(__file__).parents[2]


def run_limited(kind: str, files: dict[str, bytes], tmp_path: Path) -> dict[str, list]:
    """Read each in a process of its own.  -> {name: [error, message, seconds, bytes]}"""
    (tmp_path / "files").mkdir()
    names = {f"{number:03d}.bin": name for number, name in enumerate(files)}
    for file, name in names.items():
        (tmp_path / "files" / file).write_bytes(files[name])
    done = subprocess.run(
        [sys.executable, "-m", "tests.limits", kind, str(tmp_path / "files")],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return {names[file]: result for file, result in json.loads(done.stdout).items()}


def assert_refused(results: dict[str, list], error: str) -> None:
    print("worst:", max(r[2] for r in results.values()), "s,", max(r[3] for r in results.values()) / 1e6, "MB")
    wrong = {
        name: result
        for name, result in results.items()
        if result[0] != error or "\n" in result[1] or len(result[1]) > 1000 or result[2] > SECONDS or result[3] > BYTES
    }
    assert not wrong


def test_hostile_feature_files_are_refused_cheaply(tmp_path):
    assert_refused(run_limited("features", HOSTILE, tmp_path), "DataError")
    assert not (tmp_path / CANARY).exists()


def test_pipes_devices_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(DataError, match="cannot be read"):
            load_pickle(path)
