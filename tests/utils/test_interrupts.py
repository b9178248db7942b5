"""Real signals raise Interrupted."""

import os
import signal
import time

import pytest

from utils.interrupts import Interrupted, interrupts_held, orderly_interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_held_signal_is_raised_when_signals_are_allowed(number):
    passed = []
    with pytest.raises(Interrupted) as interruption, orderly_interrupts(), interrupts_held():
        os.kill(os.getpid(), number)
        with interrupts_held():
            passed.append("held")
        with interrupts_held(False):
            passed.append("let in")
    assert passed == ["held"]
    assert interruption.value.exit_status == 128 + number


def test_signal_in_a_destructor_is_not_lost():
    class Slow:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(100):  # the signal is handled here, and the exception is ignored
                pass

    with pytest.raises(Interrupted), orderly_interrupts():
        Slow()
        time.sleep(5)


def test_held_signal_is_raised_once_after_an_error():
    with pytest.raises(Interrupted) as interruption, orderly_interrupts(), interrupts_held():
        os.kill(os.getpid(), signal.SIGTERM)
        raise OSError
    assert isinstance(interruption.value.__context__, OSError)
    with orderly_interrupts(), interrupts_held():
        pass
