"""`Loss`."""

import jax.numpy as jnp

from engine.metrics.mean import Mean
from engine.training.loss import Loss


def test_loss_is_a_mean_with_metrics():
    loss = Loss.of(jnp.array([1.0, 3.0]), metrics={"a": Mean.of(jnp.ones(2))})
    assert (loss.total.tolist(), loss.weight.tolist(), list(loss.metrics)) == ([1, 3], [1, 1], ["a"])
