"""Attention for programs of other runtimes: the formula of `layers.attention`, with symbolic sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from engine import layers
from engine.parallel.layout import Layout, with_layout

PORTABLE = Layout(portable=True)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.dense = layers.Dense(4, 4, axes=("embed", "mlp"), rngs=rngs)

    def __call__(self, x, rng):
        return self.dense(x)


def arrays(batch, time, heads=4, kv_heads=2):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (batch, time, n, 8)) for key, n in zip(keys, (heads, kv_heads, kv_heads), strict=True)
    )
    return q, k, v, jnp.arange(batch * time).reshape(batch, time) // 5


@pytest.mark.parametrize("causal", [True, False])
def test_portable_attention_equals_that_of_the_engine(causal):
    q, k, v, segments = arrays(2, 19)

    def attend(*args):
        return layers.attention(*args[:3], causal=causal, segment_ids=args[3])

    np.testing.assert_allclose(
        with_layout(PORTABLE, attend)(q, k, v, segments), attend(q, k, v, segments), rtol=1e-5, atol=1e-6
    )


def test_portable_attention_has_any_number_of_rows_and_positions():
    def attend(q, k, v, segments):
        return layers.attention(q, k, v, causal=True, segment_ids=segments)

    batch, time = export.symbolic_shape("batch, time")
    specs = [jax.ShapeDtypeStruct((batch, time, *x.shape[2:]), x.dtype) for x in arrays(1, 1)]
    program = export.export(jax.jit(with_layout(PORTABLE, attend)))(*specs)
    for sizes in ((1, 3), (3, 130)):
        args = arrays(*sizes)
        np.testing.assert_allclose(program.call(*args), attend(*args), rtol=1e-5, atol=1e-6)


def test_portable_stack_has_no_loop_over_layers():
    stack = layers.Stack(Layer, 6, rngs=nnx.Rngs(0))
    text = str(jax.make_jaxpr(with_layout(PORTABLE, stack))(jnp.ones((2, 4))))
    assert "unroll=6" in text
    np.testing.assert_allclose(with_layout(PORTABLE, stack)(jnp.ones((2, 4))), stack(jnp.ones((2, 4))), rtol=1e-6)
