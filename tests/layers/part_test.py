"""Attention to parts of the keys: merged results and summed gradients equal attention to all keys.

Splash attention runs in interpret mode. For cuDNN, the same function of JAX runs in plain XLA.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.layers import blockwise, part
from tests.layers import plain

SPLASH = functools.partial(part.splash, interpret=True)
CUDNN = functools.partial(part.cudnn, implementation="xla")


def rounded(*args, statistics, **settings):
    """CUDNN with a result and statistics in float16, in which a CPU has no products."""
    out, lse = CUDNN(*args, statistics=statistics, **settings)
    return (out.astype(jnp.float16), lse.astype(jnp.float16).astype(jnp.float32)) if statistics else (out, lse)


def merged(with_kernel, q, k, v, segments, d_out):
    """Returns the attention to the two halves of the keys, merged, and its gradients."""
    halves = [(slice(None, k.shape[2] // 2)), slice(k.shape[2] // 2, None)]
    ids = [None if segments is None else (segments, segments[:, half]) for half in halves]
    found = [
        part.forward(with_kernel, q, k[:, :, half], v[:, :, half], of, causal=False)
        for half, of in zip(halves, ids, strict=True)
    ]
    lse = jnp.logaddexp(found[0][1], found[1][1])
    first, second = (x * jnp.exp(own - lse) for x, own in found)
    out = first + second
    rows = blockwise.RowStatistics(lse, blockwise.delta(out, d_out), d_out)
    parts = [
        part.backward(with_kernel, q, k[:, :, half], v[:, :, half], of, rows, causal=False)
        for half, of in zip(halves, ids, strict=True)
    ]
    (dq, dk, dv), (dq2, dk2, dv2) = parts
    return out, dq + dq2, jnp.concatenate([dk, dk2], 2), jnp.concatenate([dv, dv2], 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("with_kernel", "dtype", "segmented", "tolerance"),
    [
        (SPLASH, "float32", True, plain.TOLERANCE),
        (CUDNN, "float32", True, plain.TOLERANCE),
        (CUDNN, "float32", False, plain.TOLERANCE),
        (rounded, "bfloat16", True, 0.03),  # tolerance of bfloat16 in ring_test.py
        (None, "float32", True, plain.TOLERANCE),
    ],
)
def test_two_parts_equal_the_whole(with_kernel, dtype, segmented, tolerance):
    arrays = plain.inputs(2, dtype, 256)
    wide = [x.astype(jnp.float32) for x in arrays]
    q, k, v = blockwise.group(arrays[0], 2), blockwise.swap(arrays[1]), blockwise.swap(arrays[2])
    segments = plain.segments(256) if segmented else None
    d_out = blockwise.group(plain.weights(wide[0]), 2).astype(dtype)
    # XLA:CPU sums products of bfloat16 in bfloat16 if it compiles them together with what follows.
    run = merged if dtype == "bfloat16" else jax.jit(merged, static_argnums=0)
    found = run(with_kernel, q, k, v, segments, d_out)
    (_, out), gradients = plain.program(plain.attention, causal=False, segment_ids=segments)(*wide)
    wanted = blockwise.group(out, 2), blockwise.group(gradients[0], 2), *(blockwise.swap(x) for x in gradients[1:])
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("with_kernel", [SPLASH, CUDNN])
def test_causal_part_equals_plain_xla(with_kernel):
    q, k, v = plain.inputs(4, "float32", 128)
    q, k, v = blockwise.group(q, 4), blockwise.swap(k), blockwise.swap(v)
    run = jax.jit(functools.partial(part.forward, causal=True), static_argnums=0)
    found, wanted = (run(kernel, q, k, v, None) for kernel in (with_kernel, None))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "dtype", "queries", "keys", "chosen"),
    [
        ("tpu", "float32", 256, 128, part.splash),
        ("tpu", "bfloat16", 128, 64, None),
        ("gpu", "bfloat16", 64, 32, part.cudnn),
        ("gpu", "bfloat16", 63, 32, None),
        ("gpu", "float32", 64, 32, None),
        ("cpu", "bfloat16", 128, 128, None),
    ],
)
def test_kernel_follows_platform_shapes_and_dtype(platform, dtype, queries, keys, chosen):
    q, k = jnp.zeros((1, 1, 1, queries, 8), dtype), jnp.zeros((1, 1, keys, 8), dtype)
    assert part.kernel(platform, q, k) is chosen
