"""What the benchmark of sweeps calls a problem. The searches themselves take minutes."""

import json

import pytest

from benchmarks import sweep as benchmark
from engine.sweeps.records import read_sweep
from tests.sweeps.made import complete, failed, make_run, make_sweep

POINTS = [{"optimizer.learning_rate": rate, "task.width": 16} for rate in (1e-3, 2e-3)]


@pytest.fixture
def folder(tmp_path):
    trials = [complete(rate, 16, 0.5, runs=[f"trials/{place:04}"]) for place, rate in enumerate((1e-3, 2e-3))]
    made = make_sweep(tmp_path / "sweep", trials, trials=2)
    for place, values in enumerate(POINTS):
        count(make_run(made, place, values, attempt=2), 90)
    return made


def count(run, steps):
    """Writes the ledger of a run that has trained so many steps."""
    entry = {"kind": "step", "seconds": 1.0, "steps": steps, "attempt": 1, "step": steps, "time": 0.0, "clock": 0.0}
    (run / "goodput.jsonl").write_text(json.dumps({**entry, "boot": "x", "pid": 1}) + "\n")


def test_sweep_with_each_trial_once_has_no_problem(folder):
    assert benchmark.problems(read_sweep(folder), {0: [2]}) == []


def test_lost_and_repeated_work_is_named(folder):
    sweep = read_sweep(folder)
    assert benchmark.problems(sweep, {0: [1]}) == ["trial 0 ran again after its end"]
    count(folder / "trials" / "0001", 80)
    (problem,) = benchmark.problems(sweep, {})
    assert problem == "trial 1: its run ended at step 90, but 80 are counted"


def test_missing_repeated_and_failed_trials_are_named(tmp_path):
    trials = [complete(1e-3, 16, 0.5), complete(1e-3, 16, 0.5), failed(2e-3, "no", "failed")]
    found = benchmark.problems(read_sweep(make_sweep(tmp_path / "sweep", trials, trials=4)), {})
    assert found == ["3 trials instead of 4", f"{POINTS[0]} was searched twice", "trial 2 is failed: no"]
