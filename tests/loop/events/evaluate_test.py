"""Which evaluations run at a boundary, also where a run ends early."""

from types import SimpleNamespace
from typing import Any

import pytest

import engine
from engine.base.duration import Duration, Period
from engine.loop.events.evaluate import Evaluate
from engine.loop.events.event import Boundary
from tests import runs

NEVER_KNOWN: Any = SimpleNamespace(checkpoints=SimpleNamespace(results=lambda step: {}), latest={}, add=lambda *a: None)


class Counted:
    """An evaluation that counts its runs, and is interrupted if it has no result."""

    unweighted, figure_error = (), None

    def __init__(self, name, result):
        self.name, self.result, self.steps = name, result, []

    def is_known(self, known):
        return False

    def run(self, state, preemption, heartbeat, step):
        self.steps.append(step)
        return self.result


def boundary(step, **settings) -> Boundary:
    fields: dict[str, Any] = dict(state=None, position={}, first=False, last=False, stopping=False)
    return Boundary(step, **(fields | settings))


def event(*evaluations) -> Evaluate:
    anything: Any = None
    return Evaluate(evaluations, NEVER_KNOWN, {}, anything, lambda: None, print)


@pytest.mark.parametrize(
    ("step", "ended", "at_end", "runs"),
    [
        (4, False, True, True),
        (5, False, True, False),
        (5, True, True, True),  # as at the last step
        (5, True, False, False),
        (4, True, True, False),  # it has run at this step before the run ended
    ],
)
def test_early_end_runs_what_the_last_step_would_run(step, ended, at_end, runs):
    evaluation: Any = Counted("a", {"a/loss": 1.0})
    period = Period(Duration(4, "steps"), 16, 64, 10, at_end=at_end)
    event((evaluation, period)).run(boundary(step, ended=ended))
    assert evaluation.steps == [step] * runs


def test_interrupted_evaluation_ends_the_event():
    first: Any = Counted("a", None)
    second: Any = Counted("b", {"b/loss": 1.0})
    every = Period(Duration(1, "steps"), 16, 64, 10)
    at = boundary(3)
    event((first, every), (second, every)).run(at)
    assert at.interrupted and (first.steps, second.steps) == ([3], [])


def test_next_step_is_that_of_the_first_evaluation():
    four, three = (Period(Duration(n, "steps"), 16, 64, 10) for n in (4, 3))
    evaluation: Any = Counted("a", {})
    assert event((evaluation, four), (evaluation, three)).next_step(4) == 6


@pytest.mark.slow
def test_resume_writes_metrics_of_examples_again_only_if_they_are_missing(tmp_path):
    """A killed attempt may have stored the results and not the file."""
    config = runs.config(train__total="4 steps", evaluations__heldout__per_example=True)
    file = tmp_path / "per_example/heldout/4.parquet"

    def evaluated():
        """Trains, and returns how often the run has been evaluated."""
        engine.train(config, workdir=tmp_path)
        return sum("heldout/loss" in row for row in runs.complete_lines(tmp_path / "metrics.jsonl"))

    assert [evaluated(), evaluated()] == [1, 1]
    content = file.read_bytes()
    file.unlink()
    assert evaluated() == 2 and file.read_bytes() == content
