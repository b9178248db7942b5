"""The log, on the terminal and in a file, and which process writes it."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger("MMSA")  # the name that the log lines of this family carry
logging.raiseExceptions = False  # a full disk, or a reader of a pipe that has gone, ends the log but not the run


def start_log(log_file: Path, verbose_level: int) -> None:
    """Send log lines to the terminal (0: errors, 1: info, 2: debug) and, from info on, to `log_file`.

    Of several ranks only the first has a log. Raises OSError where the file cannot be written.
    """
    stop_log()
    logger.propagate = False
    if not is_first_rank():
        logger.addHandler(logging.NullHandler())
        return
    log_file.parent.mkdir(parents=True, exist_ok=True)
    terminal, file = logging.StreamHandler(sys.stdout), logging.FileHandler(log_file, encoding="utf-8")
    formatter = logging.Formatter("%(asctime)s - %(name)s [%(levelname)s] - %(message)s")
    terminal.setLevel({0: logging.ERROR, 1: logging.INFO, 2: logging.DEBUG}[verbose_level])
    file.setLevel(logging.DEBUG if verbose_level == 2 else logging.INFO)
    for handler in (terminal, file):
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)


def stop_log() -> None:
    """Close the handlers of an earlier run in this process."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # what a full disk did not take
            handler.close()


def progress(batches: Iterable, description: str) -> Iterable:
    """A progress bar over batches; none where the output is not a terminal, or another rank shows one."""
    return tqdm(batches, desc=description, leave=False, disable=None if is_first_rank() else True)


def number_of_processes() -> int:
    """How many processes a launcher has started to train one model."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Whether this process is the one of them that writes."""
    return number_of_processes() == 1 or os.environ.get("RANK", "0") == "0"
