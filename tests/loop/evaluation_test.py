"""Evaluations are exact with partial batches, on any mesh, for metrics per row and for sums."""

import dataclasses
import os
import signal
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import engine
from engine import Mean, metrics
from engine.base.errors import ShardingError, TaskError
from engine.cli.main import main
from engine.config.schema import Evaluation as Config
from engine.config.schema import MeshSpec
from engine.loop.evaluation import Evaluator
from engine.loop.evaluations import build_evaluations
from engine.loop.preemption import Preemption
from engine.metrics.results import json_values, scalars
from tests import runs, zoo
from tests.measuring import Measure

N = 37  # not a multiple of any batch size here


class Sums(zoo.Classify):
    """The same metrics, summed by the author."""

    def evaluate(self, model, batch):
        means: Mapping[str, Any] = super().evaluate(model, batch)
        return {name: Mean(m.total.sum(), m.weight.sum()) for name, m in means.items()}


def evaluation(program, batch_size=16, **config):
    return Evaluator("heldout", Config(**config), zoo.source(N, seed=5), program.evaluation, batch_size)


def expected(program, state):
    """Loss and accuracy, computed over all examples at once."""
    data = zoo.examples(N, seed=5)
    params = jax.device_get(state.params)
    module = program.spec.model.module(params, jax.device_get(state.model_state), None)
    module.eval()
    logits = module(data["x"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data["y"])
    correct = np.asarray(logits).argmax(-1) == data["y"]
    return {
        "heldout/loss": np.average(losses, weights=data["valid"]),
        "heldout/accuracy": np.average(correct, weights=data["valid"]),
    }


@pytest.fixture(scope="module", params=[None, MeshSpec(data=2, fsdp=4)], ids=["one-device", "eight-devices"])
def trained(request):
    """A program with dropout, which evaluations do not have, and its state after two steps."""
    program = zoo.program(zoo.Classify("cnn", dropout=0.5), mesh=request.param)
    return request.param, program, zoo.run(program, zoo.batches(2))[0]


@pytest.mark.slow
def test_each_example_counts_once_for_any_batch_size_and_the_state_is_kept(trained):
    mesh, program, state = trained
    before, wanted = jax.device_get(state), pytest.approx(expected(program, state), rel=1e-5)
    by_row, sums = evaluation(program), evaluation(zoo.program(Sums("cnn"), mesh=mesh))
    assert by_row.run(state) == by_row.run(state) == wanted
    assert sums.run(state) == wanted
    zoo.assert_equal(state, before)


@pytest.mark.slow
def test_collected_and_counted_metrics_are_equal_bits_on_any_mesh_with_any_batch_size(monkeypatch):
    results = []
    for mesh, batch_size in ((None, 37), (None, 10), (MeshSpec(data=2, fsdp=4), 16)):
        program = zoo.program(Measure(), mesh=mesh)
        found = evaluation(program, batch_size).run(program.init())
        assert found is not None
        results.append(json_values(found))
    assert results[0] == results[1] == results[2]
    data = zoo.examples(N, seed=5)
    assert results[0]["heldout/found/scores"] == sorted(data["x"][:, 0].tolist())
    assert results[0]["heldout/found/counts"] == data["y"].sum()
    assert results[0]["heldout/error/p50"] == pytest.approx(np.quantile(data["x"][data["valid"] > 0], 0.5), rel=1e-6)
    assert 0 < results[0]["heldout/ap"] < 1


@pytest.mark.parametrize("task", [zoo.Classify, Measure])
def test_batches_that_are_reduced_in_parts_give_the_same_bits(task):
    program = zoo.program(task())
    state, subject, other = program.init(), evaluation(program), evaluation(program)
    whole = subject.run(state)
    parts = [one.reduce(state, numbers=numbers) for one, numbers in ((other, range(2)), (subject, range(2, 3)))]
    found = subject.run(state, reduced=(batch for part in parts for batch in map(jax.device_get, part)))
    assert whole is not None and found is not None and json_values(found) == json_values(whole)
    positions = [batch[1] for batch in other.reduce(state, numbers=range(1, 3)) if batch is not None]
    assert positions == [16, 32]


def test_names_that_need_examples_are_accepted_by_their_metric():
    subject = evaluation(zoo.program(Firsts()))
    assert subject.gives("heldout/x/first")
    assert not subject.gives("heldout/y")
    assert subject.is_known({"heldout/x/first": 1.0})


class First(metrics.Metric):
    """A metric that needs an example, so that its names are not known before a run."""

    values: jax.Array = metrics.collected()

    def compute(self):
        return {"first": self.values[0]}


class Firsts(zoo.Classify):
    def evaluate(self, model, batch):
        return {"x": First(batch["y"]), "loss": None}


def test_name_that_needs_examples_is_checked_in_the_run(tmp_path):
    task = {"target": "tests.loop.evaluation_test.Firsts"}
    text = (
        r"checkpoint.best = 'heldout/x/fist': the evaluation heldout has not returned this metric. "
        r"Did you mean heldout/x/first\? It returned: heldout/x/first\."
    )
    with pytest.raises(TaskError, match=text):
        engine.train(runs.config(task=task, checkpoint__best="heldout/x/fist"), workdir=tmp_path)


def test_two_metrics_of_one_name_are_an_error():
    class Twice(zoo.Classify):
        def evaluate(self, model, batch):
            return {"x": metrics.Quantiles.of(batch["x"]), "x/p50": Mean.of(batch["x"])}

    program = zoo.program(Twice())
    with pytest.raises(TaskError, match=r"evaluations.heldout: two metrics give 'heldout/x/p50'. Rename one"):
        evaluation(program).run(program.init())


@pytest.mark.slow
def test_results_of_a_run_are_logged_and_select_the_best_checkpoint(tmp_path, capsys):
    config = runs.config(
        task={"target": "tests.measuring.Measure"},
        checkpoint__best="heldout/error/p50",
        log__tensorboard=True,
        evaluations__heldout__worst=2,
        evaluations__heldout__score="error/p50",
    )
    summary = engine.train(config, workdir=tmp_path)
    (value,) = set(runs.rows(tmp_path, "heldout/error/p50").values())
    assert summary.best == {"heldout/error/p50": (4, value)}
    assert summary.metrics["heldout/ap/0-1"] == runs.rows(tmp_path, "heldout/ap/0-1")[10]
    assert len(runs.rows(tmp_path, "heldout/found/scores")[10]) == N
    assert not runs.rows(tmp_path, "heldout/found/image")
    assert len(runs.rows(tmp_path, "heldout/worst_examples")[10]["example"]) == 2
    assert "step 10: heldout/worst_examples (largest error/p50 first):\n  example" in (tmp_path / "log.txt").read_text()
    assert runs.status(tmp_path)["metrics"]["heldout/confusion/f1/a"] == 0
    assert main(["evaluate", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"heldout/error/p50: {value:.6g}\n" in printed
    assert "curve" not in printed


def test_preempted_evaluation_stops_after_the_batch_and_returns_none():
    program, batches = zoo.program(zoo.Classify()), []

    def on_batch():
        batches.append(1)
        os.kill(os.getpid(), signal.SIGTERM)

    with Preemption() as preemption:
        assert evaluation(program, batch_size=8).run(program.init(), preemption, on_batch) is None
    assert len(batches) == 1


@pytest.mark.slow
def test_averaged_weights_are_evaluated_by_default():
    program = zoo.program(zoo.Classify(), ema_decay=0.5)
    state, _ = zoo.run(program, zoo.batches(4))
    averaged = expected(program, dataclasses.replace(state, params=state.ema))
    assert evaluation(program).run(state) == pytest.approx(averaged, rel=1e-5)
    assert evaluation(program, use_ema=False).run(state) == pytest.approx(expected(program, state), rel=1e-5)


def test_metric_without_weight_is_nan():
    class Empty(zoo.Classify):
        def evaluate(self, model, batch):
            return {"nothing": Mean.of(batch["x"], where=batch["valid"] * 0)}

    program = zoo.program(Empty())
    subject = evaluation(program)
    results = subject.run(program.init())
    assert subject.unweighted == ["heldout/nothing"]
    assert results is not None and np.isnan(scalars(results)["heldout/nothing"])


def test_indivisible_batch_and_empty_result_are_errors():
    program = zoo.program(zoo.Classify(), mesh=MeshSpec(data=8))
    section = {"heldout": Config(batch_size=12)}  # its own one, instead of that of the run
    with pytest.raises(ShardingError, match=r"evaluations.heldout.batch_size = 12 is not divisible by 8"):
        build_evaluations(section, {"heldout": zoo.source()}, program.evaluation, 16)

    class Silent(zoo.Classify):
        def evaluate(self, model, batch):
            return {}

    with pytest.raises(TaskError, match=r"evaluations.heldout: Silent.evaluate returned no metric"):
        evaluation(zoo.program(Silent()))


def test_evaluations_have_separate_data_and_periods(tmp_path):
    config = runs.config(
        evaluations={
            "one": dict(data=dict(target="tests.zoo.source", n=20, seed=1), every="3 steps", batch_size=8),
            "two": dict(data=dict(target="tests.zoo.source", n=50, seed=2), every=None),
        }
    )
    engine.train(config, workdir=tmp_path)
    assert sorted(runs.rows(tmp_path, "one/loss")) == [3, 6, 9, 10]
    assert sorted(runs.rows(tmp_path, "two/loss")) == [10]


def test_data_that_does_not_match_the_task_is_an_error():
    class Spec(zoo.Classify):
        def batch_spec(self):
            return {"x": jax.ShapeDtypeStruct((zoo.SIZE,), np.float32)}

    with pytest.raises(TaskError, match=r"evaluations.heldout: valid: Spec.batch_spec says nothing, the dataset gives"):
        evaluation(zoo.program(Spec()))


def test_evaluation_computes_in_the_precision_of_the_run():
    seen = {}

    @dataclasses.dataclass
    class Spy(zoo.Classify):
        full_precision = ("valid",)

        def evaluate(self, model, batch):
            seen.update(kernel=model.head.kernel.dtype, x=batch["x"].dtype, valid=batch["valid"].dtype)
            return super().evaluate(model, batch)

    program = zoo.program(Spy(), precision="bfloat16")
    evaluation(program).run(program.init())
    assert seen == {"kernel": jnp.bfloat16, "x": jnp.bfloat16, "valid": jnp.float32}
