"""Heatmaps of centres: Gaussian targets, the focal loss, and the peaks of a prediction.

As in CornerNet (Law and Deng 2018, arXiv:1808.01244), CenterNet (Zhou et al. 2019, arXiv:1904.07850) and CenterPoint
(Yin et al. 2021, arXiv:2006.11275).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from engine.base.errors import TaskError
from engine.perception.per_device import per_device


class Peaks(NamedTuple):
    """The highest peaks, by descending score: `scores`, and int32 `rows`, `columns` and `labels`, `[batch, count]`."""

    scores: jax.Array
    rows: jax.Array
    columns: jax.Array
    labels: jax.Array


def gaussian_radius(sizes: jax.Array, overlap: float = 0.7, least: int = 0) -> jax.Array:
    """Returns the radius of the target of each box in whole cells, int32 `[...]`.

    The rule of the published code of CenterNet and CenterPoint. Its radius is larger than that of the derivation in
    CornerNet, at which a moved box still has the overlap: the code divides each root by 2, and not by twice the leading
    coefficient.

    Args:
        sizes: length and width of boxes in cells, `[..., 2]`.
        overlap: intersection over union, in 0 to 1. CenterPoint uses 0.1.
        least: smallest radius; CenterPoint uses 2.
    """
    total, area = sizes.sum(-1), sizes.prod(-1)
    roots = [
        (b + jnp.sqrt(b**2 - 4 * a * c)) / 2
        for a, b, c in (
            (1, total, area * (1 - overlap) / (1 + overlap)),
            (4, 2 * total, (1 - overlap) * area),
            (4 * overlap, -2 * overlap * total, (overlap - 1) * area),
        )
    ]
    return jnp.maximum(jnp.minimum(jnp.minimum(*roots[:2]), roots[2]).astype(jnp.int32), least)


def heatmap_targets(
    centres: jax.Array,
    radius: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    *,
    shape: tuple[int, int],
    classes: int,
) -> jax.Array:
    """Returns targets, float32 `[batch, rows, columns, classes]`: 1 in the cells of centres, Gaussians around, else 0.

    Where Gaussians of a class overlap, the larger value counts. A centre outside of the map has no target.

    Args:
        centres: column and row of the cells of objects, whole numbers `[batch, objects, 2]`.
        radius: whole numbers of cells `[batch, objects]`; the Gaussian ends there, and its standard deviation is a
            sixth of the diameter 2 radius + 1.
        labels: classes `[batch, objects]`, 0 to `classes` - 1.
        valid: bool `[batch, objects]`: False for padding.
        shape: rows and columns of the map.
        classes: number of classes.
    """
    rows, columns = shape
    inside = ((centres >= 0) & (centres < jnp.array([columns, rows]))).all(-1)
    wide = (2 * radius.astype(jnp.float32) + 1) / 6
    along, across = (
        _gaussian(jnp.arange(size) - centres[..., k, None], radius[..., None], wide[..., None])
        for k, size in ((0, columns), (1, rows))
    )
    of = jax.nn.one_hot(labels, classes) * (valid & inside)[..., None]  # [batch, objects, classes]
    # XLA computes the products within the maximum: no array has a map for each object. Columns come last meanwhile,
    # since few classes would not fill the lanes of a processor.
    across = of[..., None] * across[:, :, None]  # [batch, objects, classes, rows]
    maps = (across[..., None] * along[:, :, None, None]).max(1, initial=0)
    return jnp.moveaxis(maps, 1, -1)


def _gaussian(distance: jax.Array, radius: jax.Array, wide: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(distance) <= radius, jnp.exp(-(distance.astype(jnp.float32) ** 2) / (2 * wide**2)), 0)


def focal_loss(logits: jax.Array, target: jax.Array, *, alpha: float = 2.0, beta: float = 4.0) -> jax.Array:
    """Returns the penalty-reduced focal loss of each cell, `[...]` in the dtype of the logits; 0 or more.

    CornerNet, equation 1. Its sum is divided by the number of objects there.

    Args:
        logits: scores before the sigmoid, `[...]`.
        target: `heatmap_targets`, `[...]`; only a value of exactly 1 is a centre.
        alpha: exponent that lowers the loss of cells that are nearly right.
        beta: exponent that lowers the loss of cells around a centre.
    """
    p, log_p, log_q = jax.nn.sigmoid(logits), jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    centre, other = -((1 - p) ** alpha) * log_p, -((1 - target) ** beta) * p**alpha * log_q
    return jnp.where(target == 1, centre, other)


def heatmap_peaks(heat: jax.Array, count: int, *, window: int = 3) -> Peaks:
    """Returns the highest cells of which no cell of the same class in a window is higher.

    An unused place has score -inf. Neighbouring cells of equal height are all peaks.

    Args:
        heat: scores or logits `[batch, rows, columns, classes]`.
        count: number of peaks, at most the number of values of an example.
        window: odd number of cells along each side of the window.

    Raises:
        TaskError: more peaks than values.
    """
    values = math.prod(heat.shape[1:])
    if count > values:
        raise TaskError(
            f"heatmap_peaks: count = {count}, but an example has {values} values. Allowed are 0 to {values}."
        )
    shape = (1, window, window, 1)
    highest = jax.lax.reduce_window(heat, -jnp.inf, jax.lax.max, shape, (1, 1, 1, 1), "SAME")
    peaks = jnp.where(heat == highest, heat, -jnp.inf).reshape(heat.shape[0], -1)
    # One program for all devices would gather the maps of the whole batch for top_k.
    index = per_device(lambda peaks: jax.lax.top_k(peaks, count)[1].astype(jnp.int32), peaks)
    cell, labels = jnp.divmod(index, heat.shape[3])
    return Peaks(jnp.take_along_axis(peaks, index, 1), *jnp.divmod(cell, heat.shape[2]), labels)
