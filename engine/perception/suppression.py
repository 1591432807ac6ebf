"""Non-maximum suppression with a fixed number of results, by overlap, by distance, or softly.

The greedy rule keeps a box unless a kept box with a higher score covers it. Here all boxes apply the rule at once,
again and again, until nothing changes. Box n is right after n rounds, and most scenes need few rounds.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from engine.base.errors import TaskError
from engine.perception.per_device import per_device
from engine.perception.rectangles import box_iou, rotated_iou


class Kept(NamedTuple):
    """The boxes that are kept, by descending score.

    `indices` is int32 `[batch, count]`, `scores` `[batch, count]`, and `valid` bool `[batch, count]`; a place that is
    left over has index 0 and score 0. `overflow` is int32 `[batch]`: further boxes that the rule keeps, which are not
    among the results.
    """

    indices: jax.Array
    scores: jax.Array
    valid: jax.Array
    overflow: jax.Array


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    count: int,
    *,
    threshold: float,
    labels: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> Kept:
    """Keeps boxes whose intersection over union with each kept box of a higher score is at most `threshold`.

    Equal to torchvision's `nms` and `batched_nms`. All pairs are compared: choose the best boxes with `jax.lax.top_k`
    before it if there are many thousands.

    Args:
        boxes: `[batch, boxes, 4]` as in `box_iou`, or `[batch, boxes, 5]` as in `rotated_iou`.
        scores: `[batch, boxes]`. A box whose score is NaN is left out.
        count: number of results.
        threshold: largest intersection over union of two kept boxes, in 0 to 1. At 1 all boxes are kept, also equal
            ones; at 0 all boxes that overlap one with a higher score are left out.
        labels: whole numbers `[batch, boxes]`: boxes of different labels do not suppress each other.
        valid: bool `[batch, boxes]`: False for boxes that are left out, such as those with a low score.

    Raises:
        TaskError: boxes of another number of dimensions.
    """
    iou = _overlap(boxes)
    return _greedy(boxes, scores, count, lambda a, b: iou(a, b) > threshold, labels, valid)


def circle_nms(
    centres: jax.Array,
    scores: jax.Array,
    count: int,
    *,
    radius: float | jax.Array,
    labels: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> Kept:
    """Keeps boxes whose centre is farther than `radius` from that of each kept box of a higher score.

    The rule of CenterPoint (Yin et al. 2021, arXiv:2006.11275). Further arguments are as in `nms`.

    Args:
        centres: `[batch, boxes, 2]` in metres.
        radius: metres, or those of each box, `[batch, boxes]`, which then count for the box that is suppressed.
    """
    centres = centres.astype(jnp.promote_types(centres.dtype, jnp.float32))  # also cells, which are whole numbers
    reach = jnp.broadcast_to(jnp.asarray(radius, centres.dtype), scores.shape)
    placed = jnp.concatenate([centres, reach[..., None]], -1)

    def covers(a: jax.Array, b: jax.Array) -> jax.Array:
        return ((a[..., :2] - b[..., :2]) ** 2).sum(-1) <= b[..., 2] ** 2

    return _greedy(placed, scores, count, covers, labels, valid)


def soft_nms(
    boxes: jax.Array,
    scores: jax.Array,
    count: int,
    *,
    sigma: float = 0.5,
    least: float = 1e-3,
    labels: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> Kept:
    """Takes the boxes by score; each one lowers the scores of the rest by the factor exp(-iou² / sigma).

    Soft-NMS (Bodla et al. 2017, arXiv:1704.04503). The results have the lowered scores, which are differentiable, in
    the dtype of `scores`. `overflow` counts the boxes whose score is above `least` after the last result: more results
    could lower some of them below it. Further arguments are as in `nms`.

    Args:
        sigma: above 0; larger values lower the scores less.
        least: boxes whose lowered score is not above it are left out.
    """
    iou, labels, valid = _overlap(boxes), _labels(scores, labels), _valid(scores, valid)
    if not scores.shape[1]:
        return _nothing(scores, count)

    def one(boxes: jax.Array, scores: jax.Array, labels: jax.Array, valid: jax.Array) -> tuple[jax.Array, ...]:
        def take(rest: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            best = rest.argmax().astype(jnp.int32)
            score = rest[best]
            same = labels == labels[best]
            stays = (rest > least) & (jnp.arange(len(rest)) != best)
            # Zeros instead of -inf: the gradient of the overlap would be 0 * inf.
            lowered = jnp.where(stays, rest, 0) * jnp.where(same, jnp.exp(-(iou(boxes[best], boxes) ** 2) / sigma), 1)
            rest = jnp.where(stays, lowered, -jnp.inf)
            return jnp.where(rest > least, rest, -jnp.inf), (best, score)

        start = jnp.where(valid & (scores > least), scores.astype(jnp.float32), -jnp.inf)
        rest, (indices, taken) = jax.lax.scan(take, start, length=count)
        found = taken > -jnp.inf
        taken = jnp.where(found, taken, 0).astype(scores.dtype)
        return jnp.where(found, indices, 0), taken, found, (rest > least).sum(dtype=jnp.int32)

    return Kept(*jax.vmap(one)(boxes, scores, labels, valid))


def _greedy(
    boxes: jax.Array,
    scores: jax.Array,
    count: int,
    covers: Callable[[jax.Array, jax.Array], jax.Array],
    labels: jax.Array | None,
    valid: jax.Array | None,
) -> Kept:
    if not scores.shape[1]:
        return _nothing(scores, count)

    def one(boxes: jax.Array, scores: jax.Array, labels: jax.Array, valid: jax.Array) -> tuple[jax.Array, ...]:
        order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(jnp.int32)
        boxes, labels, valid = boxes[order], labels[order], valid[order]
        better = jnp.arange(len(order))[:, None] < jnp.arange(len(order))
        covered = covers(boxes[:, None], boxes) & (labels[:, None] == labels) & better & valid[:, None]
        kept = _settled(covered) & valid
        rank = jnp.where(kept, jnp.cumsum(kept) - 1, count)
        indices = jnp.full(count, -1, jnp.int32).at[rank].set(order, mode="drop")
        return indices, jnp.maximum(kept.sum(dtype=jnp.int32) - count, 0)

    indices, lost = per_device(jax.vmap(one), boxes, scores, _labels(scores, labels), _valid(scores, valid))
    found = indices >= 0
    indices = jnp.maximum(indices, 0)
    return Kept(indices, jnp.where(found, jnp.take_along_axis(scores, indices, 1), 0), found, lost)


def _nothing(scores: jax.Array, count: int) -> Kept:
    """Returns the result of no boxes."""
    none = jnp.zeros((scores.shape[0], count), jnp.int32)
    return Kept(none, none.astype(scores.dtype), none > 0, none.sum(1, dtype=jnp.int32))


def _settled(covered: jax.Array) -> jax.Array:
    """Returns which boxes no kept box covers; `covered[i, j]` is whether i covers j, for i < j only."""

    def changes(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (state[0] != state[1]).any()

    def again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept = state[1]
        return kept, ~(covered & kept[:, None]).any(0)

    everything = jnp.ones(len(covered), bool)
    return jax.lax.while_loop(changes, again, (~everything, everything))[1]


def _overlap(boxes: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    if boxes.ndim != 3 or boxes.shape[-1] not in (4, 5):
        raise TaskError(
            f"nms: found boxes of shape {boxes.shape}. Allowed are [batch, boxes, 4] for axis-aligned boxes and "
            "[batch, boxes, 5] for rotated ones."
        )
    return box_iou if boxes.shape[-1] == 4 else rotated_iou


def _labels(scores: jax.Array, labels: jax.Array | None) -> jax.Array:
    return jnp.zeros(scores.shape, jnp.int32) if labels is None else labels


def _valid(scores: jax.Array, valid: jax.Array | None) -> jax.Array:
    return ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)
