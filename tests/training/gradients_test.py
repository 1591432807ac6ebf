"""The gradient of a step: weighted means over microbatches, and random state."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import Loss, Mean
from engine.compile.collectives import collectives
from engine.config.schema import MeshSpec
from tests import zoo


@functools.cache
def trained(mesh: MeshSpec | None, accumulate: int) -> Any:
    """Returns the parameters after two steps. With sgd the update is proportional to the gradient."""
    settings: dict[str, Any] = dict(batch_size=32, target="optax.sgd", clip_norm=None)
    program = zoo.program(zoo.Classify(dropout=0.1), mesh=mesh, accumulate=accumulate, **settings)
    return jax.device_get(zoo.run(program, zoo.batches(2, 32))[0].params)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [None, MeshSpec(data=2, fsdp=4), MeshSpec(data=4, tensor=2)],
    ids=["one-device", "eight-devices", "summed-once"],
)
def test_microbatches_with_ragged_weights_equal_the_full_batch(mesh):
    """Those of a decoder: see step_test.py, which may take longer."""
    zoo.assert_close(trained(None, 1), trained(mesh, 4), 1e-6)


@pytest.mark.slow
def test_devices_sum_the_gradients_of_all_microbatches_once():
    mesh = MeshSpec(data=4, fsdp=2)

    def sent(accumulate: int, **settings: Any) -> int:
        program = zoo.program(zoo.Classify(width=64), batch_size=64, mesh=mesh, accumulate=accumulate, **settings)
        text = program.trace(1).lower().compile().as_text() or ""
        return sum(c.moved for c in collectives(text, program.mesh) if "data" in (c.axes or ()))

    assert sent(4) < 1.2 * sent(1)
    assert sent(4, approximate_accumulation=True) > 3 * sent(1)  # the models it is for may mix the rows of a call


@pytest.mark.slow
def test_loss_of_a_microbatch_that_is_one_number_does_not_depend_on_the_mesh():
    class Total(zoo.Classify):
        def loss(self, model, batch, rng):
            return Loss(super().loss(model, batch, rng).total.sum(), jnp.float32(1))

    settings: dict[str, Any] = dict(batch_size=32, accumulate=2, target="optax.sgd", clip_norm=None)
    batches = zoo.batches(1, 32)
    one, _ = zoo.run(zoo.program(Total(), **settings), batches)
    many, _ = zoo.run(zoo.program(Total(), mesh=MeshSpec(data=8), **settings), batches)
    zoo.assert_close(one.params, many.params, 1e-5)


def test_loss_that_calls_python_can_have_microbatches_on_several_devices():
    class Printed(zoo.Classify):
        def loss(self, model, batch, rng):
            loss = super().loss(model, batch, rng)
            jax.debug.print("{}", loss.total.sum())
            return loss

    program = zoo.program(Printed(), batch_size=32, mesh=MeshSpec(data=8), accumulate=2)
    assert "callback" in program.trace(1).lower().as_text()


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("accumulate", [1, 2])
def test_metrics_do_not_affect_the_gradient(accumulate):
    class Measured(zoo.Classify):
        def loss(self, model, batch, rng):
            loss = super().loss(model, batch, rng)
            zero = loss.total * 0  # the derivative of a norm is infinite at zero
            return dataclasses.replace(loss, metrics={"norm": Mean.of(jnp.sqrt(zero))})

    batches = zoo.batches(2)
    plain, _ = zoo.run(zoo.program(zoo.Classify("mlp"), accumulate=accumulate), batches)
    measured, _ = zoo.run(zoo.program(Measured("mlp"), accumulate=accumulate), batches)
    zoo.assert_equal(plain.params, measured.params)


@pytest.mark.slow
def test_step_follows_the_gradient_of_the_weighted_mean():
    task, batch = zoo.Classify(), zoo.batches(1)[0]
    assert 0 < batch["valid"].sum() < 16
    program = zoo.program(task, target="optax.sgd", learning_rate=1.0, clip_norm=None)
    before = jax.device_get(program.init().params)

    def mean(params):
        loss = task.loss(program.spec.model.module(params, {}, None), batch, None)
        return loss.total.sum() / batch["valid"].sum()

    value, gradient = jax.value_and_grad(mean)(before)
    state, metrics = zoo.run(program, [batch])
    zoo.assert_close(state.params, jax.tree.map(jnp.subtract, before, gradient), 1e-6)
    assert zoo.losses(metrics).tolist() == [pytest.approx(float(value), rel=1e-6)]
    norm = np.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
    assert metrics[0, program.metric_names.index("grad_norm")].tolist() == [pytest.approx(norm, rel=1e-5), 1]


def test_each_microbatch_draws_new_random_state():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.inner, self.rngs = zoo.Mlp(8, 0.0, rngs), rngs.fork()

    class Task(zoo.Classify):
        def build(self, rngs):
            return Noisy(rngs)

        def loss(self, model, batch, rng):
            loss = super().loss(model.inner, batch, rng)
            noise = jnp.full(len(batch["y"]), jax.random.uniform(model.rngs()))
            return Loss(loss.total, loss.weight, {"noise": Mean.of(noise), "square": Mean.of(noise**2)})

    program = zoo.program(Task(), accumulate=2, approximate_accumulation=True)
    _, metrics = zoo.run(program, zoo.batches(1))
    noise, square = (metrics[0, program.metric_names.index(name), 0] / 16 for name in ("noise", "square"))
    assert square - noise**2 > 1e-4  # the variance over the batch
