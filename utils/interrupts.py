"""What SIGINT and SIGTERM do: the program ends in order, and a second signal ends it at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The user or the system asks the program to end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


@contextmanager
def orderly_interrupts() -> Iterator[None]:
    """Inside, the first signal raises Interrupted wherever the program is; the second has its usual, deadly effect."""
    main = os.getpid()

    def interrupt(number, frame):
        if os.getpid() != main:  # a loader process: the main process ends it
            return
        for s in SIGNALS:
            signal.signal(s, signal.SIG_DFL)
        raise Interrupted(number)

    before = {s: signal.signal(s, interrupt) for s in SIGNALS}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
