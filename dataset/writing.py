"""Where the commands that make feature pickles put them."""

import os
import pickle
from pathlib import Path

from utils.errors import ConfigError, DataError
from utils.files import write_atomically


def check_output(path: str | Path, overwrite: bool) -> Path:
    """The path, if a file can be written there. Raises ConfigError where one is there already, or no folder for it."""
    path = Path(path)
    if path.exists() and not (overwrite and path.is_file()) or not os.access(path.parent, os.W_OK):
        raise ConfigError(
            f"--output: {path} is there already (--overwrite replaces a file), or its folder cannot be written to."
        )
    return path


def write_pickle(path: Path, content: dict) -> None:
    """Write a feature pickle, whole or not at all. Raises DataError where that cannot be."""
    try:
        write_atomically(path, lambda file: pickle.dump(content, file, protocol=5))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}). Name a writable folder.") from error
