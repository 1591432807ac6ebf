"""Activations: equality with the formula, the values kept for the gradient, and its passes on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.layers.platforms.activations import swiglu
from engine.parallel.layout import active
from tests import zoo
from tests.layers.blocks import LikeTpu

GATE, UP = 3 * jax.random.normal(jax.random.key(0), (2, 4, 16, 8))


def test_swiglu_and_its_gradients_equal_the_formula():
    def check(function):
        return function(GATE, UP), jax.grad(lambda a, b: jnp.sin(function(a, b)).sum(), argnums=(0, 1))(GATE, UP)

    ours, plain = check(swiglu), check(lambda gate, up: jax.nn.silu(gate) * up)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, plain)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradient_keeps_only_the_two_arguments(dtype):
    _, gradient = jax.vjp(swiglu, GATE.astype(dtype), UP.astype(dtype))
    kept = [x for x in jax.tree.leaves(gradient) if x.size > 1]
    assert [(x.shape, x.dtype) for x in kept] == [(GATE.shape, dtype)] * 2


def test_gradient_on_cpu_is_one_pass_for_each_argument():
    def gradients(gate, up, d_out):
        return jax.vjp(swiglu, gate, up)[1](d_out)

    program = str(jax.jit(gradients).lower(GATE, UP, GATE).compile().as_text())
    assert program.count(" fusion(") == 2


def test_gradients_on_a_tpu_are_computed_once_from_arrays_in_a_loop():
    """Products with both gradients would compute them again; a barrier before would copy the kept arguments."""

    def gradients(gate, up, d_out):
        with active(LikeTpu()):
            return jax.vjp(swiglu, gate, up)[1](d_out)

    barriers = [e for e in jax.make_jaxpr(gradients)(GATE, UP, GATE).eqns if e.primitive.name == "optimization_barrier"]
    assert len(barriers) == 1 and len(barriers[0].outvars) == 2
    zoo.assert_close(gradients(GATE, UP, GATE), jax.vjp(swiglu, GATE, UP)[1](GATE), 1e-6)
