"""Multi-scale deformable attention (Deformable DETR, Zhu et al. 2021, arXiv:2010.04159).

A query reads a few points of each feature map, at places and with weights that it chooses itself.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from engine.base.errors import TaskError
from engine.layers import Dense
from engine.perception.bilinear import grid_sample


def deformable_attention(levels: Sequence[jax.Array], points: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weighted values of feature maps at points, `[batch, queries, heads * width]`.

    Args:
        levels: feature maps `[batch, rows, columns, heads, width]`, of any number of rows and columns.
        points: `[batch, queries, heads, levels, points, 2]`: x and y, 0 to 1 over a map. Outside of it, values are 0.
        weights: `[batch, queries, heads, levels, points]`, which add up to 1 over levels and points in the paper.

    Raises:
        TaskError: another number of levels in `points` or `weights`.
    """
    if not len(levels) == points.shape[3] == weights.shape[3]:
        raise TaskError(
            f"deformable_attention: found {len(levels)} levels, and {points.shape[3]} in the points {points.shape} and "
            f"{weights.shape[3]} in the weights {weights.shape}. All three must be equal."
        )
    sample = jax.vmap(grid_sample, (3, 2), 2)  # over heads
    total = jnp.zeros((), jnp.float32)
    for number, level in enumerate(levels):
        values = sample(level, 2 * points[:, :, :, number] - 1)  # [batch, queries, heads, points, width]
        total = total + (values * weights[:, :, :, number, :, None]).astype(jnp.float32).sum(3)
    return total.astype(levels[0].dtype).reshape(*points.shape[:2], -1)


class DeformableAttention(nnx.Module):
    """Deformable attention with its linear layers.

    At first, the points of head k lie in direction k around the reference point, and all weights are equal.

    Args:
        features: width of queries and maps, divisible by `heads`.
        heads: number of heads.
        levels: number of feature maps.
        points: number of points that a head reads in each map.
        rngs: random keys for the initial values.

    Raises:
        TaskError: `features` is not divisible by `heads`.
    """

    def __init__(self, features: int, *, heads: int = 8, levels: int = 4, points: int = 4, rngs: nnx.Rngs):
        if features % heads:
            raise TaskError(f"DeformableAttention: features = {features} must be divisible by heads = {heads}.")
        self.shape = (heads, levels, points)
        size = math.prod(self.shape)
        self.value = Dense(features, features, axes=("embed", "heads"), bias=True, rngs=rngs)
        self.offset = Dense(features, 2 * size, axes=("embed", None), bias=True, quantized=False, rngs=rngs)
        self.weight = Dense(features, size, axes=("embed", None), bias=True, quantized=False, rngs=rngs)
        self.out = Dense(features, features, axes=("heads", "embed"), bias=True, rngs=rngs)
        for layer in (self.offset, self.weight):
            layer.kernel.set_value(jnp.zeros_like(layer.kernel.get_value()))
        assert self.offset.bias is not None
        self.offset.bias.set_value(self._first_offsets().reshape(-1))

    def __call__(self, queries: jax.Array, references: jax.Array, levels: Sequence[jax.Array]) -> jax.Array:
        """Returns `[batch, queries, features]`.

        Args:
            queries: `[batch, queries, features]`.
            references: `[batch, queries, 2]`: x and y, 0 to 1 over a map.
            levels: feature maps `[batch, rows, columns, features]`.
        """
        heads, count, _ = self.shape
        if len(levels) != count:
            raise TaskError(f"DeformableAttention: found {len(levels)} levels, but levels = {count}.")
        values = [self.value(level).reshape(*level.shape[:3], heads, -1) for level in levels]
        lead = queries.shape[:2]
        offsets = self.offset(queries).reshape(*lead, *self.shape, 2).astype(jnp.float32)
        weights = jax.nn.softmax(self.weight(queries).astype(jnp.float32).reshape(*lead, heads, -1))
        sizes = jnp.array([level.shape[2:0:-1] for level in levels], jnp.float32)  # columns, rows
        places = references[:, :, None, None, None].astype(jnp.float32) + offsets / sizes[:, None]
        found = deformable_attention(values, places, weights.reshape(*lead, *self.shape))
        return self.out(found)

    def _first_offsets(self) -> jax.Array:
        """Returns offsets in cells, `[heads, levels, points, 2]`: point n is n + 1 cells away, on a square."""
        heads, levels, points = self.shape
        angle = jnp.arange(heads) * (2 * math.pi / heads)
        direction = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
        direction = direction / jnp.abs(direction).max(-1, keepdims=True)
        steps = direction[:, None, None] * jnp.arange(1, points + 1)[:, None]
        return jnp.broadcast_to(steps, (heads, levels, points, 2))
