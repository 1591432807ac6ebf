import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from engine.cluster import group
from engine.loop.hooks import Stop
from engine.sweeps import timeouts
from engine.sweeps.decisions import write_decision
from engine.sweeps.pruning import Pruning

STATE: Any = None


def stop(hook: Pruning, step: int) -> str:
    """Returns the reason to stop at a step of a run of 100; "" if it continues."""
    trainer: Any = SimpleNamespace(total_steps=100)
    found = hook.run(trainer, STATE, step)
    assert found is None or isinstance(found, Stop)
    return "" if found is None else found.reason


def test_decision_of_the_driver_ends_the_trial(tmp_path):
    hook = Pruning(str(tmp_path / "decisions.json"))
    write_decision(tmp_path / "decisions.json", 10, False)
    assert stop(hook, 10) == ""
    write_decision(tmp_path / "decisions.json", 20, True)
    assert stop(hook, 20) == "pruned by the sweep at step 20"


def test_decision_that_a_killed_trial_has_not_seen_ends_it_later(tmp_path):
    write_decision(tmp_path / "decisions.json", 20, True)
    assert stop(Pruning(str(tmp_path / "decisions.json")), 30) == "pruned by the sweep at step 30"


def test_trial_waits_for_the_decision(tmp_path):
    file = tmp_path / "decisions.json"
    write_decision(file, 10, False)
    driver = threading.Timer(0.2, write_decision, (file, 20, True))
    driver.start()
    assert stop(Pruning(str(file)), 20) == "pruned by the sweep at step 20"
    driver.join()


def test_trial_without_a_driver_waits_once(tmp_path, monkeypatch):
    monkeypatch.setattr(timeouts, "DECISION_S", 0.2)
    file = tmp_path / "decisions.json"
    hook, began = Pruning(str(file)), time.monotonic()
    assert stop(hook, 10) == ""
    assert time.monotonic() - began >= 0.2
    monkeypatch.setattr(timeouts, "DECISION_POLL_S", 1000.0)  # any further wait would hang
    assert stop(hook, 20) == ""
    write_decision(file, 30, False)
    monkeypatch.undo()
    assert stop(hook, 30) == ""
    driver = threading.Timer(0.2, write_decision, (file, 40, True))
    driver.start()  # a driver that has come back is waited for again
    assert stop(hook, 40) == "pruned by the sweep at step 40"
    driver.join()


def test_nothing_ends_a_trial_at_its_first_and_last_step(tmp_path):
    write_decision(tmp_path / "decisions.json", 100, True)
    hook = Pruning(str(tmp_path / "decisions.json"))
    assert [stop(hook, step) for step in (0, 100)] == ["", ""]


def test_only_the_primary_reads_the_decision(tmp_path, monkeypatch):
    write_decision(tmp_path / "decisions.json", 10, True)
    monkeypatch.setattr(group, "is_primary", lambda: False)
    assert stop(Pruning(str(tmp_path / "decisions.json"), 0.0, str(tmp_path / "clock")), 10) == ""
    assert not (tmp_path / "clock").exists()


def test_budget_of_time_counts_earlier_attempts(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    hook = Pruning(seconds=60.0, clock=str(tmp_path / "clock"))
    clock[0] += 40
    assert stop(hook, 10) == ""
    again = Pruning(seconds=60.0, clock=str(tmp_path / "clock"))
    clock[0] += 19
    assert stop(again, 20) == ""
    clock[0] += 2
    assert stop(again, 30) == "the budget of time is used up (61.0 of 60 s)"


@pytest.mark.parametrize("text", ["", "{", '{"seconds": "x"}'])
def test_damaged_clock_counts_from_zero(tmp_path, text):
    (tmp_path / "clock").write_text(text)
    assert stop(Pruning(seconds=60.0, clock=str(tmp_path / "clock")), 10) == ""


def test_trial_that_is_continued_by_hand_is_not_pruned():
    assert stop(Pruning(), 10) == ""
