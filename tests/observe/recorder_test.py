"""From arrays of steps to rows: what is summed, where a row ends, and that the loop hardly ever waits."""

import json
import math
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from engine.config.duration import Duration, Period
from engine.observe.recorder import Recorder
from engine.observe.throughput import Throughput
from engine.observe.writer import MetricWriter

NAMES = ("loss", "learning_rate", "skipped")
BATCH_SIZE, TOTAL = 16, 10


class Run:
    """A recorder that writes for real, and what it wrote and told."""

    def __init__(self, folder, every="5 steps", together=False):
        self.path, self.told = folder / "metrics.jsonl", []
        self.writer = MetricWriter(self.path, None)
        self.recorder = Recorder(
            NAMES,
            last_value=("learning_rate",),
            summed=("skipped",),
            writer=self.writer,
            throughput=Throughput(BATCH_SIZE),
            period=Period(Duration.parse(every, "log.every"), BATCH_SIZE, 64, TOTAL),
            attempt=2,
            on_row=lambda row: self.told.append((threading.current_thread().name, row["step"])),
            on_phase=lambda name: self.told.append((threading.current_thread().name, name)),
            together=together,
        )

    def steps(self, step, losses, weights=None, skipped=(), wait_s=0.0):
        """Pushes one dispatch; learning_rate is the step's number, from 0."""
        weights = [1.0] * len(losses) if weights is None else weights
        metrics = [
            [(loss * weight, weight), (step + i, 1), (float(step + i + 1 in skipped), 1)]
            for i, (loss, weight) in enumerate(zip(losses, weights, strict=True))
        ]
        self.recorder.push(step, len(losses), jnp.array(metrics, jnp.float32), wait_s)

    def rows(self):
        self.recorder.close()
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    with run.writer:
        yield run


def test_a_row_is_the_mean_by_weight_over_its_steps(run):
    for step, (loss, weight) in enumerate([(1, 4), (2, 4), (3, 4), (4, 0), (5, 2)]):
        run.steps(step, [loss], [weight])
    (row,) = run.rows()
    assert (row["step"], row["attempt"]) == (5, 2)
    assert row["loss"] == pytest.approx((4 + 8 + 12 + 10) / 14)


def test_each_row_starts_anew_and_the_last_step_ends_one(run):
    for step in range(0, TOTAL, 2):
        run.steps(step, [step, step + 1])
    assert [(row["step"], row["loss"]) for row in run.rows()] == [(5, 2.0), (10, 7.0)]


def test_a_dispatch_may_hold_several_rows(tmp_path):
    run = Run(tmp_path, every="2 steps")
    with run.writer:
        run.steps(0, [1, 2, 3, 4, 5])
        run.steps(5, [6, 7, 8, 9, 10])
        assert [(row["step"], row["loss"]) for row in run.rows()] == [
            (2, 1.5), (4, 3.5), (6, 5.5), (8, 7.5), (10, 9.5),
        ]  # fmt: skip


def test_a_learning_rate_is_told_as_of_the_last_step_and_skipped_steps_as_their_number(run):
    run.steps(0, [1, 1, 1, 1, 1], skipped=(2, 4))
    (row,) = run.rows()
    assert (row["learning_rate"], row["skipped"]) == (4, 2)


def test_no_weight_gives_nan(run):
    run.steps(0, [1] * 5, [0] * 5)
    (row,) = run.rows()
    assert math.isnan(float(row["loss"]))


def test_the_first_skipped_step_is_known_also_in_a_row_that_never_ends(run):
    assert run.recorder.skipped_at is None
    run.steps(0, [1, 1, 1], skipped=(2, 3))
    assert run.rows() == []
    assert run.recorder.skipped_at == 2


def test_the_first_skipped_step_stays_the_first(run):
    run.steps(0, [1] * 5, skipped=(4,))
    run.steps(5, [1] * 5, skipped=(6,))
    run.rows()
    assert run.recorder.skipped_at == 4


def test_an_evaluation_is_a_row_of_its_own(run):
    run.recorder.note(4, {"heldout/loss": 0.5})
    run.steps(0, [1] * 5)
    evaluation, training = run.rows()
    assert (evaluation["step"], evaluation["attempt"], evaluation["heldout/loss"]) == (4, 2, 0.5)
    assert evaluation.keys() == {"step", "attempt", "time", "heldout/loss"}
    assert "heldout/loss" not in training


def test_rows_and_phases_are_told_in_order_on_the_writers_thread(run):
    run.recorder.phase("training")
    run.steps(0, [1] * 5)
    run.recorder.phase("evaluating")
    run.rows()
    assert run.told == [("convoy-writer", told) for told in ("training", 5, "evaluating")]


class Result:
    """A result that is there when somebody waits for it, as those of a device that is far behind."""

    def __init__(self, waits, number):
        self.waits, self.number = waits, number

    def block_until_ready(self):
        self.waits.append(self.number)

    def __array__(self, dtype=None, copy=None):
        return np.zeros((1, len(NAMES), 2), dtype)


def test_the_loop_waits_for_the_result_of_two_dispatches_before(run):
    waits = []
    for step in range(4):
        run.recorder.push(step, 1, Result(waits, step), 0.0)
    assert waits == [0, 1]
    run.recorder.settle()
    assert waits == [0, 1, 2, 3]
    run.recorder.settle()
    assert waits == [0, 1, 2, 3]


def test_rates_go_from_row_to_row_without_what_was_paused(run):
    for step in range(5):
        run.steps(step, [1], wait_s=0.5)
    run.writer.flush()
    assert run.recorder.rates() == {}  # one row, one arrival: there is no time between two
    run.recorder.pause(-1000)  # as if the second row took that long
    for step in range(5, TOTAL):
        run.steps(step, [1], wait_s=100.5)
    first, second = run.rows()
    assert "examples_per_s" not in first
    assert second["step_time_s"] == pytest.approx(200, rel=0.1)
    assert second["examples_per_s"] == pytest.approx(BATCH_SIZE / 200, rel=0.1)
    assert second["data_wait"] == pytest.approx(0.1, rel=0.1)
    assert run.recorder.rates() == {name: second[name] for name in run.recorder.rates()}


def test_beside_other_processes_a_held_back_update_is_told_at_a_step_that_no_pace_changes(tmp_path):
    """Each looks at a dispatch when it is two old, or the loop settles; the writer's thread may be ahead or behind."""
    run = Run(tmp_path, every="1 step", together=True)
    with run.writer:
        told = []
        for step in range(4):
            run.steps(step, [1.0], skipped=[2])
            run.writer.flush()
            told.append(run.recorder.skipped_at)
        assert told == [None, None, None, 2]
        run.steps(4, [1.0])
        run.recorder.settle()
        assert run.recorder.skipped_at == 2


def test_beside_other_processes_the_last_steps_are_looked_at_when_it_closes(tmp_path):
    run = Run(tmp_path, every="100 steps", together=True)
    with run.writer:
        run.steps(0, [1.0, 1.0], skipped=[2])
        assert run.recorder.skipped_at is None
        run.recorder.close()
        assert run.recorder.skipped_at == 2
