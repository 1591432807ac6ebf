"""The schedule 1F1B: its memory for activations does not grow with the number of microbatches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine.config.schema import MeshSpec
from engine.layers import Stack
from engine.layers.one_f_one_b import with_own_gradient
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh

ROWS, WIDTH, STAGES = 4, 64, 2  # of a microbatch
FEW, MANY = 8, 40  # microbatches


class Wide(nnx.Module):
    """A layer that keeps eight times the size of its input, and passes an integer input on."""

    def __init__(self, rngs):
        self.w = nnx.Param(jnp.ones((WIDTH, WIDTH)))

    def __call__(self, carry, offset, rng):
        x, count = carry
        for _ in range(4):
            x = jnp.sin(x @ self.w.get_value() + offset[:, None])
        return x, count + 1


@functools.cache
def compiled(schedule, microbatches):
    """Returns the compiled gradient of a sum over a pipeline of two stages, and its input."""
    layout = Layout(
        mesh=make_mesh(MeshSpec(pipeline=STAGES), jax.devices()[:STAGES]), schedule=schedule, microbatches=microbatches
    )
    with active(layout):
        graph, params = nnx.split(Stack(Wide, 4, rngs=nnx.Rngs(0), unroll=False))

    def loss(params, x, offset):
        with active(layout):
            x, count = nnx.merge(graph, params)((x, jnp.zeros(len(x), int)), offset)
        return (x.sum(-1) * count).sum()

    rows = ROWS * microbatches
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, WIDTH)), jnp.float32)
    offset = jnp.linspace(0, 1, rows)
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(params, x, offset).compile(), (params, x, offset)


def memory(schedule, microbatches):
    """Returns the temporary memory of a device in units of a microbatch of activations."""
    found = compiled(schedule, microbatches)[0].memory_analysis()
    assert found is not None
    return found.temp_size_in_bytes / (4 * ROWS * WIDTH)


@pytest.mark.slow
def test_memory_grows_with_the_queues_alone():
    """Each device has its share of the queues: of inputs, results, and the gradients of both."""
    growth = {kind: (memory(kind, MANY) - memory(kind, FEW)) / (MANY - FEW) for kind in ("gpipe", "1f1b")}
    assert growth["1f1b"] <= 6 / STAGES < 16 <= growth["gpipe"]


def test_gradients_equal_those_of_gpipe_also_of_shared_inputs():
    programs = [compiled(schedule, FEW) for schedule in ("1f1b", "gpipe")]
    found, wanted = (jax.tree.leaves(program(*inputs)) for program, inputs in programs)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_inputs_without_a_gradient_have_none():
    call = with_own_gradient(lambda params, x: params * x[0] * x[1], lambda params, x, d: (d[0], [2 * d[0]]))
    with pytest.raises(TypeError, match="grad requires real- or complex-valued inputs"):
        jax.grad(call, 1)(2.0, (3.0, jnp.int32(4), None))
    assert jax.grad(lambda x: call(2.0, (x, jnp.int32(4), None)))(3.0) == 2
