"""Metrics of the motion prediction challenge of the Waymo Open Motion Dataset.

The definitions are those of Ettinger et al. 2021, arXiv:2104.10133, section 4, and of the published source of Waymo's
evaluation. Distances are computed in float32.
"""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from engine.base.errors import TaskError
from engine.driving.ranked import mean_of_known
from engine.metrics.metric import Metric, collected
from engine.metrics.values import real_array

STEPS, EVERY = 16, 5  # predicted steps, and steps of the truth between two of them
HORIZONS = {"3s": (5, 1.0, 2.0), "5s": (9, 1.8, 3.6), "8s": (15, 3.0, 6.0)}
"""Name -> the step at which a prediction is measured, and how far off it may be across and along the true heading."""
TYPES = ("vehicle", "pedestrian", "cyclist")
BUCKETS = ("stationary", "straight", "straight_left", "straight_right", "left_u_turn", "left_turn", "right_turn")
NUMBERS = ("mean_ap", "soft_mean_ap", "min_ade", "min_fde", "miss_rate", "overlap_rate")


class WaymoMotion(Metric):
    """Metrics of Waymo's motion prediction challenge, by type of object and by horizon: 3, 5 and 8 s.

    - mean_ap: mean average precision over the kinds of motion, such as left turns. A prediction is right if it is
      near the true position at the horizon: by 1 to 3 m across the true heading and 2 to 6 m along it, and by half of
      that for objects slower than 1.4 m/s, rising to the whole at 11 m/s. Only the most confident right prediction of
      an object counts as right. `soft_mean_ap` leaves out the others instead of counting them as wrong.
    - min_ade, min_fde: the smallest mean distance up to the horizon, and the smallest distance at it.
    - miss_rate: the share of objects without a right prediction.
    - overlap_rate: the share of objects whose most confident prediction overlaps the box of another object.

    The results without a type are means over types, and those without a horizon means over horizons.
    """

    ade: jax.Array = collected(fill=np.nan)  # [batch, objects, horizons], as the next three
    fde: jax.Array = collected(fill=np.nan)
    missed: jax.Array = collected(fill=np.nan)
    overlaps: jax.Array = collected(fill=np.nan)
    right: jax.Array = collected(fill=-1)  # [batch, objects, horizons, modes]: 1 or 0, -1 if there is no truth
    confidences: jax.Array = collected()  # [batch, objects, modes]
    types: jax.Array = collected()  # [batch, objects]: 1 + index in TYPES; others are left out
    buckets: jax.Array = collected(fill=-1)  # [batch, objects]: index in BUCKETS, -1 for none

    @classmethod
    def of(
        cls,
        predicted: ArrayLike,
        confidences: ArrayLike,
        states: ArrayLike,
        types: ArrayLike,
        *,
        where: ArrayLike | None = None,
        others: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    ) -> Self:
        """Returns the measurements of each example.

        Args:
            predicted: predicted positions at 2 Hz, 0.5 to 8 s from now, `[batch, objects, modes, 16, 2]`, in metres.
                The challenge takes 6 modes.
            confidences: of the modes, `[batch, objects, modes]`, comparable over examples.
            states: true states at 10 Hz, 0 to 8 s from now, `[batch, objects, 81, 7]`: x, y of the centre, length,
                width, heading, velocity along x and y.
            types: of the objects, integers `[batch, objects]`: 1 vehicle, 2 pedestrian, 3 cyclist, else left out.
            where: states that are known, `[batch, objects, 81]`; None for all.
            others: boxes of all objects at 2 Hz, `[batch, boxes, 16, 5]`: x, y, length, width, heading; which of them
                are known, `[batch, boxes, 16]`; and the index of each predicted object among them, integers
                `[batch, objects]`, -1 for none. Only objects that are known now belong there. None: there is no overlap
                rate.

        Raises:
            TaskError: shapes do not fit together.
        """
        predicted, confidences, states, types = (
            real_array(x, f"WaymoMotion.of needs {name}")
            for x, name in zip(
                (predicted, confidences, states, types), ("forecasts", "confidences", "states", "types"), strict=True
            )
        )
        _check_shapes(predicted, confidences, states, types)
        valid = real_array(1 if where is None else where, "WaymoMotion.of needs a mask") > 0
        valid = jnp.broadcast_to(valid, states.shape[:-1])
        truth, seen = states[..., EVERY::EVERY, :], valid[..., EVERY::EVERY]  # at 2 Hz
        error = predicted - truth[:, :, None, :, :2]
        apart = jnp.where(seen[:, :, None], jnp.linalg.norm(error, axis=-1), 0)  # [batch, objects, modes, 16]
        right = _right(error, truth[..., 4], states[..., 0, 5:])  # [batch, objects, horizons, modes]
        found = [[], [], []]
        for number, (step, _, _) in enumerate(HORIZONS.values()):
            count, at = seen[..., : step + 1].sum(-1), seen[..., step]
            ade = apart[..., : step + 1].sum(-1).min(-1) / jnp.maximum(count, 1)
            values = (ade, apart[..., step].min(-1), 1.0 - right[:, :, number].any(-1))
            for column, value, known in zip(found, values, (count > 0, at, at), strict=True):
                column.append(jnp.where(known, value, jnp.nan))
        ade, fde, missed = (jnp.stack(column, -1) for column in found)
        at = jnp.stack([seen[..., step] for step, _, _ in HORIZONS.values()], -1)
        return cls(
            ade,
            fde,
            missed,
            jnp.full(ade.shape, jnp.nan) if others is None else _overlaps(predicted, confidences, truth, others),
            jnp.where(at[..., None], right, -1).astype(jnp.int32),
            confidences,
            types.astype(jnp.int32),
            motion_bucket(states, valid),
        )

    def compute(self) -> dict[str, Any]:
        """Returns `NUMBERS`, and the same by type and by horizon, such as "vehicle/8s/mean_ap"."""
        each = {name: self._of_type(number) for number, name in enumerate(TYPES, 1)}
        by_type = {name: {**_means(list(rows.values())), **rows} for name, rows in each.items()}
        by_horizon = {name: _means([rows[name] for rows in each.values()]) for name in HORIZONS}
        return {**_means(list(by_horizon.values())), **by_horizon, **by_type}

    def _of_type(self, number: int) -> dict[str, dict[str, float]]:
        chosen = np.asarray(self.types) == number
        columns = [np.asarray(x)[chosen] for x in (self.ade, self.fde, self.missed, self.overlaps)]
        right, confidences = np.asarray(self.right)[chosen], np.asarray(self.confidences)[chosen]
        buckets, found = np.asarray(self.buckets)[chosen], {}
        for index, name in enumerate(HORIZONS):
            values = [_known_mean(x[:, index]) for x in columns]
            precisions = [_mean_precision(confidences, right[:, index], buckets, soft) for soft in (False, True)]
            found[name] = dict(zip(NUMBERS, (*precisions, *values), strict=True))
        return found


