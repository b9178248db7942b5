"""Feature pickles that are put in place only after they were read back and found good."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from utils.errors import ConfigError, DataError
from utils.files import write_atomically

Result = TypeVar("Result")


def check_output(path: str | Path, overwrite: bool) -> Path:
    """The path, if a file can be written there. Raises ConfigError where one is there already, or no folder for it."""
    path = Path(path)
    if path.exists() and not (overwrite and path.is_file()):
        raise ConfigError(f"--output: {path} is there already. Replace a file with --overwrite, or name another.")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--output: there is no folder {path.parent} that can be written to. Name another.")
    return path


def write_checked(path: Path, content: dict, verify: Callable[[str], Result]) -> Result:
    """Write a feature pickle beside `path`, let `verify` read it back, then put it in place.  -> what verify returns

    `content` is empty afterwards: a large file need not be in memory twice. What verify raises leaves `path` as it was.
    """
    verified = []

    def write(file) -> None:
        pickle.dump(content, file, protocol=5)
        content.clear()
        file.flush()
        try:
            verified.append(verify(file.name))
        except DataError as error:  # it is the file to be that is wrong
            raise DataError(str(error).replace(file.name, str(path))) from error

    try:
        write_atomically(path, write)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}).") from error
    return verified[0]
