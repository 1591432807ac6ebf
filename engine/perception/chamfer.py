"""Chamfer distance: how far two sets of points are from each other (Fan et al. 2017, arXiv:1612.00603)."""

import jax
import jax.numpy as jnp


def chamfer_distance(
    a: jax.Array, b: jax.Array, a_valid: jax.Array | None = None, b_valid: jax.Array | None = None
) -> jax.Array:
    """Returns the mean squared distance from a point to the nearest one of the other set, both ways added, `[batch]`.

    It is computed from differences: squares of coordinates far from 0 would leave few digits. If one set of an example
    is empty, the result is 0; give its term weight 0. Padding is not read, and a NaN elsewhere makes the result NaN.

    Args:
        a: points `[batch, points, dims]`.
        b: points `[batch, other points, dims]`.
        a_valid: bool `[batch, points]`: False for padding.
        b_valid: bool `[batch, other points]`.
    """
    valid = [jnp.ones(x.shape[:2], bool) if given is None else given for x, given in ((a, a_valid), (b, b_valid))]
    # Zeros in padding: a NaN there would reach the gradients of all points, as 0 * NaN.
    a, b = (jnp.where(known[..., None], x.astype(jnp.float32), 0) for x, known in zip((a, b), valid, strict=True))
    square = ((a[:, :, None] - b[:, None]) ** 2).sum(-1)
    pair = valid[0][:, :, None] & valid[1][:, None]
    total = jnp.zeros((), jnp.float32)
    for axis in (2, 1):
        nearest = jnp.where(pair, square, jnp.inf).min(axis)
        known = pair.any(axis)
        total = total + jnp.where(known, nearest, 0).sum(1) / jnp.maximum(known.sum(1), 1)
    return total
