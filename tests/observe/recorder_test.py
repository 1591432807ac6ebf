"""Rows built from the metrics of steps: sums, the ends of rows, and when the training loop waits."""

import json
import math
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.duration import Duration, Period
from engine.metrics.classification import ConfusionMatrix
from engine.metrics.mean import Mean, RootMeanSquare
from engine.metrics.pairs import TrainingMetrics
from engine.observe.recorder import Columns, Pace, Receivers, Recorder, memory_use
from engine.observe.throughput import Throughput
from engine.observe.writer import MetricWriter

NAMES = ("loss", "learning_rate", "skipped")
BATCH_SIZE, TOTAL = 16, 10


class Run:
    """A recorder with a real writer, and the calls that it made."""

    def __init__(self, folder, every="5 steps", read_every_s=0.0, in_flight=2):
        self.path, self.reported = folder / "metrics.jsonl", []  # (thread, step of a row or phase)
        self.arrived = []  # (first step, values of `skipped`) of each reading
        self.writer = MetricWriter(self.path, None)
        self.recorder = Recorder(
            Columns(NAMES, TrainingMetrics({}), last_value=("learning_rate",), summed=("skipped",)),
            Receivers(
                on_row=lambda row: self.reported.append((threading.current_thread().name, row["step"])),
                on_phase=lambda name: self.reported.append((threading.current_thread().name, name)),
                on_values=lambda first, values: self.arrived.append((first, values[:, 2, 0].tolist())),
            ),
            Pace(read_every_s, in_flight),
            writer=self.writer,
            throughput=Throughput(BATCH_SIZE),
            period=Period(Duration.parse(every, "log.every"), BATCH_SIZE, 64, TOTAL),
            attempt=2,
        )

    def steps(self, step, losses, weights=None, skipped=(), wait_s=0.0):
        """Pushes one dispatch; `learning_rate` is the number of the step, from 0."""
        weights = [1.0] * len(losses) if weights is None else weights
        metrics = [
            [(loss * weight, weight), (step + i, 1), (float(step + i + 1 in skipped), 1)]
            for i, (loss, weight) in enumerate(zip(losses, weights, strict=True))
        ]
        self.recorder.push(step, jnp.array(metrics, jnp.float32), wait_s)

    def rows(self):
        self.recorder.close()
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    with run.writer:
        yield run


def test_row_is_the_weighted_mean_over_its_steps(run):
    for step, (loss, weight) in enumerate([(1, 4), (2, 4), (3, 4), (4, 0), (5, 2)]):
        run.steps(step, [loss], [weight])
    (row,) = run.rows()
    assert (row["step"], row["attempt"], row["batch"]) == (5, 2, 4)
    assert row["loss"] == pytest.approx((4 + 8 + 12 + 10) / 14)


def test_each_row_covers_its_own_interval_and_the_last_step_ends_one(run):
    for step in range(0, TOTAL, 2):
        run.steps(step, [step, step + 1])
    assert [(row["step"], row["loss"]) for row in run.rows()] == [(5, 2.0), (10, 7.0)]


@pytest.mark.parametrize("fold", [1, 3])
def test_folding_a_long_row_does_not_change_it(tmp_path, monkeypatch, fold):
    monkeypatch.setattr("engine.observe.recorder.FOLD", fold)
    run = Run(tmp_path, every="10 steps")
    with run.writer:
        for step in range(9):
            run.steps(step, [step], skipped=(2, 9))
        run.recorder.settle()
        assert run.recorder.unfinished()["skipped"] == [2.0, 9.0]
        run.steps(9, [9])
        assert [(row["loss"], row["skipped"], row["learning_rate"]) for row in run.rows()] == [(4.5, 2.0, 9.0)]


def test_one_dispatch_can_end_several_rows(tmp_path):
    run = Run(tmp_path, every="2 steps")
    with run.writer:
        run.steps(0, [1, 2, 3, 4, 5])
        run.steps(5, [6, 7, 8, 9, 10])
        assert [(row["step"], row["loss"]) for row in run.rows()] == [
            (2, 1.5), (4, 3.5), (6, 5.5), (8, 7.5), (10, 9.5),
        ]  # fmt: skip


def test_row_has_the_last_learning_rate_and_the_sum_of_skipped_steps(run):
    run.steps(0, [1, 1, 1, 1, 1], skipped=(2, 4))
    (row,) = run.rows()
    assert (row["learning_rate"], row["skipped"]) == (4, 2)


def test_metric_without_weight_is_nan(run):
    run.steps(0, [1] * 5, [0] * 5)
    (row,) = run.rows()
    assert math.isnan(float(row["loss"]))


def test_evaluation_is_a_separate_row(run):
    run.recorder.note(4, {"heldout/loss": 0.5})
    run.steps(0, [1] * 5)
    evaluation, training = run.rows()
    assert (evaluation["step"], evaluation["attempt"], evaluation["heldout/loss"]) == (4, 2, 0.5)
    assert evaluation.keys() == {"step", "attempt", "time", "heldout/loss"}
    assert "heldout/loss" not in training


