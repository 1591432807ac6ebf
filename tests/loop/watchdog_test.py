"""The hang watchdog: the timeout of each phase, the processes it names, and how it ends a stuck process."""

import json
import re
import subprocess
import sys
import textwrap
import time

import pytest

from engine.cluster import kv_store
from engine.loop import watchdog
from engine.loop.watchdog import ProcessProgress, Watchdog
from tests import runs


@pytest.fixture
def now(monkeypatch):
    """A fake clock that tests advance."""
    clock = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    return clock


@pytest.fixture
def dog(now, tmp_path):
    return Watchdog(60.0, 600.0, tmp_path, 1)


def steps(dog, now, seconds, k=1):
    """Runs dispatches of the given seconds, one after the other, with a poll at each start and end."""
    for duration in seconds:
        dog.dispatched += k
        dog.poll()
        now[0] += duration
        dog.arrived += k
        dog.poll()


def test_no_timeout_before_training_because_compilation_may_take_hours(dog):
    assert dog.poll()[1:] == (None, "")


def test_first_step_timeout_is_ten_times_hang(dog):
    with dog.training(0):
        assert dog.poll()[1:] == (600.0, "10 times resilience.hang, for the first step")


@pytest.mark.parametrize(("seconds", "bound"), [([1.0] * 9, 60.0), ([20.0] * 9, 100.0), ([20, 1000, 20], 100.0)])
def test_step_timeout_is_the_maximum_of_hang_and_five_medians(dog, now, seconds, bound):
    with dog.training(0):
        steps(dog, now, seconds)
        assert dog.poll()[1] == bound


def test_dispatch_timeout_scales_with_its_steps(now, tmp_path):
    dog = Watchdog(60.0, 600.0, tmp_path, 1, k=10)
    with dog.training(0):
        steps(dog, now, [200.0] * 3, k=10)
        rule = "resilience.hang is 60 s, the median step 20 s times 10 in a dispatch"
        assert dog.poll()[1:] == (5 * 20.0 * 10, rule)


def test_dispatched_or_arrived_step_is_a_heartbeat(dog, now):
    with dog.training(0):
        for count in ("dispatched", "arrived"):
            now[0] += 7
            setattr(dog, count, 1)
            now[0] += 1
            assert dog.poll()[0].since == now[0]
            now[0] += 7
            assert dog.poll()[0].since == now[0] - 7


def test_steps_shorter_than_a_poll_share_its_time(dog, now):
    with dog.training(0):
        dog.arrived = 1000
        now[0] += 50_000.0
        with dog.patient("evaluating"):  # entered before the next poll
            now[0] += 500
            assert dog.poll()[1] == 600.0
        assert dog.poll()[1] == 5 * 50.0


def test_evaluation_has_its_own_timeout_between_heartbeats(dog, now):
    with dog.training(0):
        steps(dog, now, [20.0])
        with dog.patient("evaluating"):
            assert dog.poll()[1:] == (600.0, "10 times resilience.hang")
            now[0] += 500
            dog.arrived = 2
            dog.heartbeat()
            assert dog.poll()[0] == ProcessProgress("evaluating", 600.0, "10 times resilience.hang", now[0], 1, 2)
        assert (dog.progress.phase, dog.poll()[1]) == ("training", 100.0)
        assert dog.progress.since == now[0]


def test_time_that_only_code_outside_the_engine_knows_has_no_timeout_and_is_no_step(dog, now):
    with dog.training(0):
        steps(dog, now, [20.0, 20.0])
        with dog.unlimited("waiting for the caller of the loop"):
            now[0] += 1e6
            assert dog.poll()[1:] == (None, "")
        steps(dog, now, [20.0])
        assert dog.poll()[1] == 100.0


def test_save_timeout_exceeds_checkpoint_timeout(dog):
    with dog.storing("saving"):
        assert dog.poll()[1:] == (1260.0, "2 times checkpoint.timeout and 60 s")
    assert dog.poll()[1:] == (None, "")


def test_end_of_the_run_has_a_timeout(dog):
    with dog.training(7):
        pass
    assert (dog.progress.phase, dog.poll()[1], dog.progress.arrived) == ("ending", 600.0, 7)


@pytest.mark.parametrize(
    ("peer", "excused"),
    [
        (ProcessProgress("training", 60.0, "", 500.0, 0, 0), False),
        (ProcessProgress("starting", None, "", 5000.0, 0, 0), True),
        (ProcessProgress("saving", 660.0, "", 500.0, 0, 0), True),
        (ProcessProgress("saving", 660.0, "", 700.0, 0, 0), False),
    ],
)
def test_peer_in_a_longer_phase_excuses_the_wait(dog, now, monkeypatch, peer, excused):
    monkeypatch.setattr(kv_store, "_single", kv_store._InMemoryStore())
    kv_store.put("watchdog/progress/1", json.dumps(peer._asdict()))
    assert dog._is_excused() == excused
    now[0] += 200  # without new progress
    assert dog._is_excused() == (excused and peer.phase == "starting")


