"""The obvious ways to compute operations of `engine.perception` in JAX, which `benchmarks.perception` measures too."""

from typing import Any

import jax
import jax.numpy as jnp


def sampled(x: Any, grid: Any) -> Any:
    """`grid_sample`: `map_coordinates`, channel by channel."""
    rows, columns = x.shape[1:3]
    column, row = ((grid[..., k] + 1) * size / 2 - 0.5 for k, size in ((0, columns), (1, rows)))

    def one(x: Any, row: Any, column: Any) -> Any:
        channel = jax.vmap(lambda x: jax.scipy.ndimage.map_coordinates(x, [row, column], 1, mode="constant"), -1, -1)
        return channel(x)

    return jax.vmap(one)(x, row, column)


def largest(x: Any, index: Any, cells: int) -> Any:
    """`scatter_max`: the scatter of JAX with its derivative."""
    values = jax.vmap(lambda x, at: jnp.full((cells, x.shape[-1]), -jnp.inf).at[at].max(x, mode="drop"))(x, index)
    return jnp.where(values == -jnp.inf, 0, values)


def sorted_sum(x: Any, index: Any, cells: int) -> Any:
    """`scatter_sum`: sorted by cell first."""

    def one(x: Any, at: Any) -> Any:
        order = jnp.argsort(at)
        return jax.ops.segment_sum(x[order], at[order], cells, indices_are_sorted=True)

    return jax.vmap(one)(x, index)


def polygon_area(a: Any, b: Any) -> Any:
    """`rotated_intersection`: crossings of sides and corners within the other one, sorted by angle."""

    def corners(box: Any) -> Any:
        sides = jnp.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2 * box[..., None, 2:4]
        cos, sin = jnp.cos(box[..., 4:]), jnp.sin(box[..., 4:])
        return box[..., None, :2] + jnp.stack(
            [cos * sides[..., 0] - sin * sides[..., 1], sin * sides[..., 0] + cos * sides[..., 1]], -1
        )

    def within(points: Any, box: Any) -> Any:
        moved = points - box[..., None, :2]
        cos, sin = jnp.cos(box[..., 4:]), jnp.sin(box[..., 4:])
        local = [cos * moved[..., 0] + sin * moved[..., 1], cos * moved[..., 1] - sin * moved[..., 0]]
        return (jnp.abs(local[0]) <= box[..., 2:3] / 2 + 1e-5) & (jnp.abs(local[1]) <= box[..., 3:4] / 2 + 1e-5)

    def cross(u: Any, v: Any) -> Any:
        return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]

    a, b = jnp.broadcast_arrays(a, b)
    p, q = corners(a), corners(b)
    u, v = jnp.roll(p, -1, -2) - p, jnp.roll(q, -1, -2) - q
    apart = q[..., None, :, :] - p[..., :, None, :]
    bend = cross(u[..., :, None, :], v[..., None, :, :])
    safe = jnp.where(jnp.abs(bend) < 1e-9, 1, bend)
    s, t = cross(apart, v[..., None, :, :]) / safe, cross(apart, u[..., :, None, :]) / safe
    meets = (jnp.abs(bend) > 1e-9) & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
    met = p[..., :, None, :] + s[..., None] * u[..., :, None, :]
    points = jnp.concatenate([p, q, met.reshape(*met.shape[:-3], 16, 2)], -2)
    used = jnp.concatenate([within(p, b), within(q, a), meets.reshape(*meets.shape[:-2], 16)], -1)
    middle = (points * used[..., None]).sum(-2, keepdims=True) / jnp.maximum(used.sum(-1), 1)[..., None, None]
    moved = jnp.where(used[..., None], points - middle, 1.0)
    angle = jnp.where(used, jnp.arctan2(moved[..., 1], moved[..., 0]), jnp.inf)
    order = jnp.argsort(angle, -1)
    ordered = jnp.take_along_axis(moved, order[..., None], -2)
    present = jnp.take_along_axis(used, order, -1)
    ordered = jnp.where(present[..., None], ordered, ordered[..., :1, :])  # the first point again closes the polygon
    return jnp.where(used.sum(-1) > 2, cross(ordered, jnp.roll(ordered, -1, -2)).sum(-1) / 2, 0)


def greedy(covers: Any) -> Any:
    """The rule of `nms`, box by box: which boxes are kept, for boxes that are sorted by score."""

    def one(covers: Any) -> Any:
        def step(n: Any, kept: Any) -> Any:
            return kept.at[n].set(~(kept & covers[:, n] & (jnp.arange(len(kept)) < n)).any())

        return jax.lax.fori_loop(0, len(covers), step, jnp.zeros(len(covers), bool))

    return jax.vmap(one)(covers)


def drawn(centres: Any, radius: Any, labels: Any, valid: Any, shape: tuple[int, int], classes: int) -> Any:
    """`heatmap_targets`: object by object."""
    rows, columns = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])

    def one(centres: Any, radius: Any, labels: Any, valid: Any) -> Any:
        def add(heat: Any, item: Any) -> Any:
            (x, y), r, label, present = item
            value = jnp.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * ((2 * r + 1) / 6) ** 2))
            value = jnp.where(present & (jnp.abs(columns - x) <= r) & (jnp.abs(rows - y) <= r), value, 0)
            return heat.at[:, :, label].max(value), None

        return jax.lax.scan(add, jnp.zeros((*shape, classes)), (centres, radius, labels, valid))[0]

    return jax.vmap(one)(centres, radius, labels, valid)


def lifted(features: Any, depth: Any, index: Any, cells: int) -> Any:
    """`lift_splat`: the whole cloud, and one sum."""
    cloud = (features[:, :, None] * depth[..., None]).reshape(len(depth), -1, features.shape[-1])
    return jax.vmap(lambda x, at: jax.ops.segment_sum(x, at, cells))(cloud, index.reshape(len(index), -1))


def convolved(x: Any, kernel: Any) -> Any:
    """`submanifold_conv`: the dense convolution of the whole grid."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))
