"""Training with rounded products: what it computes, on every mesh, and what it wins back."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import engine
from engine.base.errors import ConfigError, TaskError
from engine.compile.build import build_task
from engine.config.schema import MeshSpec, Target
from engine.quantization import aware
from engine.quantization.after_training import quantize
from engine.quantization.evaluations import Evaluations
from tests import zoo
from tests.quantization import subjects


def rounded(x, axis, bits):
    """Rounds by hand, with one scale for the entries along these dimensions."""
    limit = 2 ** (bits - 1) - 1
    scale = np.abs(x).max(axis, keepdims=True) / limit
    return np.round(x / scale) * scale


def trained(task, **settings):
    return zoo.run(zoo.program(task, target="optax.sgd", learning_rate=0.1, **settings), zoo.batches(2))


def test_first_loss_is_that_of_rounded_weights_and_inputs():
    task, batch = aware(zoo.Classify(width=8), bits=3), zoo.batches(1)[0]
    program = zoo.program(task)
    params, x = program.init().params, batch["x"]
    for name in ("hidden/0", "hidden/1", "head"):
        kernel, bias = np.asarray(params[f"{name}/kernel"]), np.asarray(params[f"{name}/bias"])
        x = rounded(x, 1, 8) @ rounded(kernel, 0, 3) + bias
        x = np.maximum(x, 0) if name != "head" else x
    losses = np.asarray(optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(x), batch["y"]))
    wanted = (losses * batch["valid"]).sum() / batch["valid"].sum()
    _, metrics = zoo.run(program, [batch])
    np.testing.assert_allclose(zoo.losses(metrics)[0], wanted, rtol=1e-5)


def test_layers_in_floats_and_inputs_in_floats_are_not_rounded():
    plain = trained(zoo.Classify(width=8))[1]
    np.testing.assert_allclose(trained(aware(zoo.Classify(width=8), keep="."))[1], plain, rtol=1e-6)
    found = trained(aware(zoo.Classify(width=8), bits=8, input_bits=None, keep="hidden"))[1]
    assert 0 < np.abs(found - plain)[0, 0].max() < 0.05 * plain[0, 0].max()


def test_a_mesh_with_microbatches_changes_nothing():
    """The scales of inputs belong to a row."""
    task = aware(subjects.Stacked(), bits=4)
    state, metrics = trained(task)
    found, found_metrics = trained(task, accumulate=2, mesh=MeshSpec(data=2), devices=2)
    np.testing.assert_allclose(zoo.losses(found_metrics), zoo.losses(metrics), rtol=1e-4)
    zoo.assert_close(found.params, state.params, 1e-4)


def test_products_that_a_pipeline_would_leave_in_floats_are_refused():
    task = aware(subjects.Stacked(), bits=4)
    with pytest.raises(
        TaskError, match=r"products with stack/layers/dense/kernel may be within a shard_map.*mesh.pipeline=1"
    ):
        trained(task, mesh=MeshSpec(pipeline=2), devices=2)


def test_fine_tuning_wins_back_most_of_what_fewer_bits_cost(tmp_path):
    path, before = subjects.trained()
    task = dict(target="engine.quantization.aware", task=dict(target=subjects.TARGET), bits=subjects.BITS)
    tuned = subjects.train(tmp_path / "tuned", task, init__checkpoint=str(path))

    def accuracy(found, bits=None):
        evaluations, forward = Evaluations(found), subjects.forward(found)
        if bits is None:
            return evaluations.measure().metrics["heldout/accuracy"]
        batches = evaluations.batches("heldout", forward.inputs, 64)
        quantized = quantize(forward.function, forward.weights, batches, bits=bits)
        return evaluations.measure(quantized.plan, quantized.weights).metrics["heldout/accuracy"]

    exact, rounded, after = (
        accuracy(before),
        accuracy(before, subjects.BITS),
        accuracy(engine.load(tuned), subjects.BITS),
    )
    assert exact - rounded > 0.1
    assert after - rounded > 0.5 * (exact - rounded)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(bits=1), "task.bits = 1. Allowed: a whole number from 2 to 8"),
        (dict(bits=None), "task.bits: found None"),
        (dict(input_bits=9), "task.input_bits = 9. Allowed"),
        (dict(keep="("), r"task.keep = '\(' is no regular expression"),
    ],
)
def test_wrong_settings_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        arguments: Any = dict(task=zoo.Classify(), **settings)
        build_task(Target(target="engine.quantization.aware", arguments=arguments))


def test_wrapped_value_that_is_no_task_is_refused():
    with pytest.raises(ConfigError, match=r"task\.task: found a str\. Give the Task as"):
        build_task(Target(target="engine.quantization.aware", arguments=dict(task="x")))
