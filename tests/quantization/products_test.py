"""Products with a weight on either side: which dimensions they sum over, and scales as factors of the result."""

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

CONV = ("NHWC", "HWIO", "NHWC")
CASES = {
    "dense": (lambda x, w: x @ w, (2, 3, 4), (4, 5), (0,)),
    "weight first": (lambda x, w: jnp.einsum("io,xi->ox", w, x), (2, 4), (4, 5), (0,)),
    "batch": (lambda x, w: jnp.einsum("xbi,bio->xbo", x, w), (2, 3, 4), (3, 4, 5), (1,)),
    "weight first in a batch": (lambda x, w: lax.batch_matmul(w, x), (3, 4, 2), (3, 5, 4), (2,)),
    "channels before the batch": (
        lambda x, w: lax.dot_general(x, w, (((2,), (2,)), ((1,), (1,)))),
        (2, 3, 4),
        (5, 3, 4),
        (2,),
    ),
    "heads": (lambda x, w: jnp.einsum("xe,ehd->xhd", x, w), (2, 4), (4, 3, 5), (0,)),
    "convolution": (
        lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=CONV),
        (2, 4, 4, 3),
        (3, 3, 3, 5),
        (0, 1, 2),
    ),
    "grouped convolution with other dimensions": (
        lambda x, w: lax.conv_general_dilated(
            x, w, (2, 2), "VALID", dimension_numbers=("NCHW", "OIHW", "CNHW"), feature_group_count=2
        ),
        (2, 4, 4, 4),
        (6, 2, 3, 3),
        (1, 2, 3),
    ),
}


class Integers(Walk):
    """Computes products of integers."""

    def product(self, product: Product, x, weight):
        total = product(x.astype(jnp.int8), weight.array, jnp.int32)
        assert total.dtype == jnp.int32 and weight.scale is not None
        return (total * product.result_scale(weight.scale, x.ndim)).astype(product.dtype)


@pytest.mark.parametrize("name", CASES)
def test_integer_product_times_scales_is_the_product_of_floats(name):
    function, shape, weight_shape, shared = CASES[name]
    rng = np.random.default_rng(0)
    x = rng.integers(-127, 128, shape).astype(np.float32)
    codes = rng.integers(-127, 128, weight_shape).astype(np.int8)
    scale = 2.0 ** rng.integers(-3, 4, [1 if axis in shared else size for axis, size in enumerate(weight_shape)])
    scale = jnp.asarray(scale, jnp.float32)
    floats = jnp.asarray(codes) * scale
    weights: Any = {"w": floats}
    followed = {"w": Followed.of("w", jnp.asarray(codes), scale)}
    call = jax.jit(lambda x: walk.run(Integers(), lambda w, x: function(x, w["w"]), weights, followed, x))
    np.testing.assert_array_equal(call(x), function(x, floats))


def test_products_without_exactly_one_weight_are_left_alone():
    weights = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    followed = {name: Followed.of(name, x) for name, x in weights.items()}
    assert (
        walk.run(Walk(), lambda w, x: (w["a"] @ w["b"]) @ x, weights, followed, jnp.ones((4, 1))).tolist()
        == [[16.0]] * 4
    )
