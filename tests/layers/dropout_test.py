"""Dropout per example: the mask of an example depends on its key alone."""

import jax
import jax.numpy as jnp
import pytest

from engine.base.errors import TaskError
from engine.layers import Dropout, fold_in

KEYS = jax.random.split(jax.random.key(0), 8)
X = jnp.ones((8, 50, 4))


def test_mask_of_an_example_does_not_depend_on_the_batch():
    drop = Dropout(0.3)
    whole = drop(X, KEYS)
    assert jnp.array_equal(drop(X[2:5], KEYS[2:5]), whole[2:5])
    assert 0.2 < float((whole == 0).mean()) < 0.4
    assert abs(float(whole.mean()) - 1) < 0.1


def test_fold_in_gives_each_layer_a_different_mask():
    drop = Dropout(0.5)
    assert not jnp.array_equal(drop(X, fold_in(KEYS, 0)), drop(X, fold_in(KEYS, 1)))


def test_no_keys_drop_nothing():
    assert Dropout(0.5)(X, fold_in(None, 3)) is X


def test_rate_zero_drops_nothing():
    assert Dropout(0.0)(X, KEYS) is X


def test_rate_one_raises_task_error():
    with pytest.raises(TaskError, match=r"Dropout: rate = 1.0. Allowed: 0 and more, below 1"):
        Dropout(1.0)
