import os
import sys
import time

import pytest

from engine.base import cores

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_usable_cores_are_those_of_the_affinity():
    assert cores.usable_cores() == len(os.sched_getaffinity(0))


@linux
def test_idle_seconds_grow_at_most_as_fast_as_the_cores():
    before, begin = cores.idle_seconds(), time.monotonic()
    assert before is not None and before >= 0
    after = cores.idle_seconds()
    assert after is not None
    # The time of waiting for storage, which is a part of it, may decrease (man 5 proc).
    assert -1 <= after - before <= cores.usable_cores() * (time.monotonic() - begin + 1)


def test_idle_seconds_of_the_usable_cores_are_added_up(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 10}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    (tmp_path / "stat").write_text("cpu 9 9 9 9 9\ncpu0 1 1 1 500 200 3\ncpu1 1 1 1 9000 1 0\ncpu10 1 1 1 40 60 0\n")
    assert cores.idle_seconds() == 8.0


def test_idle_seconds_are_unknown_without_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_STATISTICS", tmp_path / "missing")
    assert cores.idle_seconds() is None
