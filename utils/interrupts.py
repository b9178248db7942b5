"""What SIGINT and SIGTERM do: the program ends in order, and a second signal ends it at once."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_held = False
_waiting: list[int] = []  # the signal that came while signals were held


class Interrupted(BaseException):
    """The user or the system asks the program to end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number, self.exit_status = number, 128 + number


@contextmanager
def orderly_interrupts() -> Iterator[None]:
    """Inside, the first signal raises Interrupted, and the second has its usual, deadly effect."""
    main = os.getpid()

    def interrupt(number, frame):
        if os.getpid() == main:  # else a loader process, which the main process ends
            for s in before:
                signal.signal(s, signal.SIG_DFL)
            _waiting.append(number)
            _raise_waiting()

    def send_again(unraisable):
        """Python ignores what is raised in a __del__ or another callback: the signal comes again, a little later."""
        if not isinstance(unraisable.exc_value, Interrupted):
            hook_before(unraisable)
            return
        for s in before:
            signal.signal(s, interrupt)
        threading.Timer(0.01, os.kill, (main, unraisable.exc_value.number)).start()

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
    hook_before, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        yield
    finally:
        sys.unraisablehook = hook_before
        for s, handler in before.items():
            signal.signal(s, handler)


@contextmanager
def interrupts_held(held: bool = True) -> Iterator[None]:
    """Inside, a signal waits until the end, for what must not be left half-done; held=False lets signals in again."""
    global _held
    before, _held = _held, held
    try:
        _raise_waiting()
        yield
    finally:
        _held = before
        _raise_waiting()


def _raise_waiting() -> None:
    if _waiting and not _held:
        raise Interrupted(_waiting.pop())
