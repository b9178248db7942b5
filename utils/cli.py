"""How a command reads its flags, and how it ends."""

import argparse
import logging
import sys
import traceback
from collections.abc import Callable

from utils.errors import ConfigError, DMDError
from utils.interrupts import Interrupted, orderly_interrupts
from utils.log import logger, stop_log
from utils.ranks import is_first_rank


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with errors of one line."""

    def error(self, message: str) -> None:
        raise ConfigError(f"{message}. See {self.prog} -h.")


def run_command(main: Callable[[], None], after_interrupt: Callable[[], str] = lambda: "") -> int:
    """Call `main`.  -> exit status: 2 for what the user can fix (a DMDError, or what the system
    refuses), 1 for an internal error, 130 and 143 for SIGINT and SIGTERM, with what
    `after_interrupt` says as a last word.

    Errors are one line; their traceback is in the log, if there is one.
    """
    try:
        with orderly_interrupts():
            main()
    except Interrupted as interruption:
        if is_first_rank():  # a launcher stops all its processes
            print(f"Stopped by {interruption}. {after_interrupt()}".rstrip(), file=sys.stderr)
        return interruption.exit_status
    except Exception as error:
        file, line = log_traceback(error), f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, (DMDError, OSError)):
            print(line, file=sys.stderr)
            return 2
        if file is None:
            traceback.print_exception(error)
        print(
            f"{line} (an internal error; its traceback is in {file or 'the lines above'})",
            file=sys.stderr,
        )
        return 1
    finally:
        stop_log()
    return 0


def log_traceback(error: Exception) -> str | None:
    """Add the traceback to the log file that is open.  -> its name, or None where none is"""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            text = "".join(traceback.format_exception(error)).rstrip()
            handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), None))
            return handler.baseFilename
    return None
