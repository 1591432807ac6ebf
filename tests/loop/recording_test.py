"""The recorder of an attempt: its rows reach the files and the observers, which are closed after it."""

import json

import jax.numpy as jnp
import pytest

from engine import Loss
from engine.base.duration import RunSize
from engine.base.errors import TaskError
from engine.loop.observers import LateObserver
from engine.loop.recording import check_metric_names, open_recorder
from engine.metrics.mean import Mean
from engine.observe.recorder import Receivers
from engine.observe.throughput import FlopsCount
from engine.run.directory import RunDirectory
from tests import runs, zoo


class Watch(LateObserver):
    """Keeps the steps of its rows, and how it ends."""

    def __init__(self):
        self.events = []

    def row(self, row):
        self.events.append(row["step"])

    def close(self, wait):
        self.events.append(wait)


@pytest.mark.parametrize("fails", [False, True])
def test_observers_have_all_rows_before_they_are_closed(tmp_path, fails):
    program, config, watch, rows = zoo.program(zoo.Classify()), runs.config(), Watch(), []
    receivers = Receivers(rows.append, lambda name: None, lambda first, values: None)
    flops = FlopsCount(lambda: 1.0, print)
    flops.start()
    _, metrics = zoo.run(program, zoo.batches(2))
    error = RuntimeError("the run fails")
    with RunDirectory.open(tmp_path) as directory:
        period = RunSize(16, 64, 2).period(config.log.every)
        try:
            with open_recorder(program, config, directory, period, receivers, [watch], flops) as recorder:
                for step in range(2):
                    recorder.push(step, jnp.asarray(metrics[step : step + 1]), 0.0)
                if fails:
                    raise error
        except RuntimeError as found:
            assert found is error
        assert watch.events == [1, 2, not fails]
        assert [row["step"] for row in rows] == [1, 2]
        lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "step",
            "the engine uses the metric name 'step' itself. Rename this metric. Names of the engine: loss, ",
        ),
        ("time", "the engine uses the metric name 'time' itself"),
        ("grad_norm", "the engine uses the metric name 'grad_norm' itself"),
        ("compile_s", "the engine uses the metric name 'compile_s' itself"),
        (
            "heldout",
            "metric 'heldout' has the name of an evaluation or hook. Rename the metric, or evaluations.heldout.",
        ),
        ("heldout/loss", "metric 'heldout/loss' has the name of an evaluation or hook"),
    ],
)
def test_metric_name_that_is_taken_is_refused(name, text):
    class Named(zoo.Classify):
        def loss(self, model, batch, rng):
            loss = super().loss(model, batch, rng)
            return Loss(loss.total, loss.weight, {name: loss.metrics["accuracy"]})

    with pytest.raises(TaskError, match=f"^Named.loss: {text}"):
        check_metric_names(zoo.program(Named()), ["heldout"])
    check_metric_names(zoo.program(zoo.Classify()), ["heldout"])


def test_metric_name_of_an_own_update_that_is_taken_is_refused():
    class Named(zoo.Classify):
        def update(self, state, batch, context):
            return state, {"loss": Mean.of(batch["y"]), "step": Mean.of(batch["y"])}

    with pytest.raises(TaskError, match=r"^Named\.update: the engine uses the metric name 'step' itself"):
        check_metric_names(zoo.program(Named()), [])
