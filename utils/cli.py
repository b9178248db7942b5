"""How a command ends."""

import argparse
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable

from utils.errors import DMDError
from utils.interrupts import Interrupted, orderly_interrupts
from utils.log import is_first_rank, logger, stop_log


def run_command(main: Callable[[], None], after_interrupt: Callable[[], str] = lambda: "") -> int:
    """Call `main`.  -> exit status

    A mistake of the user's is one line on stderr and status 2. Any other failure is status 1, with the traceback in the
    log if there is one yet. SIGINT and SIGTERM are 130 and 143, with what `after_interrupt` says as a last word.
    """
    try:
        with orderly_interrupts():
            main()
    except DMDError as error:
        log_traceback(error)
        print(_line(error), file=sys.stderr)
        return 2
    except Interrupted as interruption:
        if is_first_rank():  # a launcher stops all its processes
            print(f"Stopped by {interruption}. {after_interrupt()}".rstrip(), file=sys.stderr)
        return interruption.exit_status
    except Exception as error:
        if not is_first_rank() and _is_of_another_rank(error):
            return 1
        file = log_traceback(error)
        if file is None:
            traceback.print_exception(error)
        print(
            f"{_line(error)} (an internal error; its traceback is {f'in {file}' if file else 'above'})", file=sys.stderr
        )
        return 1
    finally:
        stop_log()
    return 0


def _is_of_another_rank(error: Exception) -> bool:
    """Whether a rank has failed because another one has ended, which tells why."""
    return "torch.distributed" in str(type(error)) or "Connection closed by peer" in str(error)


def script(file: str) -> str:
    """How a program's file is named on a command line that is given here."""
    relative = os.path.relpath(file)
    return os.path.abspath(file) if relative.startswith(os.pardir) else relative


def command_line(program: str, parser: argparse.ArgumentParser, options: dict) -> str:
    """The command that gives a parser these options by their long flags; those with their default value are left
    out."""
    words = ["python", program]
    for action in parser._actions:
        value, flag = options.get(action.dest), action.option_strings[-1]
        if action.dest not in options or value == action.default:
            continue
        if action.nargs == 0:
            words.append(flag)
        else:
            words += [flag, *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return shlex.join(words)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def log_traceback(error: Exception) -> str | None:
    """Add the traceback to the log file that is open.  -> its name, or None where none is"""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            text = "".join(traceback.format_exception(error)).rstrip()
            handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), None))
            return handler.baseFilename
    return None
