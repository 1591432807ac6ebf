"""Methods of a Task that are run by a walk: results, model state, and which methods are changed."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from engine import Mean, Task
from engine.base.errors import ConfigError
from engine.quantization import walk
from engine.quantization.methods import with_products
from engine.quantization.views import Followed
from engine.quantization.walk import Walk
from tests import zoo


class Floats(Walk):
    """Computes the same products."""

    keeps_remat = True

    def product(self, product, x, weight):
        return product(x, weight.floats(product.weight_dtype))


def floats(function, weights):
    """Runs the same products by a walk."""
    found = {name: Followed.of(name, x) if x.ndim > 1 else x for name, x in weights.items()}
    return walk.run(Floats(), function, weights, found)


def doubled(function, weights):
    return function({name: 2 * x for name, x in weights.items()})


class Seen(nnx.Variable):
    """State of a model."""


@dataclasses.dataclass
class WithContext(zoo.Classify):
    """Counts its batches in the model, and reads the step."""

    model_state = (Seen,)

    def build(self, rngs):
        model = super().build(rngs)
        model.seen, model.constant = Seen(jax.numpy.zeros(())), Seen(jax.numpy.ones(3))
        return model

    def loss(self, model, batch, rng, context=None):
        model.seen.set_value(model.seen.get_value() + (context.step if context else 0))
        return super().loss(model, batch, rng)


def test_training_with_batch_statistics_and_dropout_is_that_of_the_task():
    task = zoo.Classify("cnn", dropout=0.3, width=4)
    wanted, wanted_losses = zoo.run(zoo.program(task), zoo.batches(2))
    found, losses = zoo.run(zoo.program(with_products(task, floats)), zoo.batches(2))
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    zoo.assert_close(found.params, wanted.params, 1e-6)
    zoo.assert_close(found.model_state, wanted.model_state, 1e-6)


def test_state_that_a_method_changes_is_changed_and_no_other():
    program = zoo.program(with_products(WithContext(width=4), floats))
    state, _ = zoo.run(program, zoo.batches(3))
    assert state.model_state["seen"] == 0 + 1 + 2
    assert program.spec.changed_state == {"seen"}


def test_methods_called_by_a_method_are_changed_once():
    class Evaluated(zoo.Classify):
        def evaluate(self, model, batch, *args, **kwargs):
            loss = self.loss(model, batch, None)
            return {"loss": Mean(loss.total, loss.weight)}

    task, batch = Evaluated("linear", width=1), zoo.batches(1)[0]
    rewritten: Any = with_products(task, doubled)
    model: Any = task.build(nnx.Rngs(0))
    twice: Any = task.build(nnx.Rngs(0))
    nnx.update(twice, jax.tree.map(lambda x: 2 * x, nnx.state(twice, nnx.Param)))
    found, wanted = (
        np.asarray(x["loss"].total) for x in (rewritten.evaluate(model, batch), task.evaluate(twice, batch))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_task_keeps_its_fields_and_its_name():
    task = zoo.Classify("cnn", width=7)
    found: Any = with_products(task, floats)
    assert (type(found).__name__, found.width, found.model) == ("Classify", 7, "cnn")
    assert isinstance(found, zoo.Classify) and type(found).predict is Task.predict


def test_task_with_its_own_update_is_refused():
    class Own(zoo.Classify):
        def update(self, state, batch, context):
            raise NotImplementedError

    with pytest.raises(ConfigError, match="Own: defines update, whose products cannot be rounded"):
        with_products(Own(), floats)
