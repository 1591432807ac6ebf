"""Stochastic depth (Huang et al. 2016): residual branches that are left out for random rows of a batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from engine import TaskError


def check(rate: float) -> float:
    """Returns the rate of the last block. Raises TaskError if it is outside [0, 1)."""
    if not 0 <= rate < 1:
        raise TaskError(f"drop_path = {rate}. Allowed: 0 and more, below 1.")
    return rate


def rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Returns the rate of each block of each stage: 0 in the first block, `last` in the last, and linear between."""
    total, index, found = max(sum(depths) - 1, 1), 0, []
    for depth in depths:
        found.append([check(last) * (index + i) / total for i in range(depth)])
        index += depth
    return found


def drop_path(y: jax.Array, rate: jax.typing.ArrayLike, rng: jax.Array | None) -> jax.Array:
    """Returns a residual branch that is 0 for random rows, and scaled for the others.

    The draw of a row depends on its key only, and on neither the mesh nor accumulation.

    Args:
        y: the branch, `[batch, ...]`.
        rate: probability with which a row is 0, or one for each row, `[batch]`.
        rng: keys `[batch]`, as a Task receives them; None: `y` as it is, as in evaluations.
    """
    if rng is None or (isinstance(rate, float) and rate == 0):
        return y
    keep = jnp.broadcast_to(1 - jnp.asarray(rate, jnp.float32), len(y))
    kept = jax.vmap(jax.random.bernoulli)(rng, keep)
    kept, keep = (x.reshape(-1, *(1 for _ in y.shape[1:])) for x in (kept, keep))
    return jnp.where(kept, y / keep.astype(y.dtype), 0).astype(y.dtype)
