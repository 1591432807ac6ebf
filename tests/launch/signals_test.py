"""Signals of a launcher are recorded and forwarded once, in order, also if they arrive before a listener."""

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
    forwarded = []
    with Signals() as signals:
        with signals.forwarded_to(forwarded.append):
            send(number)
            assert forwarded == [number]
        send(number)
        assert forwarded == [number]
        assert signals.received == (number, number)


def test_early_signal_is_forwarded_once_to_the_first_listener():
    first, second = [], []
    with Signals() as signals:
        send(signal.SIGTERM)
        with signals.forwarded_to(first.append):
            pass
        with signals.forwarded_to(second.append):
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


def test_signal_that_another_machine_reports_is_forwarded_without_a_handler():
    before, forwarded = signal.getsignal(signal.SIGTERM), []
    signals = Signals()
    signals.receive(signal.SIGTERM)
    with signals.forwarded_to(forwarded.append):
        signals.receive(signal.SIGINT)
    assert forwarded == [signal.SIGTERM, signal.SIGINT] and signals.received == (signal.SIGTERM, signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
