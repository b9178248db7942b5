"""Calling the commands on a small corpus."""

import pickle
from pathlib import Path

import run
from utils.cli import run_command

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--set", "nlevels=1", "--set", "batch_size=8", "--set", "update_epochs=2", "--set", "max_epochs=2"]
SMALL = [*TINY, "--no-figures"]  # drawing takes longer than training so little


def write_pickle(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


def call(command, *arguments: str) -> int:
    return run_command(lambda: command.main(list(arguments)))


def train(*arguments: str) -> int:
    return call(run, "-d", "synthetic", *SMALL, *arguments)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for name in ("pt", "result") for p in (folder / name).rglob("*") if p.is_file()}
