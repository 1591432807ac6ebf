"""A phase sets the stopwatch, the watchdog and the progress line together; the enclosing phase returns after it."""

import pytest

from engine.loop.phases import CALLING_HOOK, COMPILING, EVALUATING, SAVING, TRAINING, Phases
from engine.loop.watchdog import Watchdog
from engine.run.goodput import Stopwatch, read, sums


@pytest.fixture
def parts(tmp_path):
    stopwatch = Stopwatch(tmp_path / "goodput.jsonl", attempt=1)
    watchdog = Watchdog(hang_s=60.0, timeout_s=600.0, folder=tmp_path / "stacks", attempt=1)
    return stopwatch, watchdog, tmp_path / "goodput.jsonl"


class FakeRecorder:
    """Records the calls of a recorder."""

    def __init__(self):
        self.calls = []

    def settle(self):
        self.calls.append("settle")

    def phase(self, name):
        self.calls.append(name)

    def pause(self, seconds):
        self.calls.append("pause")


def test_seconds_count_as_the_kind_of_the_phase(parts):
    stopwatch, watchdog, file = parts
    phase = Phases(stopwatch, watchdog)
    assert phase.name == "starting"
    with phase(SAVING):
        assert watchdog.progress.phase == phase.name == "saving"
        with phase(COMPILING):
            assert watchdog.progress.phase == "saving"  # which has the longer timeout
            assert phase.name == "compiling"
        stopwatch.flush()
    stopwatch.close()
    times = sums(read(file))[1]
    assert times["save stall"].seconds > 0 and times["compile"].seconds > 0


def test_previous_phase_returns_after_an_error(parts):
    stopwatch, watchdog, _ = parts
    phase = Phases(stopwatch, watchdog)
    with pytest.raises(ZeroDivisionError), phase(SAVING):
        raise ZeroDivisionError
    assert watchdog.progress.phase == phase.name == "starting"


def test_phase_outside_rates_settles_and_pauses_the_recorder(parts):
    stopwatch, watchdog, _ = parts
    phase, recorder = Phases(stopwatch, watchdog), FakeRecorder()
    phase.recorder = recorder  # pyright: ignore[reportAttributeAccessIssue]
    with phase(EVALUATING):
        assert watchdog.progress.phase == "evaluating"
    assert recorder.calls == ["settle", "evaluating", "training", "pause"]
    recorder.calls.clear()
    with phase(CALLING_HOOK), phase(TRAINING):
        assert watchdog.progress.phase == "calling a hook"
    assert recorder.calls == ["settle", "pause"]
