"""Barriers and memory layouts: they control what XLA computes once, in which order, and with which memory layout.

Every function returns its arguments unchanged.
"""

import jax
from jax.experimental.layout import Layout, with_layout_constraint

from engine.base.types import PyTree
from engine.parallel import layout


def compute_once(tree: PyTree) -> PyTree:
    """Returns `tree`, which XLA then computes once instead of again in each operation that uses it."""
    return jax.lax.optimization_barrier(tree)


def compute_once_on_cpu(x: jax.Array) -> jax.Array:
    """Returns `x`, which XLA:CPU then computes once.

    It halves the time of masked attention scores, which XLA:CPU would otherwise mask once for the maximum and again for
    the exponential. On other platforms XLA fuses both.
    """
    return jax.lax.optimization_barrier(x) if layout.current().platform == "cpu" else x


def one_after_another(*values: PyTree) -> tuple[PyTree, ...]:
    """Returns the inputs of the next block and the results of earlier blocks, available only once all are computed.

    Without it XLA computes all blocks of queries concurrently and holds the scores of all: 3 to 5 times the memory for
    2048 and 4096 positions, and 1.3 times the time. In a program of both passes, such as unrolled layers, it would also
    hold the scores from the forward to the backward pass.
    """
    return jax.lax.optimization_barrier(values)


def features_minor(x: jax.Array) -> jax.Array:
    """Returns `x`, on a TPU in row-major memory layout, in which the backward pass reads it.

    XLA:TPU lays out the activations of a forward pass with the positions innermost. A loop over layers keeps them so,
    and the backward pass copies each into the other layout: 10 of the 375 M cycles of a decoder on a v5e.
    """
    if layout.current().platform != "tpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def row_major(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the arrays, on a CPU in row-major memory layout.

    Without it XLA:CPU transposes each slice of keys separately, out of the projection `[batch, time, heads, head_dim]`.
    That takes two to three times as long as one transposition and slices of its result.
    """
    if layout.current().platform != "cpu":
        return arrays
    placed = tuple(with_layout_constraint(x, Layout(tuple(range(x.ndim)))) for x in arrays)
    return jax.lax.optimization_barrier(placed)
