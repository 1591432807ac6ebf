"""Values from the inside of loops and of recomputed parts, and what counts as an activation or a softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine.diagnosis.collect import begin_attention, collect, end_attention, enter, mark

X = jnp.arange(6.0).reshape(2, 3) - 3


def in_loop(x):
    """Three iterations, with a recomputed part."""

    @jax.checkpoint
    def body(x, shift):
        enter("loop")
        x = nnx.relu(x + shift)
        mark("loop", "largest", x.max())
        return x

    return jax.lax.scan(lambda x, shift: (body(x, shift), None), x, jnp.array([1.0, -2.0, 5.0]))[0]


def test_values_of_a_loop_have_a_dimension_for_its_iterations():
    found = jax.jit(lambda x: collect(in_loop, x))(X)
    assert found.keys() == {("loop", "largest"), ("loop", "dead")}
    [largest], [dead] = found["loop", "largest"], found["loop", "dead"]
    np.testing.assert_array_equal(largest, [3.0, 1.0, 6.0])
    np.testing.assert_array_equal(dead, [[False, False, False], [True, True, False], [False] * 3])


def test_results_and_gradients_are_not_needed_to_find_values():
    def function(x):
        enter("a")
        mark("a", "sum", nnx.relu(x).sum())
        return jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x) @ x.T

    assert float(collect(function, X)["a", "sum"][0]) == 3.0


@pytest.mark.parametrize(
    ("function", "counts"),
    [
        (nnx.relu, True),
        (lambda x: jnp.maximum(0, x) ** 2, True),
        (nnx.relu6, True),
        (nnx.gelu, False),
        (lambda x: jnp.maximum(x, 1), False),
        (lambda x: nnx.relu(x[0]), False),  # there is no dimension of the batch
        (lambda x: nnx.relu(x.astype(int)), False),
    ],
)
def test_activation_is_the_maximum_of_numbers_and_0(function, counts):
    def entered(x):
        enter("a")
        return function(x)

    assert (("a", "dead") in collect(entered, X)) == counts
    assert collect(function, X) == {}, "no layer was entered"


@pytest.mark.parametrize("axis", [-1, 1])
def test_softmax_of_an_attention_is_over_the_last_dimension(axis):
    scores = jnp.stack([X, 2 * X, 3 * X])

    def function(x):
        nnx.softmax(x)  # before an attention
        begin_attention("a")
        weights = nnx.softmax(x, axis)
        end_attention()
        return nnx.softmax(weights)

    found = collect(function, scores)
    if axis == 1:
        assert found == {}
    else:
        p = nnx.softmax(scores)
        assert float(found["a", "entropy"][0]) == pytest.approx(float(-(p * jnp.log(p)).sum(-1).mean()), rel=1e-5)
