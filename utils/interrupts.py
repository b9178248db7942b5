"""SIGINT and SIGTERM end the program in order; a second signal ends it at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
RETRY_SECONDS = 0.01

_held = False
_pending: list[int] = []  # the signal that came while signals were held


class Interrupted(BaseException):
    """The program received SIGINT or SIGTERM."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_status = 128 + number


@contextmanager
def orderly_interrupts() -> Iterator[None]:
    """Let the first signal raise Interrupted, and the second one end the process at once."""
    main_process = os.getpid()
    previous_handlers = {number: signal.getsignal(number) for number in SIGNALS}
    previous_hook = sys.unraisablehook

    def interrupt(number, frame):
        if os.getpid() != main_process:  # a loader process, which the main process ends
            return
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        _pending.append(number)
        _raise_pending()

    def send_again(unraisable):
        """Send the signal again, a little later: Python ignores exceptions in __del__."""
        if not isinstance(unraisable.exc_value, Interrupted):
            previous_hook(unraisable)
            return
        for each in SIGNALS:
            signal.signal(each, interrupt)
        number = unraisable.exc_value.number
        threading.Timer(RETRY_SECONDS, os.kill, (main_process, number)).start()

    for number in SIGNALS:
        signal.signal(number, interrupt)
    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = previous_hook
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold signals until the end of the context, so that a transaction is completed."""
    with _set_held(True):
        yield


@contextmanager
def interrupts_allowed() -> Iterator[None]:
    """Allow signals again within `interrupts_held`."""
    with _set_held(False):
        yield


@contextmanager
def _set_held(held: bool) -> Iterator[None]:
    global _held
    before = _held
    _held = held
    try:
        _raise_pending()
        yield
    finally:
        _held = before
        _raise_pending()


def _raise_pending() -> None:
    if _pending and not _held:
        raise Interrupted(_pending.pop())
