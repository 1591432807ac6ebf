"""Signals of a launcher: noted, passed on once and in order, whoever listens when they come."""

import os
import signal
import threading
import time

import pytest

from engine.launch.signals import Signals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_recorded_and_forwarded(number):
    passed = []
    with Signals() as signals:
        with signals.passed_to(passed.append):
            send(number)
            assert passed == [number]
        send(number)
        assert passed == [number]
        assert signals.received == (number, number)


def test_early_signal_is_forwarded_once_to_the_first_listener():
    first, second = [], []
    with Signals() as signals:
        send(signal.SIGTERM)
        with signals.passed_to(first.append):
            pass
        with signals.passed_to(second.append):
            pass
    assert (first, second) == ([signal.SIGTERM], [])


def test_signal_ends_a_wait():
    with Signals() as signals:
        begin = time.monotonic()
        signals.wait(0.1)
        assert time.monotonic() - begin >= 0.1
        threading.Timer(0.1, send, [signal.SIGTERM]).start()
        signals.wait(60)
        assert signals.received == (signal.SIGTERM,)
        signals.wait(60)
        assert time.monotonic() - begin < 30


def test_previous_signal_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Signals():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
