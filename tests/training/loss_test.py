"""`Loss`."""

import jax.numpy as jnp
import pytest

from engine.base.errors import TaskError
from engine.metrics.mean import Mean
from engine.training.loss import Loss


def test_loss_is_a_mean_with_metrics():
    loss = Loss.of(jnp.array([1.0, 3.0]), metrics={"a": Mean.of(jnp.ones(2))})
    assert (loss.total.tolist(), loss.weight.tolist(), list(loss.metrics)) == ([1, 3], [1, 1], ["a"])


def test_two_terms_of_one_name_are_refused():
    x = Loss.of(jnp.ones(2))
    with pytest.raises(TaskError, match="two terms have the name 'a/b'"):
        Loss.sum(a=Loss.sum(b=x), **{"a/b": x})
    assert list(Loss.sum(a=Loss.sum(b=x), b=x).terms) == ["a/b", "b"]
