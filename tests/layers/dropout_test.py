"""Dropout by example: what an example loses depends on its own key alone."""

import jax
import jax.numpy as jnp
import pytest

from engine.config.errors import TaskError
from engine.layers import Dropout, fold_in

KEYS = jax.random.split(jax.random.key(0), 8)
X = jnp.ones((8, 50, 4))


def test_a_part_of_the_batch_loses_what_it_loses_in_the_whole():
    drop = Dropout(0.3)
    whole = drop(X, KEYS)
    assert jnp.array_equal(drop(X[2:5], KEYS[2:5]), whole[2:5])
    assert 0.2 < float((whole == 0).mean()) < 0.4
    assert abs(float(whole.mean()) - 1) < 0.1


def test_layers_draw_differently_after_fold_in():
    drop = Dropout(0.5)
    assert not jnp.array_equal(drop(X, fold_in(KEYS, 0)), drop(X, fold_in(KEYS, 1)))


def test_without_keys_nothing_is_dropped():
    assert Dropout(0.5)(X, fold_in(None, 3)) is X


def test_a_rate_of_zero_draws_nothing():
    assert Dropout(0.0)(X, KEYS) is X


def test_a_rate_of_one_is_refused():
    with pytest.raises(TaskError, match="outside"):
        Dropout(1.0)
