"""How a command ends."""

import logging
import os
import sys
import traceback
from collections.abc import Callable

from utils.errors import DMDError
from utils.interrupts import Interrupted, orderly_interrupts
from utils.log import is_first_rank, logger, stop_log


def run_command(main: Callable[[], None], after_interrupt: Callable[[], str] = lambda: "") -> int:
    """Call `main`.  -> exit status: 2 for a user's mistake, 1 for another failure, whose traceback is in the log, if
    there is one, 130 and 143 for SIGINT and SIGTERM, with what `after_interrupt` says as a last word."""
    try:
        with orderly_interrupts():
            main()
    except DMDError as error:
        log_traceback(error)
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        log_traceback(error)
        print(f"{os.path.abspath(error.filename or '')}: {error.strerror}.", file=sys.stderr)
        return 2
    except Interrupted as interruption:
        if is_first_rank():  # a launcher stops all its processes
            print(f"Stopped by {interruption}. {after_interrupt()}".rstrip(), file=sys.stderr)
        return interruption.exit_status
    except Exception as error:
        file = log_traceback(error)
        if file is None:
            traceback.print_exception(error)
        line, where = " ".join(str(error).split()), f"in {file}" if file else "above"
        print(f"{type(error).__name__}: {line} (an internal error; its traceback is {where})", file=sys.stderr)
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
