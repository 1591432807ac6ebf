"""Early stopping: the conditions, their exactness across a resume, and the record of a stopped run."""

import contextlib
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import engine
from engine.base import json_text
from engine.base.errors import RunError
from engine.config.schema import Stop
from engine.loop.events.replica_check import ReplicaCheck
from engine.loop.stopping import reason_to_stop, stopped_reason
from engine.run.directory import RunDirectory
from tests import runs
from tests.loop.trainer_test import trainer_of
from tests.properties import examples

pytestmark = pytest.mark.slow

VALUES = st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(math.nan)), max_size=12)


def first_stop(config, values):
    """Returns the index of the first value at which a plain counter stops, or None."""
    sign, best, since = (1 if config.mode == "max" else -1), -math.inf, 0
    for index, value in enumerate(values):
        if math.isnan(value):
            continue
        if config.target is not None and sign * value >= sign * config.target:
            return index
        if sign * value - best > config.min_delta:
            best, since = sign * value, 0
        else:
            since += 1
        if config.patience is not None and since >= config.patience:
            return index
    return None


@examples(200)
@given(
    values=VALUES,
    patience=st.one_of(st.none(), st.integers(1, 4)),
    target=st.one_of(st.none(), st.integers(-3, 3)),
    min_delta=st.sampled_from([0.0, 1.0]),
    mode=st.sampled_from(["max", "min"]),
)
@example(values=[0.0, -1.0, 1.0, -1.0], patience=2, target=None, min_delta=0.0, mode="max")  # no row of two
def test_conditions_stop_where_a_counter_stops(values, patience, target, min_delta, mode):
    config = Stop(metric="a/b", patience=patience, target=target, min_delta=min_delta, mode=mode)
    found = None
    for index, value in enumerate(values):  # measured every 10 steps; only measured values ask
        history = {10 * i: x for i, x in enumerate(values[: index + 1])}
        if found is None and not math.isnan(value) and reason_to_stop(config, history):
            found = index
    assert found == first_stop(config, values)


def test_reason_names_the_metric_the_best_value_and_its_step():
    history = {2: 0.5, 4: 0.25, 6: 0.5, 8: math.nan, 10: 0.25}
    assert reason_to_stop(Stop(metric="heldout/loss", mode="min", patience=2), history) == (
        "heldout/loss was measured 2 times without an improvement over 0.25 of step 4"
    )
    assert reason_to_stop(Stop(metric="heldout/loss", patience=3), history) == ""
    assert reason_to_stop(Stop(metric="heldout/loss", mode="min", target=0.3), history) == (
        "heldout/loss is 0.25, which reaches stop.target = 0.3"
    )
    assert reason_to_stop(Stop(metric="heldout/loss", mode="min", target=0.3), {}) == ""


def config(**settings):
    hooks = {"walk": dict(target="tests.loop.hooks_test.Measures", every="1 step")}  # best at step 6
    stop = dict(stop__metric="walk/distance", stop__mode="min", stop__patience=2)
    return runs.config(**dict(hooks=hooks, evaluations={}) | stop | settings)


@pytest.mark.parametrize("save_every", ["5 steps", "7 steps"])  # resumes before and after the best value
def test_patience_is_exact_across_a_resume(tmp_path, save_every):
    settings = config(checkpoint__every=save_every)
    trainer = trainer_of(tmp_path, settings)
    with contextlib.closing(trainer.train()) as boundaries:
        assert next(boundary.step for boundary in boundaries if boundary.step > 6) == 7
    trainer.directory.close()
    summary = engine.train(settings, workdir=tmp_path)
    assert (summary.state, summary.step) == ("done", 8)
    reason = "walk/distance was measured 2 times without an improvement over 0 of step 6"
    assert summary.reason == f"stopped early: {reason}"
    assert engine.train(settings, workdir=tmp_path).step == 8
    with pytest.raises(RunError, match="is not the record of a stopped run"):
        (tmp_path / "stopped.json").write_text('{"step": 8}')
        stopped_reason(RunDirectory(tmp_path), 8, {})