def test_rows_and_phases_are_reported_in_order_on_the_writer_thread(run):
    run.recorder.phase("training")
    run.steps(0, [1] * 5)
    run.recorder.settle()  # as the loop does before it evaluates
    run.recorder.phase("evaluating")
    run.rows()
    assert run.reported == [("convoy-writer", each) for each in ("training", 5, "evaluating")]


class Result:
    """A result of a slow device, which is complete only when it is waited for."""

    def __init__(self, waits, number):
        self.waits, self.number = waits, number

    def __len__(self):
        return 1

    def block_until_ready(self):
        self.waits.append(self.number)

    def __array__(self, dtype=None, copy=None):
        assert self.number in self.waits
        return np.zeros((1, len(NAMES), 2), dtype)


def test_push_waits_only_for_the_dispatch_two_before(run):
    waits = []
    for step in range(4):
        run.recorder.push(step, Result(waits, step), 0.0)
    assert waits == [0, 1]
    run.recorder.drain()
    assert waits == [0, 1, 2, 3]
    run.recorder.settle()
    assert waits == [0, 1, 2, 3, 2, 3]
    run.recorder.settle()
    assert waits == [0, 1, 2, 3, 2, 3]


def test_push_waits_for_the_dispatch_before_if_one_may_be_in_flight(tmp_path):
    run, waits = Run(tmp_path, in_flight=1), []
    results: list[Any] = [Result(waits, step) for step in range(4)]
    with run.writer:
        for step, result in enumerate(results):
            run.recorder.push(step, result, 0.0)
        assert waits == [0, 1, 2]
        run.recorder.settle()


def test_settle_waits_for_all_dispatches_once(run):
    waits = []
    for step in range(4):
        run.recorder.push(step, Result(waits, step), 0.0)
    run.recorder.settle()
    assert waits == [0, 1, 2, 3]
    run.recorder.settle()
    assert waits == [0, 1, 2, 3]


def test_rates_cover_the_time_between_rows_without_pauses(run):
    for step in range(5):
        run.steps(step, [1], wait_s=0.5)
    run.recorder.settle()  # as the loop does before a pause
    run.writer.flush()
    assert run.recorder.rates() == {}  # a single arrival so far
    run.recorder.pause(-1000)  # as if the second row took that long
    for step in range(5, TOTAL):
        run.steps(step, [1], wait_s=100.5)
    first, second = run.rows()
    assert "examples_per_s" not in first
    assert second["step_time_s"] == pytest.approx(200, rel=0.1)
    assert second["examples_per_s"] == pytest.approx(BATCH_SIZE / 200, rel=0.1)
    assert second["data_wait"] == pytest.approx(0.1, rel=0.1)
    assert run.recorder.rates() == {name: second[name] for name in run.recorder.rates()}


def test_time_after_the_last_arrival_is_in_no_rate(run):
    run.steps(0, [1] * 5)
    run.steps(5, [1, 1])
    run.recorder.settle()
    run.recorder.pause(-1000)  # as if the end of the run waited for a save
    run.recorder.close()
    assert run.recorder.rates()["step_time_s"] < 1


def test_values_are_read_two_dispatches_later_or_at_settle(tmp_path):
    run = Run(tmp_path, every="1 step")
    with run.writer:
        for step in range(4):
            run.steps(step, [1.0], skipped=[2])
            run.writer.flush()
            assert run.arrived == [(0, [0.0]), (1, [1.0])][: max(0, step - 1)]
        run.recorder.settle()
        assert run.arrived == [(0, [0.0]), (1, [1.0]), (2, [0.0]), (3, [0.0])]


def test_short_steps_are_read_together_at_the_end_of_a_row_or_at_settle(tmp_path):
    run = Run(tmp_path, every="4 steps", read_every_s=1000)
    with run.writer:
        for step in range(6):
            run.steps(step, [step], skipped=[3])
        assert run.arrived == [(0, [0.0]), (1, [0.0, 1.0, 0.0])]  # the first reading determines where the row ends
        run.recorder.settle()
        assert run.arrived[2:] == [(4, [0.0, 0.0])]
        run.steps(6, [6, 7, 8, 9])
        assert [(row["step"], row["loss"]) for row in run.rows()] == [(4, 1.5), (8, 5.5), (10, 8.5)]


def test_arrived_results_are_read_after_read_every_s(tmp_path):
    run = Run(tmp_path, every="10 steps", read_every_s=0.02)
    with run.writer:
        for step in range(3):
            run.steps(step, [1])  # the first dispatch arrives
        time.sleep(0.02)  # at least read_every_s
        run.steps(3, [1])
    assert run.arrived == [(0, [0.0]), (1, [0.0])]


def test_values_of_an_unfinished_row_are_read_at_close(tmp_path):
    run = Run(tmp_path, every="100 steps")
    with run.writer:
        run.steps(0, [1.0, 1.0], skipped=[2])
        assert run.arrived == []
        assert run.rows() == []
        assert run.arrived == [(0, [0.0, 1.0])]


