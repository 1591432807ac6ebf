"""The obvious ways to compute operations of `engine.perception` in JAX, which `benchmarks.perception` measures too.

Where JAX has no obvious way, a loop in numpy computes the value alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy.optimize import linear_sum_assignment


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


def sorted_mean(x: Any, index: Any, cells: int) -> Any:
    """`scatter_mean`: sums of values and of ones, sorted by cell first."""
    both = sorted_sum(jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1), index, cells)
    return both[..., :-1] / jnp.maximum(both[..., -1:], 1)


def occupied(index: Any, cells: int, capacity: int) -> Any:
    """`occupied_cells`, in numpy."""
    rows = []
    for at in np.asarray(index):
        found = np.unique(at[at < cells])
        first = np.concatenate([found[:capacity], np.full(max(capacity - len(found), 0), cells)])
        slots = np.searchsorted(first, at)
        has = (at < cells) & (first[np.minimum(slots, capacity - 1)] == at)
        rows.append((first, np.where(has, slots, capacity), max(len(found) - capacity, 0)))
    return tuple(map(np.stack, zip(*rows, strict=True)))


def first_points(index: Any, cells: int, count: int) -> Any:
    """`first_points`, point by point."""
    places = np.zeros((len(index), cells, count), int)
    valid, lost = places > 0, np.zeros(len(index), int)
    for row, at in enumerate(np.asarray(index)):
        for point, cell in enumerate(at):
            if cell < cells:
                free = int(valid[row, cell].sum())
                if free < count:
                    places[row, cell, free], valid[row, cell, free] = point, True
                else:
                    lost[row] += 1
    return places, valid, lost


def nearest(a: Any, b: Any) -> Any:
    """`chamfer_distance`: the nearest point of each, then the distance to it."""
    total = 0
    for one, other in ((a, b), (b, a)):
        at = ((one[:, :, None] - other[:, None]) ** 2).sum(-1).argmin(2)
        total += ((one - jnp.take_along_axis(other, at[..., None], 1)) ** 2).sum(-1).mean(1)
    return total


def encoded(graph: Any, weights: Any, points: Any, valid: Any) -> Any:
    """`PolylineEncoder`: the maximum without padding, which is -inf."""
    model, x = nnx.merge(graph, weights), points
    for layer, norm in zip(model.layers, model.norms, strict=True):
        x = jax.nn.relu(norm(layer(x)))
        most = jnp.where(valid[..., None], x, -jnp.inf).max(-2, keepdims=True)
        x = jnp.concatenate([x, jnp.broadcast_to(most, x.shape)], -1)
    return jnp.where(valid[..., None], x, -jnp.inf).max(-2)


def polygon_iou(a: Any, b: Any) -> Any:
    """`rotated_iou`: from the area of the polygon."""
    both = polygon_area(a, b)
    return both / jnp.maximum(a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - both, 1e-12)


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


def soft(boxes: Any, scores: Any, count: int, sigma: float = 0.5, least: float = 1e-3) -> Any:
    """`soft_nms`: the scores of the results, result by result in numpy."""
    boxes, scores = np.asarray(boxes, np.float64), np.array(scores, np.float64)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    taken = np.zeros((len(boxes), count))
    for row in range(len(boxes)):
        for n in range(count):
            best = scores[row].argmax()
            if scores[row, best] <= least:
                break
            taken[row, n] = scores[row, best]
            low, high = (f(boxes[row], boxes[row, best]) for f in (np.maximum, np.minimum))
            both = np.maximum(high[:, 2:] - low[:, :2], 0).prod(-1)
            iou = both / (areas[row] + areas[row, best] - both)
            scores[row] *= np.exp(-(iou**2) / sigma)
            scores[row, best] = -np.inf
    return taken


def assigned(cost: Any) -> Any:
    """`match`: the algorithm of Optax for each example, in one program for all devices."""

    def one(cost: Any) -> Any:
        rows, columns = optax.assignment.hungarian_algorithm(cost)
        return jnp.zeros(cost.shape[1], jnp.int32).at[columns].set(rows.astype(jnp.int32))

    return jax.vmap(one)(cost)


def assigned_by_scipy(cost: Any) -> Any:
    """`match`: the algorithm of SciPy, example by example."""
    return np.stack([linear_sum_assignment(one.T)[1] for one in np.asarray(cost)])


def attended(levels: Any, points: Any, weights: Any) -> Any:
    """`deformable_attention`: `map_coordinates`, channel by channel."""
    total, heads = jnp.zeros(()), points.shape[2]
    for number, level in enumerate(levels):
        values = jax.vmap(sampled, (3, 2), 2)(level, 2 * points[:, :, :, number] - 1)
        total += (values * weights[:, :, :, number, :, None]).sum(3)
    return total.reshape(*points.shape[:2], heads * levels[0].shape[-1])


def focal(logits: Any, target: Any) -> Any:
    """`focal_loss`: from probabilities."""
    p = jnp.clip(jax.nn.sigmoid(logits), 1e-7, 1 - 1e-7)
    return jnp.where(target == 1, -((1 - p) ** 2) * jnp.log(p), -((1 - target) ** 4) * p**2 * jnp.log(1 - p))


def peaks(heat: Any, count: int) -> Any:
    """`heatmap_peaks`: the scores, in one program for all devices."""
    highest = jax.lax.reduce_window(heat, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    return jax.lax.top_k(jnp.where(heat == highest, heat, -jnp.inf).reshape(len(heat), -1), count)[0]


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


def convolved(features: Any, index: Any, kernel: Any, shape: tuple[int, ...], **how: Any) -> Any:
    """Returns the dense convolution of the whole grid, `[batch, cells, width]`."""
    empty = jnp.zeros((int(np.prod(shape)), features.shape[-1]), features.dtype)
    grid = jax.vmap(lambda index, x: empty.at[index].set(x, mode="drop"))(index, features)
    found = jax.lax.conv_general_dilated(
        grid.reshape(len(grid), *shape, -1), kernel, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), **how
    )
    return found.reshape(len(found), -1, found.shape[-1])


def at_sites(dense: Any, index: Any) -> Any:
    """Returns the values of a dense grid at sites; 0 at padding."""
    return jax.vmap(lambda x, at: x.at[at].get(mode="fill", fill_value=0))(dense, index)


def submanifold(features: Any, kernel: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """`submanifold_conv`: the dense convolution, read at the sites."""
    how = {"window_strides": (1, 1, 1), "padding": "SAME"}
    return at_sites(convolved(features, index, kernel, shape, **how), index)


def strided(features: Any, kernel: Any, index: Any, out: Any, shape: tuple[int, ...]) -> Any:
    """`strided_conv`: the dense convolution, read at the sites."""
    how = {"window_strides": (2, 2, 2), "padding": [(1, 1)] * 3}
    return at_sites(convolved(features, index, kernel, shape, **how), out)


def inverse(features: Any, kernel: Any, index: Any, like: Any, shape: tuple[int, ...], fine: tuple[int, ...]) -> Any:
    """`inverse_conv`: the transposed dense convolution, read at the sites."""
    more = [size - 1 - 2 * (old - 1) for old, size in zip(shape, fine, strict=True)]
    how = {"window_strides": (1, 1, 1), "padding": [(1, 1 + n) for n in more], "lhs_dilation": (2, 2, 2)}
    flipped = kernel[::-1, ::-1, ::-1]
    return at_sites(convolved(features, index, flipped, shape, **how), like)
