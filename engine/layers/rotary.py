"""Rotary position embedding (Su et al. 2021): rotates pairs formed by the two halves of each head.

In a packed row the positions of each document count from 0. TPUs exchange the halves by a product with a permutation:
a slice of half a head fills a part of a TPU's lanes, and XLA joins two of them in several passes over memory.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engine.base.errors import TaskError
from engine.layers.platforms import barriers
from engine.parallel import layout

type Angles = tuple[jax.Array, jax.Array]
"""Cosines and sines, each `[batch, time, head_dim / 2]`."""

PRODUCT: Mapping[str, range] = {"tpu": range(16, 257)}
"""Platform -> head sizes whose halves are exchanged by a product.

XLA's estimates for a v5e, in thousands of cycles: a projection to a width of 2,048, the rotation, the layout of the
attention kernel, and the gradient, for 2 rows of 2,048 positions.

| head size | not rotated | by slices of halves | by a product |
|---|---|---|---|
| bfloat16, 16 | 837 | 1,497 | 1,261 |
| bfloat16, 32 to 96 | 813 to 837 | 1,505 to 1,531 | 1,030 to 1,045 |
| bfloat16, 128 | 1,065 | 1,715 | 1,062 |
| bfloat16, 256 | 1,065 | 1,534 | 1,078 |
| float32, 64 | 838 | 1,391 | 1,065 |
| float32, 128 | 950 | 1,705 | 1,267 |
"""


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """Slower rotations for rows that are longer than those of the first training, as in Llama 3.1; names as there.

    Pairs that turn at most `low_freq_factor` times in a row of the first training turn `factor` times slower. Those
    that turn at least `high_freq_factor` times turn as before. The frequencies between them are interpolated.

    Args:
        factor: by which slow rotations are divided.
        low_freq_factor: turns.
        high_freq_factor: turns.
        original_max_position_embeddings: positions of a row of the first training.

    Raises:
        TaskError: the numbers of turns are not in this order, or a number is not positive.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if not (self.factor > 0 and 0 < self.low_freq_factor < self.high_freq_factor):
            raise TaskError(f"{self}: allowed are a factor above 0, and 0 < low_freq_factor < high_freq_factor.")

    def scaled(self, frequencies: jax.Array) -> jax.Array:
        """Returns other angles per position, for `frequencies` of that shape."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = jnp.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


def rotary_angles(
    positions: jax.Array, head_dim: int, base: float = 10_000.0, scaling: RotaryScaling | None = None
) -> Angles:
    """Returns cosines and sines `[batch, time, head_dim / 2]`, float32, for positions `[batch, time]`.

    Call it once per step and pass the result to every layer.

    Args:
        positions: of the tokens, from 0 in each document.
        head_dim: features of a head.
        base: pair i of n turns by `base ** (-i / n)` for each position.
        scaling: of these angles for long rows.

    Raises:
        TaskError: `head_dim` is odd.
    """
    if head_dim % 2:
        raise TaskError(
            f"rotary_angles: head_dim = {head_dim} is odd. Use an even size: its halves are rotated in pairs."
        )
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    frequencies = frequencies if scaling is None else scaling.scaled(frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    # Without the barrier XLA computes the angles again at each use: for each head of each layer, forward and backward.
    return barriers.compute_once((jnp.cos(angles), jnp.sin(angles)))


def rotate(x: jax.Array, angles: Angles) -> jax.Array:
    """Returns `x` `[batch, time, heads, head_dim]` rotated by its positions, in the dtype of `x`.

    On TPUs it has no forward-mode derivative (`jax.jvp`).
    """
    by_product = x.dtype in (jnp.bfloat16, jnp.float32) and x.shape[-1] in PRODUCT.get(layout.current().platform, ())
    return _by_product(x, *angles) if by_product else _by_halves(x, *angles)


def _by_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    cos, sin = (a[:, :, None, :] for a in (cos, sin))  # [batch, time, 1, head_dim / 2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _exchanged(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Returns what `_by_halves` does. The product is exact: each of its sums has one element of `x`.

    Of float32 a TPU multiplies three parts of 8 bits each with the highest precision, and rounds to 8 bits without it.
    """
    size = x.shape[-1]
    permutation = jnp.asarray(np.roll(np.eye(size), size // 2, axis=0), x.dtype)
    other = jnp.matmul(x, permutation, precision=lax.Precision.HIGHEST if x.dtype == jnp.float32 else None)
    cos, sin = jnp.concatenate([cos, cos], axis=-1)[:, :, None], jnp.concatenate([-sin, sin], axis=-1)[:, :, None]
    return (x.astype(jnp.float32) * cos + other.astype(jnp.float32) * sin).astype(x.dtype)


@jax.custom_vjp
def _by_product(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Returns `_exchanged`. Its gradient is the rotation by the opposite angles, rounded once to the dtype of `x`."""
    return _exchanged(x, cos, sin)


type _Saved = tuple[jax.Array | None, jax.Array, jax.Array]


def _by_product_forward(
    x: jax.custom_derivatives.CustomVJPPrimal,
    cos: jax.custom_derivatives.CustomVJPPrimal,
    sin: jax.custom_derivatives.CustomVJPPrimal,
) -> tuple[jax.Array, _Saved]:
    kept = x.value if cos.perturbed or sin.perturbed else None  # angles that depend on parameters
    return _exchanged(x.value, cos.value, sin.value), (kept, cos.value, sin.value)


def _by_product_backward(saved: _Saved, d_y: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    x, cos, sin = saved
    d_x = _exchanged(d_y, cos, -sin)
    if x is None:
        return d_x, None, None
    return d_x, *jax.vjp(lambda *angles: _by_halves(x, *angles), cos, sin)[1](d_y)


_by_product.defvjp(_by_product_forward, _by_product_backward, symbolic_zeros=True)
