"""Weights that are learned by uncertainty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import Loss, Mean, UncertaintyWeights
from engine.base.errors import TaskError
from engine.training.objective import means_of


def values(weights, losses):
    """Returns the mean of each loss after weighting."""
    found = weights({name: Loss.of(jnp.asarray(values)) for name, values in losses.items()})
    means = {name: mean for name, mean in means_of(found).items() if isinstance(mean, Mean)}
    return {name: mean.total.sum() / mean.weight.sum() for name, mean in means.items()}


def test_loss_is_that_of_kendall_et_al():
    weights = UncertaintyWeights(["boxes", "lanes"])
    weights.log_variance.set_value(jnp.array([0.5, -1.0]))
    found = values(weights, {"boxes": [1.0, 3.0], "lanes": [4.0, 4.0, 4.0]})
    assert found["boxes"] == pytest.approx(np.exp(-0.5) * 2 + 0.25)
    assert found["lanes"] == pytest.approx(np.exp(1.0) * 4 - 0.5)
    assert found["weight/boxes"] == pytest.approx(np.exp(-0.5)) and found["weight/lanes"] == pytest.approx(np.e)


def test_minimum_gives_all_losses_the_same_size():
    graph, state = nnx.split(UncertaintyWeights(["boxes", "lanes"]))

    def total(state):
        found = values(nnx.merge(graph, state), {"boxes": [8.0], "lanes": [0.1]})
        return found["boxes"] + found["lanes"]

    step = jax.jit(lambda state: jax.tree.map(lambda x, d: x - 0.3 * d, state, jax.grad(total)(state)))
    for _ in range(200):
        state = step(state)
    s = nnx.merge(graph, state).log_variance.get_value()
    np.testing.assert_allclose(jnp.exp(-s) * jnp.array([8.0, 0.1]), 0.5, rtol=1e-3)


def test_loss_without_a_weight_is_refused_and_one_that_is_missing_is_not():
    weights = UncertaintyWeights(["boxes", "lanes"])
    assert "lanes" not in values(weights, {"boxes": [1.0]})
    with pytest.raises(TaskError, match=r"UncertaintyWeights: no weight of loss 'lines'. It has: boxes, lanes"):
        values(weights, {"lines": [1.0]})
