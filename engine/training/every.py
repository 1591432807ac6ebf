"""An optax transformation that updates its parameters only in each n-th step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine.base.types import PyTree


class EveryState(NamedTuple):
    """State of `every`."""

    steps: jax.Array
    """int32 scalar: number of calls."""
    inner: PyTree
    """State of the wrapped transformation."""


def every(period: int, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns a transformation that calls `tx` in steps n, 2 n, ... and otherwise changes neither parameters nor state.

    Unlike `optax.MultiSteps`, it ignores the gradients of the steps in between.
    """
    if period == 1:
        return tx
    inner = optax.with_extra_args_support(tx)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **known: jax.Array) -> tuple[PyTree, PyTree]:
        steps = jnp.asarray(optax.safe_increment(state.steps))
        # A branch, so that the steps in between do not compute the update.
        updates, new = jax.lax.cond(
            steps % period == 0,
            lambda: inner.update(updates, state.inner, params, **known),
            lambda: (jax.tree.map(jnp.zeros_like, updates), state.inner),
        )
        return updates, EveryState(steps, new)

    return optax.GradientTransformationExtraArgs(
        lambda params: EveryState(jnp.zeros((), jnp.int32), tx.init(params)), update
    )
