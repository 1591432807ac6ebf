"""The record of an attempt: when it predicts, what it measures, and how it ends."""

import statistics
import threading

import pytest

from engine.planning import record
from engine.planning.record import Measured, PlanFile, PlanRecord, Predicted, read
from engine.run.directory import RunDirectory

PREDICTED = Predicted(
    candidate="data=8, float32",
    settings={"mesh.data": 8},
    rows=16,
    machine={"text": "8 x cpu", "margin": 0.3, "torus": ()},
    seconds={"compute": 0.010, "update": 0.002},
    memory={"parameters": 2.0**30, "activations": 2.0**29},
)
TIMES = [0.014, 0.9, 0.012, 0.016]  # a row with a save is long


def measured(**changes) -> Measured:
    fields = dict(step_s=0.015, data_wait=0.0, seconds=90.0, bytes=2**30, peak_bytes=None, attempt=1, time="")
    return Measured(**{**fields, **changes})


def fill(record: PlanRecord, times=TIMES, steps=100):
    rows = [{"step": steps, "loss": 1.0}]  # the first row has no rates
    for i, step_s in enumerate(times, 2):
        rows.append({"step": i * steps, "step_time_s": step_s, "data_wait": 0.1, "device_peak_gib": 0.5})
    record.rows(rows[:-1])
    record.rows(rows[-1:])


def opened(tmp_path, predict, said, device_bytes=lambda: 2**30) -> PlanRecord:
    return PlanRecord(predict, device_bytes, RunDirectory(tmp_path), said.append)


def test_attempt_predicts_once_and_measures_the_median(tmp_path):
    known, said = [], []

    def predict(before):
        known.append(before)
        return PREDICTED

    record = opened(tmp_path, predict, said)
    fill(record, TIMES, 100)  # 94.2 s
    record.close(wait=True)
    plan = read(tmp_path / "plan.json")
    assert plan is not None and known == [None]
    assert plan.measured.step_s == statistics.median(TIMES) == 0.015
    assert (plan.measured.seconds, plan.measured.data_wait) == (pytest.approx(94.2), 0.1)
    assert (plan.measured.bytes, plan.measured.peak_bytes) == (2**30, 2**29)
    assert plan.time_error == pytest.approx(-0.2) and plan.memory_error == 0.5
    text = "plan: predicted 12.0 ms a step +- 30%, measured 15.0 ms a step (error -20%); predicted 1.5 GiB of a "
    assert said == [text + "device, compiled 1.0 GiB (error +50%), peak 512.0 MiB"]
    again = opened(tmp_path, predict, said)
    fill(again)
    again.close(wait=True)
    assert known[1] is not None and known[1].has_answer_for(PREDICTED)


def test_attempt_that_is_asked_to_stop_does_not_wait_for_the_prediction(tmp_path):
    release, said = threading.Event(), []

    def predict(known):
        release.wait(60)
        return PREDICTED

    record = opened(tmp_path, predict, said)
    fill(record)
    record.close(wait=False)
    release.set()
    record._thread.join()
    assert not said and not (tmp_path / "plan.json").exists()


def test_prediction_is_stored_before_the_end_of_the_attempt(tmp_path):
    record = opened(tmp_path, lambda known: PREDICTED, [])
    fill(record)
    record._thread.join()
    plan = read(tmp_path / "plan.json")
    assert plan is not None and plan.predicted.step_s == PREDICTED.step_s
    record.close(wait=True)


def test_failed_prediction_and_unknown_memory_are_lines_of_the_log(tmp_path):
    said = []

    def fail(*args):
        raise ValueError("it has 3 rows")

    record = opened(tmp_path, fail, said, device_bytes=lambda: 1 // 0)
    fill(record)
    record.close(wait=True)
    [text] = said
    assert text.startswith("plan: measured 15.0 ms a step, not predicted: ValueError: it has 3 rows (")
    plan = read(tmp_path / "plan.json")
    assert plan is not None and (plan.time_error, plan.memory_error, plan.measured.bytes) == (None, None, None)


def test_record_that_cannot_be_written_does_not_end_the_run(tmp_path):
    said = []
    (tmp_path / "plan.json").mkdir()
    record = opened(tmp_path, lambda known: PREDICTED, said)
    fill(record)
    record.close(wait=True)
    assert not said


def test_earlier_prediction_holds_for_the_same_settings_and_rates_only(tmp_path):
    (tmp_path / "plan.json").write_text(record.to_text(PlanFile(PREDICTED, measured())))
    plan = read(tmp_path / "plan.json")
    assert plan is not None
    unknown = Predicted(candidate="data=8, float32", settings={"mesh.data": 8}, rows=16, machine=PREDICTED.machine)
    assert plan.predicted.has_answer_for(unknown)
    assert not Predicted(**{**vars(unknown), "problem": "it failed"}).has_answer_for(unknown)
    for changes in (dict(rows=32), dict(machine={"margin": 0.5}), dict(settings={"mesh.data": 4})):
        assert not plan.predicted.has_answer_for(Predicted(**{**vars(unknown), **changes}))