@pytest.fixture
def one_of_two(monkeypatch):
    """Returns a function that makes this process the primary or the other process; they share an in-memory store."""
    monkeypatch.setattr(kv_store, "_single", kv_store._InMemoryStore())
    return lambda primary: monkeypatch.setattr(watchdog.group, "is_primary", lambda: primary)


def test_overdue_process_waits_while_the_primary_knows_a_process_in_a_longer_phase(dog, now, one_of_two):
    def poll(overdue):
        """Returns what the other process decides; then the primary, which is not overdue, polls."""
        now[0] += 1
        one_of_two(primary=False)
        decided = dog._agree(overdue)
        one_of_two(primary=True)
        assert dog._agree("") == ""
        return decided

    kv_store.put("watchdog/progress/5", json.dumps(ProcessProgress("saving", 660.0, "", 0.0, 0, 0)._asdict()))
    assert not any(poll("late") for _ in range(20))  # process 5 may still save
    now[0] += 700
    assert (poll("late"), poll("late")) == ("", "late")
    # The process makes progress after it has asked, and is overdue again: an answer to the former question is too old.
    assert (poll("late"), poll(""), poll("late"), poll("late")) == ("late", "", "", "late")


def test_overdue_primary_decides_alone(dog, one_of_two):
    one_of_two(primary=True)
    assert dog._agree("late") == "late"
    kv_store.put("watchdog/progress/5", json.dumps(ProcessProgress("saving", 660.0, "", 0.0, 0, 0)._asdict()))
    assert dog._agree("late") == ""


def test_overdue_process_decides_alone_if_the_primary_does_not_answer(dog, now, one_of_two):
    one_of_two(primary=False)
    assert dog._agree("late") == ""
    now[0] += 4
    assert dog._agree("late") == ""
    now[0] += 2
    assert dog._agree("late") == "late"
    assert dog._agree("") == "" and dog._agree("late") == ""  # it made progress, and asks again


def report(dispatched, arrived, where="a.py:1 in f"):
    return {"phase": "training", "dispatched": dispatched, "arrived": arrived, "where": where}


@pytest.mark.parametrize(
    ("reports", "words"),
    [
        (
            {0: report(14, 12), 1: report(12, 11, "b.py:2 in __getitem__"), 2: report(14, 12)},
            "Process 1 is behind: process 1 has dispatched 12 steps, is training, at b.py:2 in __getitem__.",
        ),
        ({0: report(14, 12), 2: report(14, 12)}, "Process 1 does not answer: stopped, or a thread holds the GIL."),
        (
            {i: report(14, 12) for i in range(3)},
            "All are at the same point: process 0 has dispatched 14 steps, is training, at a.py:1 in f; process 1 has",
        ),
    ],
)
def test_report_names_the_processes_that_are_behind(reports, words):
    assert watchdog._behind(reports, sorted({0, 1, 2} - set(reports))).startswith(words)


PROGRAM = """
import sys, threading, time
from pathlib import Path
from engine.cluster import shutdown
from engine.loop.watchdog import Watchdog

shutdown.add_exit_callback(lambda error: print("status", error.exit_code, flush=True))
with Watchdog(2.0, 60.0, Path({folder!r}), 3) as dog, dog.training(0):
    for step in range(1, 6):
        dog.dispatched = step
        time.sleep(0.05)
        dog.arrived = step
    print("stuck", flush=True)
    {stuck}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stuck", "place"), [("threading.Event().wait()", "wait"), ("__import__('ctypes').CDLL(None).pause()", "<module>")]
)
def test_stuck_main_thread_in_python_or_c_exits_with_42_and_stacks(tmp_path, stuck, place):
    program = textwrap.dedent(PROGRAM).format(folder=str(tmp_path / "stacks"), stuck=stuck)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=runs.environment(),
    )
    assert process.stdout is not None and process.stdout.readline() == "stuck\n"
    begin = time.monotonic()
    output, errors = process.communicate(timeout=180)
    assert (process.returncode, output) == (42, "status 42\n")
    assert time.monotonic() - begin < runs.limit(20)
    assert errors.splitlines()[0] == "Main thread, innermost call last:"
    last = errors.splitlines()[-1]
    # More than 2 s are allowed where the steps were slow.
    assert re.match(r"Hang: no step has finished for \S+ s, where \S+ s are allowed \(resilience.hang is 2 s", last)
    assert "process 0 has dispatched 5 steps, is training, at " in last and f" in {place}." in last
    assert last.endswith(f"All stacks: {tmp_path}/stacks. The same command resumes from the newest checkpoint.")
    assert place in (tmp_path / "stacks/attempt-3-process-0.txt").read_text()
