"""Which evaluation or hook measures the metrics that the config names."""

import pytest

from engine.base.duration import RunSize
from engine.base.errors import ConfigError
from engine.loop.measurements import Measurements
from tests import runs, zoo

SIZE = RunSize(16, 64, 10)


def measurements(**settings):
    config = runs.config(hooks={"mine": {"target": "tests.zoo.source", "every": "3 steps"}}, **settings)
    sources = {name: zoo.source(37, 9) for name in config.evaluations}
    return Measurements(config, sources, {"mine": lambda state, step: None}, zoo.program(zoo.Classify()), SIZE)


@pytest.mark.parametrize(("metric", "first"), [("heldout/accuracy", 4), ("mine/norm", 3)])
def test_best_checkpoint_is_selected_where_its_metric_is_measured(metric, first):
    [period] = measurements(checkpoint__best=metric).selecting
    assert period.next_after(0) == first


def test_no_step_selects_the_best_checkpoint_without_a_metric():
    assert measurements().selecting == []


def test_metric_that_nothing_measures_is_refused():
    with pytest.raises(ConfigError, match=r"^stop.metric = 'heldout/acuracy': no evaluation has this metric"):
        measurements(stop__metric="heldout/acuracy", stop__patience=2)


def test_run_without_evaluations_can_stop_by_a_metric_of_a_hook():
    found = measurements(evaluations={}, stop__metric="mine/norm", stop__mode="max", stop__patience=2)
    assert found.evaluations == [] and found.warnings == []


def test_name_that_says_no_direction_is_reported_unless_the_mode_is_set():
    assert measurements(checkpoint__best="heldout/accuracy").warnings == []
    [best, stop] = measurements(checkpoint__best="mine/norm", stop__metric="mine/norm", stop__patience=2).warnings
    assert best.startswith("checkpoint.best_mode: the name 'mine/norm' does not say whether")
    assert stop.startswith("stop.mode: ") and stop.endswith("so the largest counts as best. Set it to max or min.")
