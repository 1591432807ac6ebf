"""A queue in front of an output stream: order, bounds, what is dropped, and what happens at the end."""

import os
import threading
import time

import pytest

from engine.cluster import timeouts
from engine.cluster.output_queue import OutputQueue


class Screen:
    """A stream whose reader can be stopped."""

    def __init__(self):
        self.reads = threading.Event()
        self.reads.set()
        self.text = ""
        self.reports: list[str] = []
        self.queue = OutputQueue[str]("standard error", self._write, str, self.reports.append)

    def _write(self, text: str) -> None:
        assert self.reads.wait(60)
        self.text += text

    def put(self, *lines: str) -> None:
        for line in lines:
            self.queue.put(f"{line}\n", 1)


@pytest.fixture
def screen():
    made = Screen()
    yield made
    made.reads.set()


def test_line_is_written_when_the_call_returns(screen):
    for n in range(100):
        screen.put(str(n))
        assert screen.text.endswith(f"{n}\n")
    assert screen.queue.drain() and screen.reports == []


def test_late_reader_costs_its_time_once_and_reads_everything_in_order(screen):
    screen.reads.clear()
    begin = time.monotonic()
    screen.put(*map(str, range(1000)))
    assert time.monotonic() - begin < 10 * timeouts.CALLER_WAITS_S
    screen.reads.set()
    assert screen.queue.drain()
    assert screen.text.split() == [str(n) for n in range(1000)]
    screen.put("later")
    assert screen.text.endswith("later\n")  # nobody is late any more


def test_what_does_not_fit_is_dropped_and_counted_on_the_screen_and_for_the_log(screen):
    screen.reads.clear()
    screen.put(*["x" * 99_999] * 15)
    screen.reads.set()
    assert screen.queue.drain()
    shown = screen.text.count("x" * 99_999)
    assert 0 < shown < 15
    lost = f"standard error was not read in time: {15 - shown} lines are missing"
    assert screen.text.endswith(f"\n[{lost} here. The log of a run has those of the engine.]\n")
    assert screen.reports == [f"{lost}. This log has those of the engine."]


def test_reader_that_is_only_slower_than_the_callers_loses_nothing(screen, monkeypatch):
    screen.reads.clear()
    screen.put(*["x" * 99_999] * 9)  # late from here on
    monkeypatch.setattr(timeouts, "CALLER_WAITS_S", 60.0)  # for room, so that a busy machine is no slow reader
    screen.reads.set()
    screen.put(*["y" * 99_999] * 100)
    assert screen.queue.drain()
    assert screen.text.count("\n") == 109 and screen.reports == []


def test_full_queue_costs_its_callers_one_wait_more_and_counts_short_chunks_with_their_memory(screen):
    screen.reads.clear()
    begin = time.monotonic()
    for n in range(100_000):
        screen.queue.put(".", 1)
        assert n % 1000 or time.monotonic() - begin < 100 * timeouts.CALLER_WAITS_S
    screen.reads.set()
    assert screen.queue.drain()
    assert 5_000 < screen.text.count(".") < 15_000


def test_end_does_not_wait_for_a_reader_that_does_not_read(screen):
    screen.reads.clear()
    screen.put("a", "b", "c")
    begin = time.monotonic()
    assert not screen.queue.drain()
    assert timeouts.UNREAD_S <= time.monotonic() - begin < timeouts.DRAIN_S
    begin = time.monotonic()
    assert not screen.queue.drain()
    assert time.monotonic() - begin < timeouts.UNREAD_S  # it has given up already
    assert "3 lines are missing or may appear later" in screen.reports[0]
    screen.queue.close()
    screen.put("discarded")  # the caller itself would wait for the reader


def test_thread_ends_without_output_and_starts_again(screen):
    screen.put("first")
    deadline = time.monotonic() + 60
    while any(thread.name == "output to standard error" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    screen.put("second")
    assert screen.text == "first\nsecond\n"


def test_forked_process_writes_by_itself(screen):
    screen.put("before")
    pid = os.fork()
    if pid == 0:
        screen.put("child")
        os._exit(0 if screen.text == "before\nchild\n" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    screen.put("parent")
    assert screen.text == "before\nparent\n"
