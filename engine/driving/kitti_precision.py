"""KITTI's average precision at 40 recalls, by view, class and difficulty, on the host."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from engine.base.errors import TaskError
from engine.driving.box_overlaps import camera_box_overlaps, image_overlaps
from engine.driving.kitti_matching import COUNTED, IGNORED, OTHER, Frames
from engine.driving.ranked import mean_of_known
from engine.metrics.metric import Metric, collected, one_example
from engine.metrics.values import real_array, rows_and_mask

VIEWS = ("2d", "bev", "3d")
LABELS = {"car": 0, "pedestrian": 3, "cyclist": 5}
"""Class -> its number among the types of `engine.readers.KittiObject`, in the order of the guesses."""
_NEIGHBOURS = {"car": 1, "pedestrian": 4}  # Van, Person_sitting
_DONT_CARE, _PADDING = -1, -2
_LEAST_OVERLAPS = {"car": 0.7, "pedestrian": 0.5, "cyclist": 0.5}


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """Which labels count.

    Attributes:
        height: least height of a box in the image, in pixels; also of predictions.
        occluded: highest occlusion.
        truncated: highest share outside of the image.
    """

    height: int
    occluded: int
    truncated: float


DIFFICULTIES = {
    "easy": Difficulty(40, 0, 0.15),
    "moderate": Difficulty(25, 1, 0.3),
    "hard": Difficulty(25, 2, 0.5),
}


class KittiAveragePrecision(Metric):
    """Average precision of KITTI's object detection at 40 recalls, by view, class and difficulty.

    The definition is that of KITTI's evaluation code since October 2019 (Geiger et al. 2012,
    doi:10.1109/CVPR.2012.6248074; Simonelli et al. 2019, arXiv:1905.12365). Views are the image ("2d"), the ground
    ("bev") and space ("3d"). A prediction matches a label that it overlaps by more than 0.7 (cars) or 0.5 (pedestrians
    and cyclists). Labels beyond the difficulty and those of a neighbouring class (Van, Person_sitting) are ignored:
    predictions may match them and count neither way. So do predictions whose image box is too low, of any class, and,
    in the image, those that lie in a DontCare region.

    At each recall, the precision is the highest at this or a higher recall; recall 0 has no part in the mean. As in
    KITTI's code, each recall needs a matched label of its own, so that `n` labels reach at most `(n - 1) / 40`: compare
    values of sets with 40 labels or more of a class. The values are shares; KITTI's tables have percent. A class
    without labels that count has no value (NaN) and is not part of a mean; KITTI's code counts it as 0.

    Labels of KITTI have two decimals. Float32 values are rounded to three, which restores the numbers of the files:
    a truncation of 0.15 is not above 0.15. `python -m benchmarks.references` compares the metric with mmdet3d.
    """

    higher_is_better = True

    predicted: jax.Array = collected()
    predicted_2d: jax.Array = collected()
    scores: jax.Array = collected(fill=-np.inf)
    guesses: jax.Array = collected(fill=-1)
    boxes: jax.Array = collected()
    boxes_2d: jax.Array = collected()
    labels: jax.Array = collected(fill=_PADDING)
    truncated: jax.Array = collected()
    occluded: jax.Array = collected()

    @classmethod
    def of(
        cls,
        predicted: ArrayLike,
        predicted_2d: ArrayLike,
        scores: ArrayLike,
        guesses: ArrayLike,
        boxes: ArrayLike,
        boxes_2d: ArrayLike,
        labels: ArrayLike,
        truncated: ArrayLike,
        occluded: ArrayLike,
        where: ArrayLike | None = None,
        *,
        predicted_where: ArrayLike | None = None,
    ) -> Self:
        """Returns the detections of each frame.

        Args:
            predicted: predicted boxes `[batch, predictions, 7]`: x, y, z of the center of the bottom in the frame of
                the camera, height, width, length in metres, and the angle about y, which points down.
            predicted_2d: their boxes (x0, y0, x1, y1) in the image, in pixels, `[batch, predictions, 4]`.
            scores: predicted scores, `[batch, predictions]`, comparable over frames.
            guesses: predicted classes, `[batch, predictions]`: 0 car, 1 pedestrian, 2 cyclist.
            boxes: true boxes `[batch, labels, 7]`: `box_bottom`, `box_size` and `box_yaw` of `engine.readers.
                KittiObject`.
            boxes_2d: their boxes in the image, `[batch, labels, 4]`: `box_2d`, at KITTI's own size of images.
            labels: true types, `[batch, labels]`: `box_type`, of which -1 is a DontCare region.
            truncated: shares outside of the image, `[batch, labels]`.
            occluded: occlusions from 0 to 3, `[batch, labels]`.
            where: mask of labels that are no padding, `[batch, labels]`; None if none is padding.
            predicted_where: mask of predictions that are no padding, `[batch, predictions]`.

        Raises:
            TaskError: shapes do not fit together.
        """
        given = (predicted, predicted_2d, boxes, boxes_2d, truncated)
        predicted, predicted_2d, boxes, boxes_2d, truncated = (
            real_array(x, "KittiAveragePrecision.of needs boxes") for x in given
        )
        rows = [jnp.shape(x) for x in (scores, guesses, labels, truncated, occluded)]
        _check_shapes([x.shape for x in (predicted, predicted_2d, boxes, boxes_2d)], rows)
        scores, real = rows_and_mask("KittiAveragePrecision", scores, predicted_where, "predicted_where")
        _, present = rows_and_mask("KittiAveragePrecision", labels, where)
        guesses, labels, occluded = (jnp.asarray(x).astype(jnp.int32) for x in (guesses, labels, occluded))
        scores, labels = jnp.where(real, scores, -jnp.inf), jnp.where(present, labels, _PADDING)
        return cls(predicted, predicted_2d, scores, guesses, boxes, boxes_2d, labels, truncated, occluded)

    def compute(self) -> dict[str, Any]:
        """Returns values such as "3d/car/moderate", and as "" the mean over classes of "3d" at "moderate".

        Raises:
            TaskError: a score is NaN or infinite, and so has no rank.
        """
        return self._results(VIEWS, tuple(LABELS), tuple(DIFFICULTIES))

    def compute_each(self, key: str) -> Iterator[dict[str, Any]]:
        """Yields the results of each frame that `key` names."""
        parts = (key or "3d/moderate").split("/")  # "3d" at "moderate" is the mean of classes
        views, classes, levels = (
            tuple(name for name in names if name in parts) or tuple(names) for names in (VIEWS, LABELS, DIFFICULTIES)
        )
        for row in range(len(self.scores)):
            yield one_example(self, row)._results(views, classes, levels)

    def _results(self, views: tuple[str, ...], classes: tuple[str, ...], levels: tuple[str, ...]) -> dict[str, Any]:
        scores = np.asarray(self.scores, np.float64)
        if count := int((np.isnan(scores) | (scores == np.inf)).sum()):
            raise TaskError(
                f"{count:,} of the scores of predictions are NaN or infinite, so these have no rank. Correct "
                "what the model returns, or leave them out by predicted_where."
            )
        overlaps, covered = self._overlaps(views)
        found: dict[str, Any] = {view: {name: {} for name in classes} for view in views}
        for name in classes:
            in_region = (covered > _LEAST_OVERLAPS[name]).any(-1)
            for level in levels:
                roles, labels = self._roles(name, DIFFICULTIES[level])
                for view in views:
                    region = in_region if view == "2d" else np.zeros_like(in_region)
                    frames = Frames(scores, roles, labels, overlaps[view], region, _LEAST_OVERLAPS[name])
                    found[view][name][level] = frames.average_precision()
        main = [of_levels.get("moderate", np.nan) for of_levels in found.get("3d", {}).values()]
        return {"": mean_of_known(np.array(main)), **found}

    def _roles(self, name: str, difficulty: Difficulty) -> tuple[np.ndarray, np.ndarray]:
        """Returns the roles of the predictions and of the labels for a class."""
        guesses, labels = np.asarray(self.guesses), np.asarray(self.labels)
        height = np.abs(np.diff(np.asarray(self.predicted_2d, np.float64)[..., [1, 3]])[..., 0])
        roles = np.where(guesses == list(LABELS).index(name), COUNTED, OTHER)
        roles = np.where(height < difficulty.height, IGNORED, roles)  # of any class, as in KITTI's code
        roles[np.isneginf(self.scores)] = OTHER
        box = _as_in_file(self.boxes_2d)
        beyond = (np.asarray(self.occluded) > difficulty.occluded) | (box[..., 3] - box[..., 1] < difficulty.height)
        beyond |= _as_in_file(self.truncated) > difficulty.truncated
        counts = np.where(labels == LABELS[name], np.where(beyond, IGNORED, COUNTED), OTHER)
        return roles, np.where(labels == _NEIGHBOURS.get(name), IGNORED, counts)

    def _overlaps(self, views: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Returns overlaps by view, and the share of each prediction in each DontCare region.

        They are `[frames, predictions, labels]`, and 0 where a label is of no class that counts.
        """
        labels, real = np.asarray(self.labels), np.isfinite(np.asarray(self.scores))
        evaluated = np.isin(labels, [*LABELS.values(), *_NEIGHBOURS.values()])
        empty = np.zeros((*real.shape, labels.shape[1]))
        found = dict.fromkeys(views, empty)
        at, by = _pairs(real, evaluated)
        if "2d" in views:
            found["2d"] = _scattered(empty, at, by, image_overlaps(self._predicted_2d(at), self._boxes_2d(by)))
        if {"bev", "3d"} & set(views):
            own, other = np.asarray(self.predicted, np.float64)[at], _as_in_file(self.boxes)[by]
            both = zip(("bev", "3d"), camera_box_overlaps(own, other), strict=True)
            found |= {view: _scattered(empty, at, by, values) for view, values in both if view in views}
        at, by = _pairs(real, labels == _DONT_CARE)
        covered = image_overlaps(self._predicted_2d(at), self._boxes_2d(by), of_first=True)
        return found, _scattered(empty, at, by, covered)

    def _predicted_2d(self, at: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return np.asarray(self.predicted_2d, np.float64)[at]

    def _boxes_2d(self, by: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return _as_in_file(self.boxes_2d)[by]


def _pairs(a: np.ndarray, b: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns the indices (frame, prediction) and (frame, label) of pairs of masks `[frames, n]` and `[frames, m]`."""
    frame, one, other = np.nonzero(a[:, :, None] & b[:, None])
    return (frame, one), (frame, other)


def _scattered(
    empty: np.ndarray, at: tuple[np.ndarray, np.ndarray], by: tuple[np.ndarray, np.ndarray], values: np.ndarray
) -> np.ndarray:
    """Returns the values of pairs as `[frames, predictions, labels]`."""
    found = empty.copy()
    found[at[0], at[1], by[1]] = values
    return found


def _as_in_file(values: ArrayLike) -> np.ndarray:
    """Returns the float64 numbers of a file of labels, which has two decimals, from float32."""
    return np.round(np.asarray(values, np.float64), 3)


def _check_shapes(boxes: list[tuple[int, ...]], rows: list[tuple[int, ...]]) -> None:
    """Raises TaskError if shapes do not fit together.

    Args:
        boxes: shapes of predicted, predicted_2d, boxes and boxes_2d.
        rows: shapes of scores, guesses, labels, truncated and occluded.
    """
    own, other = boxes[0][:-1], boxes[2][:-1]
    wanted = [(*own, 7), (*own, 4), (*other, 7), (*other, 4)]
    if len(own) != 2 or own[:1] != other[:1] or boxes != wanted or rows != [own] * 2 + [other] * 3:
        names = (
            "predicted",
            "predicted_2d",
            "boxes",
            "boxes_2d",
            "scores",
            "guesses",
            "labels",
            "truncated",
            "occluded",
        )
        found = ", ".join(f"{name} {list(shape)}" for name, shape in zip(names, boxes + rows, strict=True))
        raise TaskError(
            f"KittiAveragePrecision.of: {found}. Allowed: predictions [batch, n, 7], [batch, n, 4] and [batch, n], "
            "labels [batch, m, 7], [batch, m, 4] and [batch, m]."
        )
