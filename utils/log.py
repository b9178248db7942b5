"""The log, on the terminal and in a file."""

import contextlib
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from utils.ranks import is_first_rank

logger = logging.getLogger("MMSA")  # the name in the log lines of MMSA
TERMINAL_LEVELS = (logging.ERROR, logging.INFO, logging.DEBUG)  # by verbose_level
# A full disk or a closed pipe ends the log but not the run.
logging.raiseExceptions = False


def start_log(log_file: Path, verbose_level: int) -> None:
    """Log to the terminal and to a file, in the first rank only.

    Args:
        log_file: File for messages of level info, and debug with `verbose_level` 2.
        verbose_level: Messages on the terminal: 0 errors, 1 info, 2 debug.

    Raises:
        OSError: The file cannot be written.
    """
    stop_log()
    logger.propagate = False
    if not is_first_rank():
        logger.addHandler(logging.NullHandler())
        return
    log_file.parent.mkdir(parents=True, exist_ok=True)
    terminal = logging.StreamHandler(sys.stdout)
    file = logging.FileHandler(log_file, encoding="utf-8")
    formatter = logging.Formatter("%(asctime)s - %(name)s [%(levelname)s] - %(message)s")
    terminal.setLevel(TERMINAL_LEVELS[verbose_level])
    file.setLevel(logging.DEBUG if verbose_level == 2 else logging.INFO)
    for handler in (terminal, file):
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)


def stop_log() -> None:
    """Close the handlers of an earlier command in this process."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # buffered lines do not fit on a full disk
            handler.close()


def progress(batches: Iterable, description: str) -> Iterable:
    """Show a progress bar over batches, if the output is a terminal and this the first rank."""
    disable = None if is_first_rank() else True  # None: if the output is not a terminal
    return tqdm(batches, desc=description, leave=False, disable=disable)
