"""Every second of a run counts for one kind, over kills, restarts, other boots and clocks that jump."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.run import goodput
from engine.run.goodput import Entry, Stopwatch, append, read, record_death, sums


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "goodput.jsonl"


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A fake monotonic clock, which tests advance."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def seconds(path: Path) -> dict[int, dict[str, Any]]:
    """Returns attempt -> kind -> seconds, without kinds of zero seconds."""
    return {
        attempt: {kind: pytest.approx(t.seconds, abs=1e-6) for kind, t in kinds.items() if abs(t.seconds) > 1e-6}
        for attempt, kinds in sums(read(path)).items()
    }


def steps(path: Path, kind: str = "step") -> dict[int, int]:
    return {attempt: kinds[kind].steps for attempt, kinds in sums(read(path)).items()}


def train(path: Path, clock: list[float], attempt: int, first: int, last: int, began: float | None = None) -> Stopwatch:
    """Runs an attempt that starts in 5 s, restores in 2 s, then takes 1 s per step, of which 0.25 s wait for data."""
    stopwatch = Stopwatch(path, attempt, began)
    clock[0] += 5
    with stopwatch.during("restore"):
        clock[0] += 2
    stopwatch.begin(first)
    stopwatch.reached(first, 0.0)
    for step in range(first, last):
        clock[0] += 1
        stopwatch.reached(step + 1, 0.25 * (step + 1 - first))
    return stopwatch


def test_each_moment_counts_for_exactly_one_kind(path, clock):
    stopwatch = train(path, clock, 1, 0, 4)
    with stopwatch.during("evaluation"):
        clock[0] += 3
        with stopwatch.during("compile"):
            clock[0] += 0.5
    with pytest.raises(KeyError), stopwatch.during("save stall"):
        clock[0] += 0.25
        raise KeyError
    clock[0] += 0.125
    stopwatch.close()
    stopwatch.close()
    assert seconds(path) == {
        1: {"init": 5, "restore": 2, "step": 3.125, "data wait": 1, "evaluation": 3, "compile": 0.5, "save stall": 0.25}
    }
    assert steps(path) == {1: 4}
    assert [entry["kind"] for entry in read(path) if "closed" in entry] == [read(path)[-1]["kind"]]


def test_repeated_steps_are_moved_to_lost_once(path, clock):
    train(path, clock, 1, 0, 10)  # its last entry is at step 10; then it is killed
    clock[0] += 4
    second = train(path, clock, 2, 6, 8)
    second.close()
    assert seconds(path)[1] == {"init": 5, "restore": 2, "step": 4.5, "data wait": 2.5, "lost": 3}
    assert (steps(path), steps(path, "lost")) == ({1: 6, 2: 2}, {1: 4, 2: 0})
    train(path, clock, 3, 3, 12).close()  # a checkpoint was set aside: this attempt resumes from an earlier step
    assert (steps(path), steps(path, "lost")) == ({1: 3, 2: 0, 3: 9}, {1: 7, 2: 2, 3: 0})
    assert sum(steps(path).values()) == 12
    assert seconds(path)[2]["down"] == 4
    assert seconds(path)[1]["lost"] == pytest.approx(7 * 0.75)


def test_attempts_are_summed_separately_whatever_the_order_of_their_entries(path):
    Stopwatch(path, 1).close()
    more = {**read(path)[0], "kind": "step"}
    numbers = [(3, 1.0, 10), (2, 2.0, 20), (3, 4.0, 40), (2, 8.0, 80)]  # attempt, seconds, steps
    append(path, [Entry(**{**more, "attempt": a, "seconds": s, "steps": n}) for a, s, n in numbers])
    found = sums(read(path))
    assert list(found) == [1, 2, 3]
    assert [(kinds["step"].seconds, kinds["step"].steps) for kinds in found.values()] == [(0, 0), (10, 100), (5, 50)]


def test_time_between_two_steps_belongs_to_the_earlier_one(path, clock):
    stopwatch = train(path, clock, 1, 0, 4)
    clock[0] += 3
    stopwatch.flush()  # no step since the last entry
    clock[0] += 2
    stopwatch.reached(6, 1.0)
    stopwatch.begin(4)
    assert (seconds(path)[1]["lost"], steps(path, "lost")) == (2, {1: 2})
    stopwatch.begin(2)
    assert (seconds(path)[1]["lost"], steps(path, "lost")) == (2 + 3 + 2 * 0.75, {1: 4})


def test_time_lost_to_a_slow_process_changes_no_other_kind(path, clock):
    stopwatch = train(path, clock, 1, 0, 10)
    before = _plain(path)
    stopwatch.waited_for("process 2 (host a)", "data", 3.0)
    assert _plain(path) == before
    (entry,) = goodput.read(path, (goodput.SLOW,))
    assert (entry["seconds"], entry["attempt"], entry["step"]) == (3.0, 1, 10)
    assert (entry.get("process"), entry.get("cause")) == ("process 2 (host a)", "data")


def test_rollback_within_an_attempt_moves_its_steps_to_lost(path, clock):
    submitted, stopwatch = [], train(path, clock, 1, 0, 8)
    with stopwatch.written_by(submitted.append):
        stopwatch.begin(5)
        stopwatch.reached(5, 0.0)
        clock[0] += 1
        stopwatch.reached(6, 0.5)
        stopwatch.flush()
        for write in submitted:
            write()
    record_death(path, [os.getpid()], 8)
    assert (steps(path), steps(path, "lost")) == ({1: 6}, {1: 3 + 2})
    assert seconds(path)[1] == {"init": 5, "restore": 2, "step": 4.25, "data wait": 2.5, "lost": 2.25}


def test_entries_are_written_once_a_second_and_at_flush(path, clock):
    stopwatch = Stopwatch(path, 1)
    stopwatch.begin(0)
    for step in range(10):
        clock[0] += 0.25
        stopwatch.reached(step + 1, 0.0)
    assert [(e["step"], e["steps"]) for e in read(path) if e["kind"] == "step"] == [(0, 0), (5, 5), (10, 5)]
    clock[0] += 0.25
    stopwatch.reached(11, 0.0)
    stopwatch.flush()
    assert steps(path) == {1: 11}


def test_sum_of_all_kinds_is_the_wall_time(path, clock):
    for attempt, first in ((1, 0), (2, 5), (3, 2)):
        train(path, clock, attempt, first, first + 6, began=clock[0] - 1.5).close()
        clock[0] += 10
    assert sum(sum(kinds.values(), start=0.0) for kinds in _plain(path).values()) == pytest.approx(clock[0] - 98.5 - 10)


def _plain(path: Path) -> dict[int, dict[str, float]]:
    return {a: {kind: t.seconds for kind, t in kinds.items()} for a, kinds in sums(read(path)).items()}


def test_record_death_counts_time_after_the_last_entry_as_lost(path, clock):
    train(path, clock, 1, 0, 4)
    clock[0] += 0.5
    record_death(path, [1, 2], 6)  # another job's processes
    assert "lost" not in seconds(path)[1]
    record_death(path, [1, os.getpid()], 6)
    clock[0] += 30
    train(path, clock, 2, 4, 6).close()
    clock[0] += 1
    record_death(path, [os.getpid()], 6)  # it had closed
    assert seconds(path)[1]["lost"] == 0.5
    assert steps(path, "lost") == {1: 2, 2: 0}
    assert seconds(path)[2] == {"init": 5, "restore": 2, "step": 1.5, "data wait": 0.5, "down": 30}


def test_record_death_at_the_first_step_counts_for_that_attempt(path, clock):
    train(path, clock, 1, 0, 4).close()
    train(path, clock, 2, 2, 2)
    clock[0] += 0.5
    record_death(path, [os.getpid()], 3)
    assert seconds(path)[2] == {"init": 5, "restore": 2, "lost": 0.5}
    assert steps(path, "lost") == {1: 2, 2: 1}


def test_record_death_after_a_restart_without_repeated_steps_keeps_earlier_steps(path, clock):
    train(path, clock, 1, 0, 4).close()
    train(path, clock, 2, 4, 4)
    clock[0] += 0.5
    record_death(path, [os.getpid()], 5)
    assert (steps(path), steps(path, "lost")) == ({1: 4, 2: 0}, {1: 0, 2: 1})


def test_unsupervised_kill_counts_as_down_until_the_next_attempt(path, clock):
    train(path, clock, 1, 0, 4)
    clock[0] += 7
    assert not [entry for entry in read(path) if "wall" in entry]
    Stopwatch(path, 2, began=clock[0] - 2).close()
    assert seconds(path)[2] == {"down": 5, "init": 2}


def test_time_written_by_an_earlier_attempt_does_not_count_again(path, clock):
    """For example a second training in one process, whose time counts from the start of the process."""
    train(path, clock, 1, 0, 4).close()
    clock[0] += 1
    Stopwatch(path, 2, began=90.0).close()
    assert seconds(path)[2] == {"init": 1}


def test_wall_clock_jumps_do_not_change_the_times(path, clock, monkeypatch):
    hours = iter(range(0, -1000, -1))
    monkeypatch.setattr(time, "time", lambda: 1e9 + 3600 * next(hours))
    train(path, clock, 1, 0, 4)
    clock[0] += 7
    train(path, clock, 2, 4, 6).close()
    assert seconds(path)[2]["down"] == 7


def test_monotonic_clock_that_is_set_back_adds_no_seconds(path, clock, monkeypatch):
    """libfaketime sets it back with the wall clock. A supervisor reads it too, after a kill."""
    stopwatch = train(path, clock, 1, 0, 4)
    clock[0] -= 3600
    for step in range(4, 8):
        stopwatch.reached(step + 1, 1.0)
        clock[0] += 1
    stopwatch.flush()
    monkeypatch.setattr(time, "time", lambda: read(path)[-1]["time"] - 3600)
    clock[0] -= 3600
    record_death(path, [os.getpid()], 8)
    train(path, clock, 2, 8, 9).close()
    assert all(entry["seconds"] >= 0 for entry in read(path))
    assert steps(path) == {1: 8, 2: 1}
    assert seconds(path)[1]["step"] == 3 + 4
    assert len([entry for entry in read(path) if entry["attempt"] == 1 and entry["kind"] == "step"]) > 5  # each second


@pytest.mark.parametrize("later", [7.0, 1e6])
@pytest.mark.parametrize(("gap", "down"), [(50.0, 43.0), (-3600.0, 0.0)])
def test_after_a_reboot_down_time_comes_from_the_wall_clock_and_is_marked(path, clock, monkeypatch, gap, down, later):
    monkeypatch.setattr(goodput, "_boot", lambda: "before")
    train(path, clock, 1, 0, 4)
    last = read(path)[-1]["time"]
    monkeypatch.setattr(goodput, "_boot", lambda: "after")
    monkeypatch.setattr(time, "time", lambda: last + gap)
    record_death(path, [os.getpid()], 9)
    clock[0] = later
    Stopwatch(path, 2, began=later - 7).close()
    (entry,) = [entry for entry in read(path) if entry["kind"] == "down"]
    assert (entry["seconds"], entry.get("wall")) == (pytest.approx(down, abs=1e-3), True)
    assert seconds(path)[2]["init"] == 7


def test_incomplete_line_does_not_corrupt_the_next_line(path):
    Stopwatch(path, 1).close()
    with open(path, "a") as file:
        file.write('{"kind": "step", "sec')
    append(path, [Entry(**{**read(path)[0], "attempt": 2})])
    with open(path, "a") as file:
        file.write('{"kind": "of a later version"}\n')
    assert [entry["attempt"] for entry in read(path)] == [1, 2]
    assert len(path.read_text().splitlines()) == 4


def test_unwritable_file_is_reported_once_and_does_not_raise(tmp_path, caplog):
    stopwatch = Stopwatch(tmp_path / "nowhere/goodput.jsonl", 1)
    stopwatch.begin(0)
    stopwatch.flush()
    stopwatch.close()
    assert caplog.text.count("cannot be written") == 1


def test_written_by_passes_writes_to_another_thread(path):
    submitted, stopwatch = [], Stopwatch(path, 1)
    with stopwatch.written_by(submitted.append):
        stopwatch.begin(0)
        assert not path.exists()
        submitted.pop(0)()
        assert len(read(path)) == 1
    stopwatch.close()
    assert len(read(path)) > 1


def test_stopwatch_without_path_writes_nothing(tmp_path):
    stopwatch = Stopwatch()
    stopwatch.begin(3)
    stopwatch.reached(4, 0.0)
    stopwatch.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="known on Linux only")
def test_process_start_is_before_the_first_import():
    program = "import time; t = time.monotonic(); from engine.run import goodput; print(t, goodput.process_start())"
    before = time.monotonic()
    imported, start = map(float, subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert before - 0.05 <= start <= imported + 0.02  # its resolution is 10 ms


def test_killed_process_keeps_its_flushed_entries(path):
    program = f"""
