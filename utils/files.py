"""Write files atomically, so that a reader finds a whole file or none."""

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from utils.errors import ConfigError

TEMPORARY = ".{}.{}.dmd-tmp"  # name of a file while the process of that number writes it


def check_output(path: str | Path, overwrite: bool, flag: str = "--output") -> Path:
    """Check that a command may write its output file.

    Args:
        path: The file.
        overwrite: Allow to overwrite an existing file.
        flag: The flag that named the file, for the error message.

    Returns:
        The path.

    Raises:
        ConfigError: The path exists and must not be overwritten.
    """
    path = Path(path)
    if path.exists() and not (overwrite and path.is_file()):
        raise ConfigError(
            f"{flag}: {path} already exists. Choose another file, or replace it with --overwrite."
        )
    return path


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that no reader ever finds half of it, whenever the process or machine stops.

    A temporary file in the same folder is filled, synced to the disk and renamed.

    Args:
        path: The file.
        write: Writes the content to the open file.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary, open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def link_atomically(source: Path, path: Path) -> None:
    """Hard-link `source` to `path`; copy it if the file system does not support hard links."""
    try:
        with _replacing(path) as temporary:
            os.link(source, temporary)
    except OSError:
        write_atomically(path, lambda file: file.write(source.read_bytes()))


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write to; on exit, it replaces `path`."""
    temporary = path.with_name(TEMPORARY.format(path.name, os.getpid()))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        # It still exists after success if both were already links to the same file.
        temporary.unlink(missing_ok=True)
    if os.name != "nt":  # Windows cannot open folders
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            # Some file systems do not support it. The file itself is on the disk.
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def lock_folder(folder: Path, timeout: float = -1) -> Iterator[None]:
    """Lock a folder, so that other processes that lock it have to wait.

    Raises Timeout if another process has it for longer than `timeout` seconds (-1: no limit), and
    OSError if the file system has no locks.
    """
    lock = FileLock(folder / ".lock", timeout=timeout)
    try:
        lock.acquire()
    except NotImplementedError as error:
        raise OSError(errno.ENOTSUP, "the file system has no file locks", str(folder)) from error
    try:
        yield
    finally:
        lock.release()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed."""
    for temporary in folder.glob(TEMPORARY.format("*", "[0-9]*")):
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Write `content` as indented JSON.

    Args:
        path: The file.
        content: Dicts, lists and plain values. NaN and infinity, which JSON does not have, become
            null (`read_metrics` reads it back as NaN).
    """
    finite = _non_finite_to_none(content)
    text = json.dumps(finite, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_csv(path: Path, table) -> None:
    """Write a pandas table without its index."""
    write_atomically(path, lambda file: table.to_csv(file, index=False))


def _non_finite_to_none(value: object) -> object:
    """A copy of nested dicts and lists with None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: _non_finite_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_non_finite_to_none(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
