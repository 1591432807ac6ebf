"""Dropout with one random key per example, so that the mask depends on neither the mesh nor accumulation.

`nnx.Dropout` of Flax draws one mask for the whole array, which depends on the split into microbatches. The engine
raises an error for it if `train.accumulate` is above 1.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from engine.base.errors import TaskError


def fold_in(rng: jax.Array | None, data: int | jax.Array) -> jax.Array | None:
    """Returns keys `[batch]` for one layer, derived from keys `[batch]` and `data`; None for None."""
    return None if rng is None else jax.vmap(jax.random.fold_in, (0, None))(rng, data)


class Dropout(nnx.Module):
    """Sets entries to 0 with probability `rate` and scales the rest (Srivastava et al. 2014, section 4).

    Raises:
        TaskError: `rate` is outside [0, 1).
    """

    def __init__(self, rate: float):
        if not 0 <= rate < 1:
            raise TaskError(f"Dropout: rate = {rate}. Allowed: 0 and more, below 1.")
        self.rate = rate

    def __call__(self, x: jax.Array, rng: jax.Array | None) -> jax.Array:
        """Returns `x` `[batch, ...]` with entries dropped by keys `rng` `[batch]`; `x` itself if `rng` is None."""
        if rng is None or self.rate == 0:
            return x
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(rng)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)
