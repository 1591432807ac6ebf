"""Barriers and memory layouts: what XLA computes once, in which order, and how it lies in memory.

Every function returns its arguments unchanged.
"""

import jax
from jax.experimental.layout import Layout, with_layout_constraint

from engine.parallel import layout
from engine.types import PyTree


def compute_once(tree: PyTree) -> PyTree:
    """Returns `tree`, which XLA computes once instead of again in each operation that uses it."""
    return jax.lax.optimization_barrier(tree)


def compute_once_on_cpu(x: jax.Array) -> jax.Array:
    """Returns `x`, which XLA:CPU computes once.

    Masked scores of attention take half the time with it: XLA:CPU would mask them once for the maximum and again for
    the exponential. Other platforms fuse both as they like.
    """
    return jax.lax.optimization_barrier(x) if layout.current().platform == "cpu" else x


def one_after_another(*values: PyTree) -> tuple[PyTree, ...]:
    """Returns the inputs of the next block and the results of earlier blocks, none of which exists before all do.

    Without it XLA works on all blocks of queries at once and holds the scores of all: 3 to 5 times the memory for 2048
    and 4096 positions, and 1.3 times the time. In a program of both passes, as of layers that are unrolled, it would
    hold the scores from the forward to the backward pass as well.
    """
    return jax.lax.optimization_barrier(values)


def row_major(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the arrays, on a CPU with the memory layout that their shape says.

    Without it XLA:CPU transposes each slice of keys by itself, out of the projection `[batch, time, heads, head_dim]`:
    two to three times the time of one transposition and slices of its result.
    """
    if layout.current().platform != "cpu":
        return arrays
    placed = tuple(with_layout_constraint(x, Layout(tuple(range(x.ndim)))) for x in arrays)
    return jax.lax.optimization_barrier(placed)
