import threading
import time

import pytest

from engine.data import stages
from engine.data.stages import STAGES, recorded, stage


class FakeTime:
    """Seconds that only advance when the test says so."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(stages.time, "perf_counter", lambda: self.now)

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return FakeTime(monkeypatch)


def named(times):
    return {name: seconds for name, seconds in zip(STAGES, times, strict=True) if seconds}


def test_each_moment_counts_for_the_innermost_stage(clock):
    with recorded() as recording:
        clock.passes(1)
        with stage("decode"):
            clock.passes(2)
            with stage("collate"):
                clock.passes(4)
            clock.passes(8)
        clock.passes(16)
        with stage("transform"), stage("read"):
            clock.passes(32)
    clock.passes(64)
    assert named(recording.times) == {"read": 1 + 16 + 32, "decode": 2 + 8, "collate": 4}


def test_stage_ends_where_its_block_raises(clock):
    with recorded() as recording:
        with pytest.raises(KeyError), stage("decode"):
            clock.passes(1)
            raise KeyError
        clock.passes(2)
    assert named(recording.times) == {"read": 2, "decode": 1}


def test_nested_recording_leaves_the_outer_one_as_it_is(clock):
    with recorded() as outer:
        with stage("decode"):
            clock.passes(8)
            with recorded() as inner:
                clock.passes(1)
            clock.passes(2)
        clock.passes(4)
    assert named(inner.times) == {"read": 1}
    assert outer.times[STAGES.index("decode")] == 8 + 2
    assert outer.times[STAGES.index("read")] == 4


def test_stage_without_a_recording_measures_nothing(clock):
    with stage("decode"):
        clock.passes(1)
    with recorded() as recording:
        clock.passes(2)
    assert named(recording.times) == {"read": 2}


def test_threads_have_clocks_of_their_own():
    found = {}

    def read(name, seconds):
        with recorded() as recording, stage(name):
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass
        found[name] = recording.times

    threads = [threading.Thread(target=read, args=(name, 0.01)) for name in ("decode", "collate")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, times in found.items():
        assert times[STAGES.index(name)] >= 0.01
        assert sum(times) - times[STAGES.index(name)] <= times[0] + 1e-9


def test_unknown_stage_raises():
    with pytest.raises(ValueError, match="decoding"):
        stage("decoding")