import os, time
from pathlib import Path
from engine.run.goodput import Stopwatch
stopwatch = Stopwatch(Path({str(path)!r}), 1)
stopwatch.begin(0)
stopwatch.reached(3, 0.0)
stopwatch.flush()
os.kill(os.getpid(), 9)
"""
    killed = subprocess.Popen([sys.executable, "-c", program])
    assert killed.wait(180) == -signal.SIGKILL
    record_death(path, [killed.pid], 5)
    assert (steps(path), steps(path, "lost")) == ({1: 3}, {1: 2})
    assert sums(read(path))[1]["lost"].seconds > 0


def test_times_of_reading_are_written_with_the_steps_since_the_last_entry(path, clock):
    stopwatch = Stopwatch(path, 1)
    for _ in range(2):  # the second time after a rollback, with a new feed
        stopwatch.begin(0)
        clock[0] += 1
        stopwatch.reached(10, 0.0, {"read": 1.0, "decode": 0.0}, 2)
        stopwatch.flush()
        stopwatch.reached(10, 0.0, {"read": 1.0, "decode": 0.0}, 2)
        clock[0] += 1
        stopwatch.reached(20, 0.0, {"read": 1.5, "decode": 2.0}, 3)
        stopwatch.flush()
    found = [(entry["reading"], entry.get("readers")) for entry in read(path) if "reading" in entry]
    assert found == [({"read": 1.0, "decode": 0.0}, 2), ({"read": 0.5, "decode": 2.0}, 3)] * 2
