"""SAM as the update of a Task."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine import Loss, Mean
from engine.base.errors import TaskError
from engine.optimizers.sharpness import sam_update
from tests import zoo


class Sharp(zoo.Classify):
    """Three lines for the author."""

    def update(self, state, batch, context):
        return sam_update(self, state, batch, context, rho=0.5)


class Written(zoo.Classify):
    """The same step, by hand."""

    def update(self, state, batch, context):
        def mean(params):
            model = state.model(params)
            loss = self.loss(model, batch, context.rng)
            return loss.total.sum() / loss.weight.sum(), (loss, state.store(model))

        grads, (loss, new) = jax.grad(mean, has_aux=True)(state.params)
        scale = 0.5 / jnp.sqrt(sum(jnp.vdot(g, g) for g in grads.values()))
        worst = {path: x + scale * grads[path] for path, x in state.params.items()}
        grads, _ = jax.grad(mean, has_aux=True)(worst)
        return new.apply_gradients(grads), {"loss": Mean(loss.total, loss.weight), **loss.metrics}


class Terms(Sharp):
    """A sum of two losses."""

    def loss(self, model, batch, rng) -> Any:
        logits = model(batch["x"], rng)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return Loss.sum(a=Loss.of(losses, batch["valid"]), b=0.1 * Loss.of(logits**2))


class Groups(Sharp):
    """A loss for each group."""

    def loss(self, model, batch, rng) -> Any:
        loss = super().loss(model, batch, rng)
        return {"head": loss, "rest": loss}


def test_step_is_that_of_the_paper():
    batches = zoo.batches(2)
    (found, metrics), (expected, written) = (zoo.run(zoo.program(task("cnn")), batches) for task in (Sharp, Written))
    zoo.assert_close(found, expected, 1e-6)
    np.testing.assert_allclose(metrics, written, rtol=1e-5)


def test_sum_of_losses_is_logged_with_its_terms():
    program = zoo.program(Terms("linear"))
    _, metrics = zoo.run(program, zoo.batches(1))
    values = dict(zip(program.metric_names, (metrics[0, :, 0] / metrics[0, :, 1]).tolist(), strict=True))
    assert values["loss"] == pytest.approx(values["a"] + values["b"], rel=1e-5)


def test_losses_of_groups_are_refused():
    with pytest.raises(TaskError, match=r"sam_update: Groups\.loss returns a loss for each of head, rest"):
        zoo.program(Groups()).trace(1)