def motion_bucket(states: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the kind of motion of tracks, an index into BUCKETS, or -1 if too little is known, int32 `[...]`.

    Args:
        states: from now on, `[..., time, 7]`, as for `WaymoMotion.of`.
        valid: bool `[..., time]`.
    """
    time = jnp.arange(valid.shape[-1])
    last = jnp.where(valid, time, 0).max(-1)  # 0: none after now
    end = jnp.take_along_axis(states, last[..., None, None], axis=-2)[..., 0, :]
    start = states[..., 0, :]
    c, s = jnp.cos(start[..., 4]), jnp.sin(start[..., 4])
    x, y = end[..., 0] - start[..., 0], end[..., 1] - start[..., 1]
    along, across = c * x + s * y, c * y - s * x
    turned = (end[..., 4] - start[..., 4] + jnp.pi) % (2 * jnp.pi) - jnp.pi
    speed = jnp.maximum(*(jnp.hypot(one[..., 5], one[..., 6]) for one in (start, end)))
    left = across >= 0
    straight = jnp.where(jnp.abs(across) < 2.5, 1, jnp.where(left, 2, 3))
    # As in the evaluation, a U-turn to the right is a right turn.
    turns = jnp.where(left, jnp.where(along < 0, 4, 5), 6)
    kind = jnp.where(jnp.abs(turned) < jnp.pi / 6, straight, turns)
    kind = jnp.where((speed < 2) & (jnp.hypot(x, y) < 3), 0, kind)
    return jnp.where(valid[..., 0] & (last > 0), kind, -1).astype(jnp.int32)


def _right(error: jax.Array, heading: jax.Array, velocity: jax.Array) -> jax.Array:
    """Returns whether each mode is near enough at each horizon, bool `[batch, objects, horizons, modes]`."""
    speed = jnp.hypot(velocity[..., 0], velocity[..., 1])
    scale = (0.5 + 0.5 * ((speed - 1.4) / (11 - 1.4)).clip(0, 1))[..., None]
    c, s = jnp.cos(heading)[:, :, None], jnp.sin(heading)[:, :, None]
    along = jnp.abs(c * error[..., 0] + s * error[..., 1])
    across = jnp.abs(c * error[..., 1] - s * error[..., 0])  # [batch, objects, modes, 16]
    near = [
        (across[..., step] / scale <= lateral) & (along[..., step] / scale <= longitudinal)
        for step, lateral, longitudinal in HORIZONS.values()
    ]
    return jnp.stack(near, 2)


def _overlaps(predicted: jax.Array, confidences: jax.Array, truth: jax.Array, others: Any) -> jax.Array:
    """Returns 1 where the most confident mode has overlapped another box by a horizon, `[batch, objects, horizons]`."""
    boxes, known, own = (real_array(x, "WaymoMotion.of needs boxes") for x in others)
    best = confidences.argmax(-1)[..., None, None, None]
    path = jnp.take_along_axis(predicted, best, axis=2)[:, :, 0]  # [batch, objects, 16, 2]
    steps = jnp.diff(path, axis=-2)
    angle = jnp.arctan2(steps[..., 1], steps[..., 0])
    before, after = (jnp.concatenate(x, -1) for x in ((angle[..., :1], angle), (angle, angle[..., -1:])))
    heading = jnp.arctan2(jnp.sin(before) + jnp.sin(after), jnp.cos(before) + jnp.cos(after))
    box = jnp.concatenate([path, truth[..., 2:4], heading[..., None]], -1)[:, :, None]  # [batch, objects, 1, 16, 5]
    other = jnp.arange(boxes.shape[1]) != own[..., None]  # [batch, objects, boxes]
    hit = _overlap(box, boxes[:, None]) & (known[:, None] > 0) & other[..., None]
    so_far = jnp.cumsum(hit.any(2), axis=-1) > 0  # [batch, objects, 16]
    return jnp.stack([so_far[..., step] for step, _, _ in HORIZONS.values()], -1).astype(jnp.float32)


def _overlap(one: jax.Array, other: jax.Array) -> jax.Array:
    """Returns whether rectangles `[..., 5]` overlap by more than an edge: no side of either one separates them."""
    away = other[..., :2] - one[..., :2]
    found = jnp.array(True)
    for first, second in ((one, other), (other, one)):
        turn = second[..., 4] - first[..., 4]
        c, s = jnp.cos(first[..., 4]), jnp.sin(first[..., 4])
        reach_c, reach_s = jnp.abs(jnp.cos(turn)), jnp.abs(jnp.sin(turn))
        along = jnp.abs(c * away[..., 0] + s * away[..., 1])
        across = jnp.abs(c * away[..., 1] - s * away[..., 0])
        found &= along < (first[..., 2] + reach_c * second[..., 2] + reach_s * second[..., 3]) / 2
        found &= across < (first[..., 3] + reach_s * second[..., 2] + reach_c * second[..., 3]) / 2
    area = jnp.minimum(one[..., 2] * one[..., 3], other[..., 2] * other[..., 3])
    return found & (area > 0)


def _mean_precision(confidences: np.ndarray, right: np.ndarray, buckets: np.ndarray, soft: bool) -> float:
    """Returns the mean average precision over the kinds of motion; NaN if there is none.

    Args:
        confidences: `[objects, modes]`.
        right: 1, 0 or -1 for no truth, `[objects, modes]`.
        buckets: `[objects]`.
        soft: leave out right predictions of an object other than the most confident one.
    """
    order = np.argsort(-confidences, axis=-1, kind="stable")
    confidences, right = (np.take_along_axis(x, order, axis=-1) for x in (confidences, right))
    again = (right > 0) & (np.cumsum(right > 0, axis=-1) > 1)
    known = (right >= 0) & ~(again & soft)
    right = (right > 0) & ~again
    found = []
    for bucket in range(len(BUCKETS)):
        chosen = buckets == bucket
        kept = known[chosen]
        if kept.any():
            found.append(_precision(confidences[chosen][kept], right[chosen][kept], int(kept.any(-1).sum())))
    return mean_of_known(np.array(found))


def _precision(confidences: np.ndarray, right: np.ndarray, objects: int) -> float:
    """Returns the area under the curve of the highest precision at each recall or above."""
    order = np.lexsort((right, -confidences))  # of equal confidences, the wrong ones first
    hits = np.cumsum(right[order])
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / objects
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * highest).sum())


def _known_mean(values: np.ndarray) -> float:
    return mean_of_known(values.astype(np.float64))


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {name: mean_of_known(np.array([row[name] for row in rows])) for name in NUMBERS}


def _check_shapes(predicted: jax.Array, confidences: jax.Array, states: jax.Array, types: jax.Array) -> None:
    if predicted.ndim == 5 and predicted.shape[-2:] == (STEPS, 2):
        batch, objects, modes = predicted.shape[:3]
        time = 1 + EVERY * STEPS
        wanted = ((batch, objects, modes), (batch, objects, time, 7), (batch, objects))
        if wanted == (confidences.shape, states.shape, types.shape):
            return
    found = ", ".join(str(list(x.shape)) for x in (predicted, confidences, states, types))
    raise TaskError(
        f"WaymoMotion.of: forecasts, confidences, states and types have the shapes {found}. Allowed: [batch, objects, "
        f"modes, {STEPS}, 2], [batch, objects, modes], [batch, objects, {1 + EVERY * STEPS}, 7], [batch, objects]."
    )
