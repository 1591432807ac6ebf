"""A walk reaches the products in called functions, loops and parts to recompute, and keeps what it does not know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from engine.quantization import walk
from engine.quantization.products import Product
from engine.quantization.views import Followed
from engine.quantization.walk import Walk
from tests.quantization import functions


class Counted(Walk):
    """Counts the products of each weight."""

    def product(self, product: Product, x, weight):
        self.record(weight.name, jnp.int32(1))
        return product(x, weight.floats(product.weight_dtype))

    def combine(self, values, other):
        return values + other

    def reduce(self, values):
        return values.sum(0)


@jax.custom_jvp
def own(x, kernel):
    return x @ kernel


own.defjvps(lambda t, y, x, kernel: 7 * t @ kernel, None)


def looped(w, x):
    """The weight `layers` in each of two uses; `shared` in all iterations of a loop."""

    def layer(x, kernel):
        return own(jax.nn.relu(x @ kernel), w["shared"]), None

    x, _ = lax.scan(layer, x, w["layers"])
    return jax.jit(lambda x: x @ w["shared"])(x) @ w["layers"][0]


def branched(w, x):
    return lax.cond(x.sum() > 0, lambda: x @ w["shared"], lambda: x)


WEIGHTS = functions.arrays(layers=(2, 4, 4), shared=(4, 4))
X = np.ones((1, 4), np.float32)


def counted(function, walker=None):
    walker = walker or Counted()
    followed = {name: Followed.of(name, jnp.asarray(x)) for name, x in WEIGHTS.items()}
    return walk.run(walker, function, WEIGHTS, followed, X), walker.values


def test_products_are_found_and_give_the_same_numbers():
    found, values = counted(looped)
    np.testing.assert_allclose(found, looped(WEIGHTS, X), rtol=1e-6)
    assert {name: x.tolist() for name, x in values.items()} == {"layers": 3, "shared": 3}


def test_values_of_a_loop_over_the_weight_have_one_for_each_iteration():
    _, values = counted(lambda w, x: lax.scan(lambda x, kernel: (x @ kernel, None), x, w["layers"])[0])
    assert values["layers"].tolist() == [1, 1]


def test_products_in_a_branch_stay():
    found, values = counted(branched)
    np.testing.assert_allclose(found, branched(WEIGHTS, X), rtol=1e-6)
    assert values == {}


@pytest.mark.parametrize("keeps", [False, True])
def test_gradient_is_that_of_the_function_and_recomputes_what_it_recomputes(keeps):
    class Kept(Walk):
        keeps_remat = keeps

        def product(self, product: Product, x, weight):
            return product(x, weight.floats(product.weight_dtype))

    def value(weights):
        followed = {"layers": Followed.of("layers", weights["layers"])}
        return walk.run(Kept(), functions.stack, weights, followed, functions.batches(1)[0])["y"].sum()

    found = jax.grad(value)(functions.STACK)["layers"]
    wanted = jax.grad(lambda w: functions.stack(w, functions.batches(1)[0])["y"].sum())(functions.STACK)["layers"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert ("remat" in str(jax.make_jaxpr(jax.grad(value))(functions.STACK))) == keeps


def test_rounding_of_training_is_left_out():
    def fake(x):
        return jnp.zeros_like(x)

    fake.__name__ = walk.FAKE
    found, values = counted(lambda w, x: jax.jit(fake)(x) @ jax.jit(fake)(w["shared"]))
    np.testing.assert_allclose(found, X @ WEIGHTS["shared"], rtol=1e-6)
    assert list(values) == ["shared"]
