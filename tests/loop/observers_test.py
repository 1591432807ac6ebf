"""Observers of extension packages: when they are imported, which rows they receive, and how they end."""

import pytest

from engine.loop.observers import LateObserver

TIMES = [0.014, 0.9, 0.012, 0.016]
made = []


class Seen:
    """Keeps what it receives."""

    def __init__(self, trainer):
        self.trainer, self.calls, self.waited = trainer, [], None
        made.append(self)

    def rows(self, rows):
        self.calls.append([row["step"] for row in rows])

    def close(self, wait):
        self.waited = wait


@pytest.fixture
def observer():
    made.clear()
    return LateObserver("tests.loop.observers_test.Seen", "trainer")


def fill(observer, steps):
    observer.row({"step": steps, "loss": 1.0})  # the first row has no rates
    for i, step_s in enumerate(TIMES, 2):
        observer.row({"step": i * steps, "step_time_s": step_s})


def test_observer_of_a_short_attempt_is_never_made(observer, monkeypatch):
    fill(observer, 50)  # 47 s
    observer.close(wait=True)
    assert not made


def test_observer_is_made_after_a_minute_and_receives_all_rows(observer):
    fill(observer, 70)  # 64 s until the third row with a time
    fill(observer, 70)
    observer.close(wait=False)
    [seen] = made
    assert seen.trainer == "trainer"
    assert seen.calls[0] == [70, 140, 210] and [len(call) for call in seen.calls[1:]] == [1] * 7
    assert seen.waited is False
