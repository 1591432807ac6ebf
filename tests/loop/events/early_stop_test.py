"""The event that ends a run: it decides only where its metric was measured."""

from types import SimpleNamespace
from typing import Any

from engine.base.duration import Duration, Period
from engine.config.schema import Stop
from engine.loop.events.early_stop import EarlyStop
from engine.loop.events.event import Boundary


def reason(step, history) -> str:
    checkpoints: Any = SimpleNamespace(retention=SimpleNamespace(history=lambda metric, step: history))
    boundary = Boundary(step, state=None, position={}, first=False, last=False, stopping=False)  # pyright: ignore
    config = Stop(metric="heldout/loss", mode="min", target=0.5)
    EarlyStop(config, Period(Duration(2, "steps"), 16, 64, 10), checkpoints).run(boundary)
    return boundary.stop


def test_run_ends_where_the_metric_reaches_its_target():
    assert reason(4, {2: 0.7, 4: 0.4}).startswith("heldout/loss is 0.4, which reaches stop.target")


def test_run_continues_where_the_metric_was_not_measured_or_is_no_better():
    assert (reason(4, {2: 0.4}), reason(4, {4: 0.6})) == ("", "")
