"""Predictions of real runs: those of the plan, `plan.json` after a run and a resume, and predictions that fail."""

import dataclasses
import json

import jax
import pytest

import engine
from engine.api import prepared
from engine.config.schema import MeshSpec, Sharding
from engine.parallel.mesh import axes_of
from engine.planning import machine as machines
from engine.planning import predict, record
from engine.planning.candidates import Attention, candidate_of
from engine.planning.plan import with_candidate
from engine.planning.search import cost_model
from engine.planning.tracing import Traces
from tests import runs, zoo
from tests.planning import tiny

CONSTANT = dict(optimizer__schedule="constant")  # so that a resume may change the total


class Whole(zoo.Classify):
    """A Task that cannot be traced with other numbers of rows than those of the run."""

    def loss(self, model, batch, rng):
        if len(batch["x"]) != 16:
            raise ValueError(f"this loss has 16 rows, found {len(batch['x'])}")
        return super().loss(model, batch, rng)


@pytest.fixture(autouse=True)
def no_measured_rates(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def short(monkeypatch):
    """Makes short runs record."""
    monkeypatch.setattr("engine.loop.observers.LEAST_S", 0.0)


def plan(path):
    found = record.read(path / "plan.json")
    assert found is not None
    return found


def lines(path, text):
    return [line for line in (path / "log.txt").read_text().splitlines() if text in line]


@pytest.mark.parametrize(
    "settings",
    [{}, dict(train__accumulate=2, sharding__zero1=True, train__global_batch_size=32)],
    ids=["default", "accumulate, zero1"],
)
def test_prediction_of_a_run_is_that_of_the_plan(settings):
    config = runs.config(**settings)
    program, _ = prepared.program(config)
    found = predict.predict(program, config)
    candidate = candidate_of(config.train, config.sharding, axes_of(config.mesh, jax.devices()))
    alone, _ = prepared.program(with_candidate(config, tiny.candidate(data=1)), jax.devices()[:1])
    machine = machines.of_devices(jax.devices())
    cost = cost_model(alone, config.sharding, config.data.prefetch, machine, ["float32"]).cost(candidate)
    assert found.candidate == f"{candidate}, float32" and found.rows == config.train.global_batch_size
    assert (found.seconds, found.memory, found.problem) == (cost.seconds, cost.memory, "")
    known = dataclasses.replace(found, seconds={"compute": 7.0})
    assert predict.predict(program, config, known).step_s == 7.0
    assert predict.predict(program, config, dataclasses.replace(known, rows=8)) == found


def test_prediction_of_a_run_knows_its_attentions():
    config = runs.config()
    program, _ = prepared.program(config)
    program.spec.layout.used.add("attention:24,8,2,1")
    machine = machines.of_devices(jax.devices())
    model = cost_model(predict.on_one_device(program), config.sharding, config.data.prefetch, machine, ["float32"])
    assert model.attentions == [Attention(24, 8, 2, causal=True)]


def test_partial_sums_of_a_run_do_not_depend_on_the_repeats_of_its_pipeline():
    layout = {"repeats": 2, "microbatches": 4}
    mesh, one = MeshSpec(data=4, pipeline=2), tiny.deep_model().traces
    built = zoo.program(tiny.Deep(), mesh=mesh, batch_size=tiny.DEEP_ROWS, layout=layout)
    run = Traces(predict.on_one_device(built), Sharding(), 2, one.balance, 64, print)
    assert run.work("none", "float32", 64).partial == one.work("none", "float32", 64).partial > 0


@pytest.mark.slow
def test_run_records_prediction_and_measurement_and_a_resume_does_not_predict_again(tmp_path, short):
    engine.train(runs.config(**CONSTANT), workdir=tmp_path)
    first = plan(tmp_path)
    assert first.predicted.candidate == "data=8, float32" and first.predicted.step_s > 0 < first.predicted.bytes
    times = sorted(runs.rows(tmp_path, "step_time_s").values())
    assert times[0] <= first.measured.step_s <= times[-1]
    assert first.measured.bytes and abs(first.memory_error or 9) < 1
    assert (first.measured.attempt, first.measured.peak_bytes) == (1, None)  # CPUs do not report a peak
    assert [line.endswith(str(first)) for line in lines(tmp_path, "plan: ")] == [True]
    stored = json.loads((tmp_path / "plan.json").read_text())
    stored["predicted"]["seconds"] = {"compute": 123.0}  # no prediction gives this
    (tmp_path / "plan.json").write_text(json.dumps(stored))
    engine.train(runs.config(train__total="16 steps", **CONSTANT), workdir=tmp_path)
    resumed = plan(tmp_path)
    assert (resumed.predicted.step_s, resumed.measured.attempt) == (123.0, 2)


@pytest.mark.slow
def test_prediction_that_fails_is_a_line_of_the_log(tmp_path, short):
    summary = engine.train(runs.config(), task=Whole(), workdir=tmp_path)
    assert (summary.step, runs.status(tmp_path)["state"]) == (10, "done")
    [line] = lines(tmp_path, "plan: ")
    assert "not predicted: ValueError: this loss has 16 rows, found " in line
    found = plan(tmp_path)
    assert found.predicted.problem and found.measured.step_s > 0


def test_short_run_traces_nothing_and_records_nothing(tmp_path):
    rows = set()

    class Traced(zoo.Classify):
        def loss(self, model, batch, rng):
            rows.add(len(batch["x"]))
            return super().loss(model, batch, rng)

    engine.train(runs.config(), task=Traced(), workdir=tmp_path)
    assert rows == {16} and not (tmp_path / "plan.json").exists() and not lines(tmp_path, "plan: ")
