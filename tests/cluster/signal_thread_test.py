"""Functions that a thread calls when signals arrive."""

import os
import queue
import signal
import threading

import pytest

from engine.cluster.signal_thread import watching


@pytest.fixture(autouse=True)
def handlers():
    """Python reports only signals that have a handler."""
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    former = [signal.signal(number, lambda number, frame: None) for number in numbers]
    yield
    for number, handler in zip(numbers, former, strict=True):
        signal.signal(number, handler)


def test_inner_block_receives_a_signal_and_the_outer_block_the_others():
    outer, inner = queue.Queue(), queue.Queue()
    with watching((signal.SIGUSR1, signal.SIGUSR2), outer.put):
        with watching((signal.SIGUSR1,), inner.put):
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                os.kill(os.getpid(), number)
            assert (inner.get(timeout=60), outer.get(timeout=60)) == (signal.SIGUSR1, signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert outer.get(timeout=60) == signal.SIGUSR1
    assert inner.empty() and outer.empty()


def test_the_end_of_the_last_block_restores_the_descriptor_and_ends_the_thread():
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with watching((signal.SIGUSR1,), print):
        assert "signals" in {thread.name for thread in threading.enumerate()}
    assert signal.set_wakeup_fd(before) == before
    assert "signals" not in {thread.name for thread in threading.enumerate()}
