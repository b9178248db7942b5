"""Parse the flags of a command, and turn its errors into an exit status."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable

from utils.errors import ConfigError, DMDError
from utils.interrupts import Interrupted, orderly_interrupts
from utils.log import logger, stop_log
from utils.ranks import is_first_rank


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that raises one-line errors."""

    def error(self, message: str) -> None:
        """Raise ConfigError."""
        raise ConfigError(f"{message}. See {self.prog} -h.")


class RenamedFlag(argparse.Action):
    """A flag of earlier versions: an error that gives the new name, which is `const`."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Raise ConfigError."""
        parser.error(f"{option_string} is now {self.const}")


def run_command(main: Callable[[], None], after_interrupt: Callable[[], str] = lambda: "") -> int:
    """Run a command, and turn its errors into one line and an exit status.

    The traceback of an error is written to the log file, if one is open.

    Args:
        main: The command.
        after_interrupt: Makes the line that follows "Stopped by SIGINT.".

    Returns:
        0; 2 for a problem that the user can fix (a DMDError or an OSError); 1 for an internal
        error; 130 and 143 for SIGINT and SIGTERM.
    """
    try:
        with orderly_interrupts():
            main()
    except Interrupted as interruption:
        if is_first_rank():  # a launcher stops all its processes
            print(f"Stopped by {interruption}. {after_interrupt()}".rstrip(), file=sys.stderr)
        return interruption.exit_status
    except BrokenPipeError:  # the reader of the output has gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
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
    """Add the traceback of an error to the log file.

    Returns:
        The name of the log file; None if none is open.
    """
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            text = "".join(traceback.format_exception(error)).rstrip()
            handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), None))
            return handler.baseFilename
    return None
