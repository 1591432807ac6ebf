"""Rounds arrays to signed integers of a few bits, symmetric around 0, and back."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from engine.quantization.walk import FAKE

CLIPS = np.linspace(0.3, 1.0, 71)
"""Shares of the largest magnitude that are tried as the range with the smallest squared error."""


def largest_code(bits: int) -> int:
    """Returns the largest code; the smallest is its negative."""
    return 2 ** (bits - 1) - 1


def codes_of(x: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    """Returns `x / scale` rounded to codes, as int8."""
    limit = largest_code(bits)
    return jnp.clip(jnp.round(x.astype(jnp.float32) / scale), -limit, limit).astype(jnp.int8)


def input_codes_of(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns `x / scale` rounded to -128 to 127, as int8: the range of ONNX's QuantizeLinear."""
    return jnp.clip(jnp.round(x.astype(jnp.float32) / scale), -128, 127).astype(jnp.int8)


def scale_of(weight: jax.Array, shared: Sequence[int], bits: int) -> jax.Array:
    """Returns float32 scales with which the largest magnitude becomes the largest code, with size 1 where shared.

    Args:
        weight: the numbers.
        shared: dimensions whose entries share a scale.
        bits: of a code.
    """
    largest = jnp.max(jnp.abs(weight.astype(jnp.float32)), axis=tuple(shared), keepdims=True)
    return jnp.where(largest == 0, 1, largest) / largest_code(bits)


def best_scale_of(weight: jax.Array, shared: Sequence[int], bits: int) -> jax.Array:
    """Returns the scales with the smallest sum of squared errors; arguments as for `scale_of`."""
    weight = weight.astype(jnp.float32)
    whole, axes = scale_of(weight, shared, bits), tuple(shared)

    def error(clip: jax.Array) -> jax.Array:
        scale = whole * clip
        return jnp.sum(jnp.square(codes_of(weight, scale, bits) * scale - weight), axis=axes, keepdims=True)

    clips = jnp.asarray(CLIPS, jnp.float32)
    return whole * clips[jnp.argmin(jax.lax.map(error, clips), axis=0)]


@jax.custom_jvp
def _rounded(x: jax.Array, scale: jax.Array, limit: int) -> jax.Array:
    return jnp.clip(jnp.round(x / scale), -limit, limit) * scale


@_rounded.defjvp
def _rounded_jvp(primals: tuple[jax.Array, jax.Array, int], tangents: tuple[jax.Array, jax.Array, int]):
    """Passes the gradient of `x` on where `x` is in the range (Bengio et al. 2013, arXiv:1308.3432)."""
    x, scale, limit = primals
    inside = jnp.abs(x) <= scale * (limit + 0.5)
    return _rounded(x, scale, limit), jnp.where(inside, tangents[0], 0).astype(x.dtype)


def fake_quantized(x: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    """Returns `x` rounded to the numbers that codes have; its gradient is that of `x` within their range."""

    def call(x: jax.Array, scale: jax.Array) -> jax.Array:
        found = _rounded(x.astype(jnp.float32), scale.astype(jnp.float32), largest_code(bits))
        return found.astype(x.dtype)

    call.__name__ = FAKE
    return jax.jit(call)(x, jax.lax.stop_gradient(scale))


def percentile_range(counts: np.ndarray, largest: float, percentile: float) -> float:
    """Returns the smallest magnitude that is at least as large as a percentage of all inputs.

    Args:
        counts: inputs in each of equal parts of 0 to `largest`.
        largest: the largest magnitude.
        percentile: the percentage.
    """
    total = np.cumsum(counts)
    part = int(np.searchsorted(total, total[-1] * percentile / 100))
    return largest * (min(part, len(counts) - 1) + 1) / len(counts)


def best_range(counts: np.ndarray, largest: float, bits: int) -> float:
    """Returns the range with the smallest sum of squared errors; arguments as for `percentile_range`."""
    centers = (np.arange(len(counts)) + 0.5) * (largest / len(counts))
    limit = largest_code(bits)
    scales = largest * CLIPS[:, None] / limit
    errors = np.clip(np.round(centers / scales), -limit, limit) * scales - centers
    return float(largest * CLIPS[np.argmin(np.square(errors) @ counts)])


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def encoded(weight: jax.Array, shared: tuple[int, ...], bits: int, best: bool) -> tuple[jax.Array, jax.Array]:
    """Returns the codes of a weight and their scales.

    Args:
        weight: the numbers.
        shared: dimensions whose entries share a scale.
        bits: of a code.
        best: whether to choose the scales with the smallest squared error instead of the largest magnitude.
    """
    scale = (best_scale_of if best else scale_of)(weight, shared, bits)
    return codes_of(weight, scale, bits), scale
