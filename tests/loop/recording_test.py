"""The recorder of an attempt: its rows reach the files and the observers, which are closed after it."""

import json

import jax.numpy as jnp
import pytest

from engine.base.duration import RunSize
from engine.loop.observers import LateObserver
from engine.loop.recording import open_recorder
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
