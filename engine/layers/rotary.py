"""Rotary position embedding (Su et al. 2021): rotates pairs formed by the two halves of each head.

In a packed row the positions of each document count from 0.
"""

import jax
import jax.numpy as jnp

from engine.base.errors import TaskError
from engine.layers.cpu import barriers

type Angles = tuple[jax.Array, jax.Array]
"""Cosines and sines, each `[batch, time, head_dim / 2]`."""


def rotary_angles(positions: jax.Array, head_dim: int, base: float = 10_000.0) -> Angles:
    """Returns cosines and sines `[batch, time, head_dim / 2]`, float32, for positions `[batch, time]`.

    Call it once per step and pass the result to every layer.

    Raises:
        TaskError: `head_dim` is odd.
    """
    if head_dim % 2:
        raise TaskError(
            f"rotary_angles: head_dim = {head_dim} is odd. Use an even size: its halves are rotated in pairs."
        )
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    # Without the barrier XLA computes the angles again at each use: for each head of each layer, forward and backward.
    return barriers.compute_once((jnp.cos(angles), jnp.sin(angles)))


def rotate(x: jax.Array, angles: Angles) -> jax.Array:
    """Returns `x` `[batch, time, heads, head_dim]` rotated by its positions, in the dtype of `x`."""
    cos, sin = (a[:, :, None, :] for a in angles)  # [batch, time, 1, head_dim / 2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
