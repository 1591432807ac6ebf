"""Lift-splat: features of pixels at each depth, summed in the cells of a grid (Philion and Fidler 2020).

The paper is arXiv:2008.05711. The cloud of features at all depths is never in memory. XLA computes it within the
scatter on a GPU; elsewhere, one depth after the other is added to the grid.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from engine.parallel import layout


def frustum_points(intrinsics: jax.Array, poses: jax.Array, pixels: jax.Array, depths: jax.Array) -> jax.Array:
    """Returns the points of pixels at each depth, `[batch, cameras, ..., depths, 3]` in metres.

    Args:
        intrinsics: float32 `[batch, cameras, 3, 3]`, pixels per unit of slope. They may contain the scale and the crop
            of an image.
        poses: cameras in the frame of the grid, float32 `[batch, cameras, 4, 4]`; a camera looks along its z axis.
        pixels: column and row, `[..., 2]`, such as those of the middle of each patch.
        depths: metres along the z axis of a camera, `[depths]`.
    """
    homogeneous = jnp.concatenate([pixels, jnp.ones_like(pixels[..., :1])], -1).reshape(-1, 3)
    turned = jnp.matmul(poses[..., :3, :3], _inverse(intrinsics), precision="highest")
    rays = jnp.einsum("bcij,pj->bcpi", turned, homogeneous, precision="highest")
    points = poses[..., None, None, :3, 3] + rays[..., None, :] * depths[:, None]
    return points.reshape(*points.shape[:2], *pixels.shape[:-1], len(depths), 3)


def _inverse(x: jax.Array) -> jax.Array:
    """Returns the inverse of matrices `[..., 3, 3]` by cross products, which every runtime has, other than `lu`."""
    rows = [x[..., i, :] for i in range(3)]
    columns = [jnp.cross(rows[(i + 1) % 3], rows[(i + 2) % 3]) for i in range(3)]
    return jnp.stack(columns, -1) / (rows[0] * columns[0]).sum(-1)[..., None, None]


def lift_splat(features: jax.Array, depth: jax.Array, index: jax.Array, cells: int) -> jax.Array:
    """Returns the sum of features times depth weights in each cell, `[batch, cells, width]` in float32.

    Args:
        features: `[batch, pixels, width]`, the pixels of all cameras.
        depth: weights `[batch, pixels, depths]`, such as probabilities.
        index: int32 `[batch, pixels, depths]`: cell of each point (`cell_indices`); those outside of 0 to `cells` - 1
            are dropped.
        cells: number of cells.
    """
    wide, weights = features.astype(jnp.float32), depth.astype(jnp.float32)
    index = jnp.where(index < 0, cells, index)

    if layout.current().portable:  # a program of few operations
        return sum_at_once(wide, weights, index, cells)
    at_once, by_depth = (functools.partial(way, cells=cells) for way in (sum_at_once, sum_by_depth))
    return jax.lax.platform_dependent(wide, weights, index, cuda=at_once, default=by_depth)


def sum_at_once(features: jax.Array, weights: jax.Array, index: jax.Array, cells: int) -> jax.Array:
    """Returns the result of `lift_splat` by one scatter; an index of `cells` drops a point."""
    # XLA:GPU otherwise transposes the cloud, which it then stores: for 2 x 4,224 pixels x 40 depths x 128 features, the
    # sums and their gradients move 946 MiB instead of 130.
    cloud = with_layout_constraint(features[:, :, None] * weights[..., None], Layout((0, 1, 2, 3)))

    def add(cloud: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.zeros((cells, cloud.shape[-1]), jnp.float32).at[index].add(cloud, mode="drop")

    return jax.vmap(add)(cloud, index)


def sum_by_depth(features: jax.Array, weights: jax.Array, index: jax.Array, cells: int) -> jax.Array:
    """Returns the result of `lift_splat` by a scatter for each depth; an index of `cells` drops a point."""

    def of_example(features: jax.Array, weights: jax.Array, index: jax.Array) -> jax.Array:
        def add(grid: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            weight, cell = at
            return grid.at[cell].add(features * weight[:, None], mode="drop"), None

        grid = jnp.zeros((cells, features.shape[-1]), jnp.float32)
        return jax.lax.scan(add, grid, (weights.T, index.T))[0]

    return jax.vmap(of_example)(features, weights, index)
