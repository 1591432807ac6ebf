"""Values are named from sums over examples, exactly where a bucket has one value."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine.metrics.odd_values import describe, encode


def described(values, odd=None):
    values = jnp.asarray(values)
    odd = jnp.ones(values.shape, bool) if odd is None else jnp.asarray(odd)
    return describe(np.asarray(encode(values, odd)).sum(0), str(values.dtype))


@pytest.mark.parametrize("value", [-(2**31), -1, 0, 10, 255, 2**31 - 1])
def test_one_value_is_named(value):
    assert described(jnp.array([[value]] * 3, jnp.int32)) == f"{value} (in 3 examples)"


def test_floats_are_named_with_nan_and_fractions():
    assert described(jnp.array([[0.5], [jnp.nan], [jnp.nan]])) == "several values (in 3 examples)"  # of one bucket
    assert described(jnp.array([[-0.5]])) == "-0.5 (in 1 example)"
    assert described(jnp.array([[jnp.nan], [1.5]])) == "1.5 (in 1 example) and nan (in 1 example)"


def test_first_odd_value_of_each_example_is_named():
    values, odd = jnp.array([[1, 10, 11], [12, 2, 3], [4, 5, 6]]), [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert described(values, np.array(odd, bool)) == "10 (in 1 example) and 12 (in 1 example)"
    assert described(values, np.zeros((3, 3), bool)) == ""


def test_several_values_of_a_bucket_give_their_mean():
    found = described(jnp.array([[-5], [3], [7], [8]]))
    assert found == "8 (in 1 example) and several other values, 1.66667 on average (in 3 examples)"
