"""Feature pickles that are put in place only after they were read back and found good."""

import os
import pickle
from collections.abc import Callable
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


def write_checked(path: Path, content: dict, verify: Callable[[str], object]) -> None:
    """Write a feature pickle beside `path`, let `verify` read it back, then put it in place.

    `content` is empty afterwards: a large file need not be in memory twice. What verify raises leaves `path` as it was.
    """

    def write(file) -> None:
        pickle.dump(content, file, protocol=5)
        content.clear()
        file.flush()
        try:
            verify(file.name)
        except DataError as error:  # it is the file to be that is wrong
            raise DataError(str(error).replace(file.name, str(path))) from error

    try:
        write_atomically(path, write)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}).") from error
