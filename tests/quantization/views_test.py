"""A weight that is stored as codes keeps its numbers when it is rearranged."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from engine.quantization import walk
from engine.quantization.products import Product
from engine.quantization.views import Followed
from engine.quantization.walk import Walk

CODES = np.arange(-30, 30, dtype=np.int8).reshape(3, 4, 5)
SCALE = np.linspace(0.5, 2, 15, dtype=np.float32).reshape(3, 1, 5)
WEIGHT = {"w": np.zeros((3, 4, 5), np.float32)}

OPERATIONS = {
    "transpose": lambda w, i: w.transpose(2, 0, 1),
    "reverse": lambda w, i: w[::-1],
    "merge channels and shared": lambda w, i: w.reshape(12, 5),
    "merge and split": lambda w, i: w.reshape(2, 6, 5),
    "flatten": lambda w, i: w.reshape(-1),
    "unit dimensions": lambda w, i: w.reshape(3, 1, 4, 5, 1),
    "slice": lambda w, i: w[1:3, ::2, 2:],
    "index": lambda w, i: w[2],
    "index of a loop": lambda w, i: lax.dynamic_index_in_dim(w, i, 1),
    "split": lambda w, i: jnp.concatenate(lax.split(w, [1, 2], 0)[::-1]),
    "split of shared": lambda w, i: jnp.concatenate(lax.split(w, [1, 3], 1)[::-1], 1),
    "broadcast": lambda w, i: lax.broadcast_in_dim(w, (2, 3, 4, 5), (1, 2, 3)),
    "cast": lambda w, i: w.astype(jnp.bfloat16),
    "barrier": lambda w, i: lax.optimization_barrier((w, i))[0],
    "stop": lambda w, i: lax.stop_gradient(w),
}


def followed(**changes: Any) -> Followed:
    return Followed.of("w", jnp.asarray(CODES), jnp.asarray(SCALE), **changes)


@pytest.mark.parametrize("name", OPERATIONS)
def test_rearranged_codes_give_the_rearranged_numbers(name):
    operation = OPERATIONS[name]
    found = jax.jit(lambda i: walk.run(Walk(), lambda w, i: operation(w["w"], i), WEIGHT, {"w": followed()}, i))(1)
    np.testing.assert_array_equal(found, operation(jnp.asarray(CODES * SCALE), 1))


@pytest.mark.parametrize(
    ("operation", "contracted"),
    [
        (lambda x, w: jnp.einsum("abc,xa->xbc", w, x[:, :3]), {0}),
        (lambda x, w: x[:, :12] @ w.reshape(12, 5), {0, 1}),
        (lambda x, w: x[:, :5] @ w.transpose(2, 0, 1).reshape(5, 12), {2}),
        (lambda x, w: x[:, :4] @ w[2], {1}),
        (lambda x, w: x[:, :2] @ w.reshape(3, 2, 2, 5)[0, 0], {1}),
    ],
)
def test_contracted_dimensions_are_those_of_the_stored_weight(operation, contracted):
    found = []

    class Finds(Walk):
        def product(self, product: Product, x, weight):
            found.append(weight.origins_of(product.contracted(weight)))
            return product(x, weight.floats(product.weight_dtype))

    x = jnp.ones((2, 12))
    walk.run(Finds(), lambda w, x: operation(x, w["w"]), WEIGHT, {"w": Followed.of("w", jnp.zeros((3, 4, 5)))}, x)
    assert found == [contracted]


def test_slices_of_a_loop_have_their_own_scales_and_input_scales():
    scales = [jnp.full((1, 1, 5), 2.0), jnp.asarray(SCALE)]
    for scale in scales:
        weight = Followed.of("w", jnp.asarray(CODES), scale, jnp.arange(3.0))
        parts = [None if x is None else x[1] for x in weight.loop_arrays()]
        part = weight.iteration(parts)
        np.testing.assert_array_equal(part.floats(jnp.float32), (CODES * np.asarray(scale))[1])
        assert part.origins == (frozenset({1}), frozenset({2})) and part.input_scale == 1
    shared = Followed.of("w", jnp.asarray(CODES), scales[0], jnp.float32(7))
    part = shared.iteration([None if x is None else x[1] for x in shared.loop_arrays()])
    assert part.input_scale == 7