def test_rollback_drops_the_unfinished_row_and_restarts_the_rates(tmp_path):
    run = Run(tmp_path, every="4 steps")
    with run.writer:
        run.steps(0, [1, 1, 1])
        run.steps(3, [1, 9])  # the row of step 4, and a step of the next one
        run.steps(5, [9])
        run.recorder.rollback()
        run.steps(0, [2, 2, 2, 2])
        run.writer.flush()
        assert run.recorder.rates() == {}  # a single arrival since the rollback
        run.steps(4, [2, 2, 2, 2])
        run.steps(8, [3, 3])
        assert [(row["step"], row["loss"]) for row in run.rows()] == [(4, 1.0), (4, 2.0), (8, 2.0), (10, 3.0)]


def test_unfinished_row_continues_in_the_next_attempt(run, tmp_path):
    run.steps(0, [1.0, 2.0, 3.0], weights=[1, 2, 1])
    run.steps(3, [4.0, 5.0, 6.0, 7.0], skipped=(7,))  # a row ends with step 5
    run.recorder.settle()
    unfinished = run.recorder.unfinished()
    assert unfinished == {"loss": [13.0, 2.0], "learning_rate": [11.0, 2.0], "skipped": [1.0, 2.0]}
    (tmp_path / "next").mkdir()
    later = Run(tmp_path / "next")
    with later.writer:
        later.recorder.resume(json.loads(json.dumps(unfinished)))
        later.steps(7, [8.0, 9.0, 10.0])
        assert {row["step"]: (row["loss"], row["skipped"]) for row in later.rows()} == {10: (8.0, 1.0)}


def test_row_of_an_earlier_engine_without_all_learning_rates_continues(run):
    run.recorder.resume({"loss": [13.0, 2.0], "skipped": [1.0, 2.0]})
    run.steps(2, [5.0] * 3)
    assert [(row["loss"], row["learning_rate"], row["skipped"]) for row in run.rows()] == [(5.6, 4.0, 1.0)]


def test_row_ends_with_a_run_that_ends_before_it(run):
    run.steps(0, [1.0, 2.0, 3.0])
    run.steps(3, [4.0, 5.0, 6.0, 8.0], skipped=(7,))
    run.recorder.end_row()
    run.recorder.end_row()
    assert [(row["step"], row["loss"], row["skipped"]) for row in run.rows()] == [(5, 3.0, 0.0), (7, 7.0, 1.0)]


def test_resume_ignores_sums_of_other_metrics(run):
    run.recorder.resume({"loss": [13.0, 2.0]})
    run.recorder.resume({})
    run.steps(0, [1.0] * 5)
    assert [row["loss"] for row in run.rows()] == [1.0]


def test_row_has_the_results_of_metrics_other_than_means(tmp_path):
    metrics = TrainingMetrics(
        {
            "rms": RootMeanSquare.of(jnp.ones(2)),
            "matrix": ConfusionMatrix.of(jnp.zeros(2), jnp.zeros(2), ("a", "b")),
            "loss": Mean.of(jnp.ones(2)),
        }
    )
    names, sums = metrics.rows, {"loss": [6, 2], "matrix#0": [1, 0], "matrix#1": [2, 5], "rms#0": [9, 1]}
    assert {*names} - {*metrics.added} == sums.keys()
    step = jnp.array([[sums.get(name, [0, 0]) for name in names]], jnp.float32)
    rows, unfinished = [], {}
    with MetricWriter(tmp_path / "metrics.jsonl", None) as writer:
        for steps in (range(3), range(3, 4)):  # an interrupted row, and the rest of it after a restart
            recorder = Recorder(
                Columns(names, metrics, last_value=(), summed=()),
                Receivers(rows.append, on_phase=lambda name: None, on_values=lambda first, values: None),
                Pace(),
                writer=writer,
                throughput=Throughput(BATCH_SIZE),
                period=Period(Duration.parse("4 steps", "log.every"), BATCH_SIZE, 64, TOTAL),
                attempt=1,
            )
            recorder.resume(unfinished)
            for n in steps:
                recorder.push(n, step, 0.0)
            recorder.settle()
            unfinished = recorder.unfinished()
            unfinished = {name: sums for name, sums in unfinished.items() if name not in metrics.added}  # as of 0.2.0
            recorder.close()
    (row,) = rows
    assert {"loss": 3, "rms": 3, "matrix/accuracy": 6 / 8}.items() <= row.items()
    assert all(isinstance(value, int | float) for value in row.values())
    (line,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["matrix/matrix"] == [[4, 0], [8, 20]]


def test_resident_memory_grows_by_an_allocated_array():
    before = memory_use()["host_rss_gib"]
    array = np.ones(2**28, np.uint8)  # 0.25 GiB, and every page is written
    assert 0.2 < memory_use()["host_rss_gib"] - before < 0.3
    assert array[-1] == 1


def test_device_memory_is_reported_only_if_jax_provides_it():
    known = any(device.memory_stats() for device in jax.local_devices())
    assert ("device_peak_gib" in memory_use()) == known
