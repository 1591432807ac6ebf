"""Attention by the formula, in float32, and the comparison of an implementation with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from engine.config.schema import MeshSpec
from engine.parallel.layout import Layout, active
from engine.parallel.mesh import make_mesh

BATCH, TIME, HEADS, HEAD_DIM = 4, 48, 8, 8
TOLERANCE = 1e-5  # absolute, with inputs of standard deviation 1


def mesh(devices=8, **axes):
    """Returns a mesh over the first devices."""
    return make_mesh(MeshSpec(**axes), jax.devices()[:devices])


@functools.cache
def inputs(kv_heads=2, dtype="float32", time=TIME):
    """Returns q, k and v."""
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(
        jax.random.normal(key, (BATCH, time, heads, HEAD_DIM)).astype(dtype)
        for key, heads in zip(keys, (HEADS, kv_heads, kv_heads), strict=True)
    )


def segments(time=TIME):
    """Returns segment ids of up to three documents and padding; row 0 is nearly all padding, the last row has none."""
    ids = jax.random.randint(jax.random.key(1), (BATCH, time), 0, 4)
    return jnp.sort(ids, axis=1)[:, ::-1].at[-1].set(1).at[0, 5:].set(0)


def attention(q, k, v, *, causal, segment_ids):
    """Returns attention by a softmax over all allowed pairs."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    allowed = jnp.ones((1, 1, *scores.shape[2:]), bool)
    if causal:
        allowed = jnp.tril(allowed)
    if segment_ids is not None:
        allowed &= (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf)), v)


def program(function, *, causal, segment_ids, layout=None):
    """Returns a jitted function of q, k, v that returns the result and the gradients of its weighted sum."""

    def total(q, k, v):
        out = function(q, k, v, causal=causal, segment_ids=segment_ids)
        return (out * weights(q)).sum(), out

    def traced(q, k, v):
        with active(layout or Layout()):
            return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    # LLVM takes most of the time of these tests; optimization does not pay for a program that runs once.
    return jax.jit(traced, compiler_options={"xla_backend_optimization_level": 0})


def compiled_text(function, arrays, *spec, **settings):
    """Returns the text of the compiled program for inputs with the PartitionSpec `spec` on the layout's mesh."""
    sharding = jax.NamedSharding(settings["layout"].mesh, jax.P(*spec))
    arrays = [jax.device_put(x, sharding) for x in arrays]
    return str(program(function, **settings).lower(*arrays).compile().as_text())


def flops(function, shape, **settings):
    """Returns the FLOPs of the program before XLA optimizes it; the body of a loop counts once."""
    q = jax.ShapeDtypeStruct(shape, jnp.float32)
    return dict(program(function, **settings).lower(q, q, q).cost_analysis() or {})["flops"]


def weights(q):
    """Returns weights of the result, of standard deviation 1."""
    return jax.random.normal(jax.random.key(2), q.shape)


def results(function, arrays, **settings):
    """Returns (out, (dq, dk, dv)) on the host."""
    (_, out), gradients = program(function, **settings)(*arrays)
    return jax.device_get((out, gradients))


@functools.cache
def expected_results(causal, segmented, kv_heads, dtype, time):
    """Returns the results of the formula for inputs rounded to `dtype`."""
    arrays = [x.astype(jnp.float32) for x in inputs(kv_heads, dtype, time)]
    return results(attention, arrays, causal=causal, segment_ids=segments(time) if segmented else None)


def check(
    function,
    *,
    causal,
    segmented,
    kv_heads=2,
    dtype="float32",
    time=TIME,
    layout=None,
    tolerance=TOLERANCE,
):
    """Compares an implementation with the formula: the result and the gradients of q, k and v."""
    segment_ids = segments(time) if segmented else None
    arrays = inputs(kv_heads, dtype, time)
    found = results(function, arrays, causal=causal, segment_ids=segment_ids, layout=layout)
    for name, actual, expected in zip(
        ("out", "dq", "dk", "dv"),
        jax.tree.leaves(found),
        jax.tree.leaves(expected_results(causal, segmented, kv_heads, dtype, time)),
        strict=True,
    ):
        assert actual.dtype == dtype, name
        np.testing.assert_allclose(actual.astype(np.float32), expected, rtol=0, atol=tolerance, err_msg=name)
