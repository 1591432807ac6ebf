"""Resets the state that a model keeps for each row of a batch where a drive starts."""

from typing import Any

import jax
import jax.numpy as jnp

from engine.base.types import PyTree


def reset_at_starts(state: PyTree, starts: Any, initial: PyTree = 0.0) -> PyTree:
    """Returns the state of the rows of a batch, with that of each row reset whose drive starts.

    In the model: `memory = engine.reset_at_starts(self.memory[...], batch["sequence"]["starts"])`.

    Args:
        state: pytree of arrays `[batch, ...]`.
        starts: bool `[batch]`, the entry `sequence/starts` of a batch of `engine.Sequences` with `carry=True`.
        initial: the state at the start of a drive: a number, or a pytree like `state` of arrays that broadcast to its
            arrays.

    Raises:
        ValueError: the first dimension of an array differs from that of `starts`.
    """

    def reset(x: jax.Array, start: jax.Array | float) -> jax.Array:
        x = jnp.asarray(x)
        if x.shape[:1] != starts.shape:
            raise ValueError(
                f"reset_at_starts: an array of the state has shape {list(x.shape)}, and starts {list(starts.shape)}. "
                "The first dimension of the state is the batch."
            )
        begins = jnp.reshape(starts, (-1,) + (1,) * (x.ndim - 1))
        return jnp.where(begins, jnp.asarray(start, x.dtype), x)

    if jax.tree.structure(initial) == jax.tree.structure(0.0):
        return jax.tree.map(lambda x: reset(x, initial), state)
    return jax.tree.map(reset, state, initial)