def test_target_ends_the_run_and_a_larger_patience_continues_it(tmp_path):
    summary = engine.train(config(stop__target=2, stop__patience=None), workdir=tmp_path)
    assert (summary.step, summary.reason) == (4, "stopped early: walk/distance is 2, which reaches stop.target = 2")
    assert engine.train(config(stop__patience=3), workdir=tmp_path).step == 9
    assert engine.train(config(stop__metric=None, stop__patience=None), workdir=tmp_path).step == 10


@pytest.mark.parametrize(
    ("stored", "same"),
    [
        ({}, True),
        ({"stop.mode": "max"}, True),  # the default of earlier versions
        ({"stop.mode": "min"}, False),
        ({"stop.patience": "3"}, False),
        ({"hooks.show.target": "models.digits.Digits"}, True),  # the name of earlier versions
        ({"hooks.show.target": "models.vit.Vit"}, False),
    ],
)
def test_settings_that_an_earlier_version_has_stored_do_not_continue_a_stopped_run(tmp_path, stored, same):
    settings = {"stop.metric": "heldout/accuracy", "stop.mode": "auto", "stop.patience": "2"}
    settings |= {"hooks.show.target": "convoy_zoo.models.digits.Digits"}
    record = {"step": 8, "reason": "done", "settings": settings | stored}
    (tmp_path / "stopped.json").write_text(json_text.dumps(record))
    assert stopped_reason(RunDirectory(tmp_path), 8, settings) == ("done" if same else "")
    assert stopped_reason(RunDirectory(tmp_path), 9, settings) == ""


def test_early_end_writes_the_row_of_the_last_steps(tmp_path):
    unstopped, every = dict(stop__metric=None, stop__patience=None), dict(log__every="5 steps")
    engine.train(config(**unstopped), workdir=tmp_path / "steps")
    engine.train(config(**unstopped, **every), workdir=tmp_path / "rows")
    engine.train(config(stop__target=0, stop__patience=None, **every), workdir=tmp_path / "early")
    rows, steps = runs.rows(tmp_path / "rows"), runs.rows(tmp_path / "steps")
    assert runs.rows(tmp_path / "early") == {5: rows[5], 6: steps[6]}
    engine.train(config(**unstopped, **every), workdir=tmp_path / "early")
    assert runs.rows(tmp_path / "early") == {5: rows[5], 6: steps[6], 10: rows[10]}


def test_target_that_the_initial_weights_reach_ends_the_run_with_a_checkpoint_of_step_0(tmp_path):
    settings = dict(stop__metric="heldout/loss", stop__mode="min", stop__target=100.0)
    c = runs.config(**settings, evaluations__heldout__at_start=True)
    for _ in range(2):
        summary = engine.train(c, workdir=tmp_path)
        assert (summary.state, summary.step, summary.checkpoints) == ("done", 0, [0])
        assert "reaches stop.target = 100" in summary.reason
    assert "this run has ended early: heldout/loss is " in (tmp_path / "log.txt").read_text()
    assert engine.load(tmp_path).step == 0
    assert engine.train(runs.config(), workdir=tmp_path).step == 10


def test_replicas_are_compared_at_the_step_of_an_early_stop(tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(ReplicaCheck, "run", lambda self, step, state: checked.append(step))
    engine.train(config(stop__target=2, stop__patience=None, mesh__data=-1), workdir=tmp_path)
    assert checked == [4]


def test_evaluations_at_the_start_and_at_the_end_are_settings(tmp_path):
    c = runs.config(evaluations__heldout__at_start=True, evaluations__heldout__at_end=False, train__total="6 steps")
    assert engine.train(c, workdir=tmp_path).best == {}
    assert runs.rows(tmp_path, "heldout/loss").keys() == {0, 4}
