"""Traced programs that are rewritten."""

import jax
import jax.numpy as jnp
import pytest

from engine.compile.flops import count_flops
from engine.training.jaxprs import keep_all, run_equation


def flops(function) -> int:
    return count_flops(jax.make_jaxpr(function)(jnp.ones((4, 4)), jnp.ones((4, 4))).jaxpr)


@pytest.mark.parametrize("scanned", [False, True])
def test_gradient_of_a_function_that_keeps_all_recomputes_nothing(scanned):
    """Also if the `jax.checkpoint` is in a loop, or has a policy."""

    def layer(x, w):
        return jax.nn.relu(jnp.sin(x @ w) @ w)

    def loss(x, w):
        checked = jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable)
        if scanned:
            return (jax.lax.scan(lambda x, _: (checked(x, w), None), x, length=3)[0] ** 2).sum()
        return (checked(x, w) ** 2).sum()

    once = flops(loss)
    assert flops(jax.grad(loss, (0, 1))) > 3 * once
    assert flops(jax.grad(keep_all(loss), (0, 1))) == 3 * once
    x, w = jnp.linspace(0, 1, 16).reshape(4, 4), jnp.eye(4)
    assert jnp.allclose(jax.grad(loss)(x, w), jax.grad(keep_all(loss))(x, w))


def test_equation_that_calls_a_function_keeps_its_derivative():
    @jax.custom_jvp
    def own(x):
        return x

    own.defjvps(lambda t, y, x: 7 * t)
    closed = jax.make_jaxpr(lambda x: own(2 * x))(1.0)
    double, call = closed.jaxpr.eqns
    assert run_equation(closed, double, [2.0, 3.0]) == [6.0]
    assert jax.grad(lambda x: run_equation(closed, call, [x])[0])(1.0) == 7
