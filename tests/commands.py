"""Call the commands on a small corpus."""

import csv
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import run
from utils.cli import run_command

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {"nlevels": 1, "dst_feature_dim_nheads": [16, 2], "batch_size": 8, "update_epochs": 2}
TINY = ["--set", *(f"{key}={value}" for key, value in CONFIG.items()), "--set", "max_epochs=2"]
SMALL = [*TINY, "--no-figures"]  # drawing takes longer than training so little


def write_pickle(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


def call(command, *arguments: str) -> int:
    """The exit status of a command, which is a module."""
    return run_command(lambda: command.main(list(arguments)))


def train(*arguments: str) -> int:
    return call(run, "-d", "synthetic", *SMALL, *arguments)


def launch(*command: str, **options) -> subprocess.CompletedProcess:
    """Start a Python program in a new process."""
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        **options,
    )


def files() -> dict[str, bytes]:
    """All files in the working directory, except logs and lock files."""
    return {
        str(p): p.read_bytes() for p in Path().rglob("[!.]*") if p.is_file() and p.parts[0] != "log"
    }


def refused(capsys, command, *arguments: str) -> str:
    """The one line of a command (a module, or `train`) that ends with status 2 and leaves all files
    as they were.
    """
    before = files()
    capsys.readouterr()
    assert (command(*arguments) if callable(command) else call(command, *arguments)) == 2, arguments
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and files() == before, message
    return message


def rows_of(path: str | Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def metrics_of(run: str) -> dict:
    return json.loads(Path("result", run, "metrics.json").read_text())


def timeless(run: str) -> list[dict[str, str]]:
    """The rows of a run's history, without the seconds."""
    rows = rows_of(f"result/{run}/history.csv")
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]
