"""The layers of a function are the weights that its products have as an operand."""

import jax
import jax.numpy as jnp

from engine.quantization.layers import Layer, find_layers, layers_of
from tests.quantization import functions


def test_layers_have_the_dimensions_that_share_a_scale():
    found = layers_of(functions.dense, functions.DENSE, functions.batches(1)[0])
    assert list(found.values()) == [Layer("first", (8, 6), (0,), 1), Layer("second", (6, 4), (0,), 1)]
    assert found["first"].channels == (1,) and found["first"].scale_shape == (1, 6) and found["first"].size == 48


def test_layers_of_a_stack_and_of_convolutions():
    [stack] = layers_of(functions.stack, functions.STACK, functions.batches(1)[0]).values()
    assert stack == Layer("layers", (3, 8, 8), (1,), 1)
    found = layers_of(functions.convolution, functions.CONVOLUTION, functions.IMAGES[0])
    assert [layer.shared for layer in found.values()] == [(0, 1, 2), (0, 1, 2)]


def test_weight_of_several_products_shares_scales_over_all_of_their_dimensions():
    def tied(w, x):
        return (x @ w["table"]) @ w["table"].T, w["table"][0]

    found = layers_of(tied, {"table": jax.ShapeDtypeStruct((4, 5), jnp.bfloat16)}, jnp.ones((2, 4)))
    assert found == {"table": Layer("table", (4, 5), (0, 1), 2)}


def test_vectors_integers_and_scaled_weights_are_no_layers():
    def function(w, x):
        return x @ w["vector"] + (x @ (w["scaled"] * 2)).sum() + w["integers"].sum()

    weights = {"vector": jnp.ones(4), "scaled": jnp.ones((4, 4)), "integers": jnp.ones((2, 2), jnp.int32)}
    assert layers_of(function, weights, jnp.ones((2, 4))) == {}


def test_weights_whose_products_may_be_in_a_branch_are_named():
    def function(w, x):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w["a"], lambda: x) @ w["b"] + jax.lax.cond(
            x.sum() > 0, lambda: w["c"][0], lambda: w["c"][1]
        )

    layers, out_of_reach = find_layers(function, {name: jnp.ones((4, 4)) for name in "abc"}, jnp.ones((2, 4)))
    assert list(layers) == ["b"] and out_of_reach == ("a",)
