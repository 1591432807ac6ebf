"""The nuScenes detection score: average precision by distance, and the errors of the matched boxes, in one number."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from engine.base.errors import TaskError
from engine.base.types import PyTree
from engine.driving.detection import (
    AveragePrecision,
    Shape,
    check_result_names,
    named_ranges,
    range_name,
)
from engine.driving.matching import by_score
from engine.driving.ranked import mean_of_known
from engine.driving.score_resampler import RankedErrors, ScoreResampler, ranked_errors
from engine.metrics.metric import Metric, collected, one_example
from engine.metrics.values import real_array, rows_and_mask

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)  # metres between the centres
ERRORS = ("translation", "scale", "orientation", "velocity", "attribute")
_MATCHED_AT = 2  # index in THRESHOLDS of the matches whose errors count


class DetectionScore(Metric):
    """nuScenes detection score (NDS) of boxes in three dimensions, by class and by range.

    The definitions are those of Caesar et al. 2020, arXiv:1903.11027, section 3.1, and of the nuscenes-devkit. A box is
    x, y, z of the centre, length, width, height, yaw, and the velocity along x and y. Predictions match labels of their
    class by the distance of the centres along x and y (see AveragePrecision). Five errors compare the boxes that match
    within 2 m:

    - translation: distance of the centres along x and y.
    - scale: 1 - IoU of the boxes after their centres and headings are made equal.
    - orientation: smallest difference of the yaw, in radians.
    - velocity: length of the difference, in metres per second.
    - attribute: share of wrong attributes, such as moving or parked.

    Each is the mean over recalls above 0.1 of its mean up to that recall, and 1 if that recall is not reached. The
    score is `(5 mAP + sum of max(0, 1 - error)) / 10`, with errors averaged over classes. An error that no class has,
    such as that of attributes if none are given, is left out of the sum and of the divisor.

    Ties are broken as in the devkit: of predictions with equal scores, the last one counts first, and of labels at
    equal distances, it takes the first one. `python -m benchmarks.references` compares the two.

    A class without labels has no value (NaN) and is not part of a mean; the devkit counts it as average precision 0 and
    errors of 1.
    """

    higher_is_better = True

    predicted: jax.Array = collected()
    scores: jax.Array = collected(fill=-np.inf)
    guesses: jax.Array = collected()
    predicted_attributes: jax.Array = collected(fill=-1)
    boxes: jax.Array = collected()
    labels: jax.Array = collected(fill=-1)
    attributes: jax.Array = collected(fill=-1)
    classes: tuple[str, ...] = ("",)
    ranges: tuple[tuple[float, float], ...] = ()
    without: tuple[tuple[str, tuple[str, ...]], ...] = ()
    half_turn: tuple[str, ...] = ()
    farthest: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(
        cls,
        predicted: ArrayLike,
        scores: ArrayLike,
        guesses: ArrayLike,
        boxes: ArrayLike,
        labels: ArrayLike,
        where: ArrayLike | None = None,
        *,
        classes: Sequence[str],
        predicted_where: ArrayLike | None = None,
        attributes: tuple[ArrayLike, ArrayLike] | None = None,
        ranges: Sequence[tuple[float, float]] = (),
        farthest: Mapping[str, float] | None = None,
        without: Mapping[str, Sequence[str]] | None = None,
        half_turn: Sequence[str] = (),
    ) -> Self:
        """Returns the detections of each example.

        Args:
            predicted: predicted boxes `[batch, predictions, 9]`, see the class, in a frame whose origin is the vehicle.
            scores: predicted scores, `[batch, predictions]`, comparable over examples.
            guesses: predicted classes as integers, `[batch, predictions]`.
            boxes: true boxes `[batch, labels, 9]`. A velocity or a yaw of NaN has no error.
            labels: true classes as integers, `[batch, labels]`.
            where: mask of true boxes that are no padding, `[batch, labels]`; None if none is padding.
            classes: names of the classes.
            predicted_where: mask of predictions that are no padding, `[batch, predictions]`.
            attributes: predicted and true attributes, integers `[batch, predictions]` and `[batch,
                labels]`; a true attribute of -1 is none.
            ranges: (from, to) distances along x and y from the origin, each of which gives results. A matched
                prediction has the range of its label.
            farthest: distance by class; predictions and labels at this distance or beyond are left out. nuScenes: 50 m
                for vehicles, 40 m for pedestrians and cycles, 30 m for cones and barriers.
            without: class -> errors that are not defined for it. nuScenes: orientation, velocity and attribute of
                traffic cones; velocity and attribute of barriers.
            half_turn: classes whose front and back are the same. nuScenes: barriers.

        Raises:
            TaskError: shapes do not fit together, a class or an error is unknown, or two results have one name.
        """
        predicted, boxes = (real_array(x, "DetectionScore.of needs boxes") for x in (predicted, boxes))
        given = attributes if attributes is not None else (-jnp.ones(jnp.shape(scores)), -jnp.ones(jnp.shape(labels)))
        shapes = [jnp.shape(x) for x in (scores, guesses, given[0], labels, given[1])]
        _check_shapes(predicted.shape, boxes.shape, shapes)
        names = tuple(classes)
        check_result_names("DetectionScore.of", names, THRESHOLDS, ranges)
        _check_names(names, {**(farthest or {}), **(without or {}), **dict.fromkeys(half_turn)}, without or {})
        guesses, labels = (jnp.asarray(x).astype(jnp.int32) for x in (guesses, labels))
        scores, real = rows_and_mask("DetectionScore", scores, predicted_where, "predicted_where")
        _, present = rows_and_mask("DetectionScore", labels, where)
        between = tuple((float(low), float(high)) for low, high in ranges)
        undefined = tuple((name, tuple(errors)) for name, errors in (without or {}).items())
        scores, labels = jnp.where(real, scores, -jnp.inf), jnp.where(present, labels, -1)
        given = [jnp.asarray(x).astype(jnp.int32) for x in given]
        settings = (names, between, undefined, tuple(half_turn), tuple((farthest or {}).items()))
        return cls(predicted, scores, guesses, given[0], boxes, labels, given[1], *settings)

    def compute(self) -> dict[str, Any]:
        """Returns the score as "", the average precisions as "ap", and each error as "<error>_error", by class.

        A range has the same results below its name. "ap" has the results of AveragePrecision.
        """
        near = self._without_far()
        precision = near._precision()
        return near._results(precision, precision.matches())

    def compute_each(self, key: str) -> Iterator[dict[str, Any]]:
        """Yields the results of each example, without the ranges that `key` does not name.

        The examples are matched together: 1000 of them with 100 predictions each take 4 s instead of 20 s.
        """
        part = dataclasses.replace(self._without_far(), ranges=named_ranges(self.ranges, key))
        precision = part._precision()
        matched = precision.matches()
        for row in range(matched.shape[1]):
            yield one_example(part, row)._results(one_example(precision, row), matched[:, row : row + 1])

    def _without_far(self) -> Self:
        """Returns the detections without those at `farthest` or beyond.

        On the host, since a float32 distance may be rounded to another side of the limit than in the devkit.
        """
        if not self.farthest:
            return self
        limits = np.array([dict(self.farthest).get(name, np.inf) for name in self.classes])
        scores, labels = np.asarray(self.scores), np.asarray(self.labels)
        guesses = np.asarray(self.guesses).clip(0, len(limits) - 1)
        real = _distances(self.predicted) < limits[guesses]
        present = _distances(self.boxes) < limits[labels.clip(0, len(limits) - 1)]
        kept: dict[str, Any] = {"scores": np.where(real, scores, -np.inf), "labels": np.where(present, labels, -1)}
        return dataclasses.replace(self, **kept)

    def _precision(self) -> AveragePrecision:
        # On the host, numpy arrays take the place of those of JAX.
        boxes, predicted = (_centres(x) for x in (self.boxes, self.predicted))
        none: PyTree = np.zeros(np.shape(self.labels))
        return AveragePrecision(
            predicted,
            self.scores,
            self.guesses,
            boxes,
            self.labels,
            ignored=none,
            areas=none,
            classes=self.classes,
            match="distance",
            thresholds=THRESHOLDS,
            ranges=self.ranges,
            area="nuscenes",
        )

    def _results(self, precision: AveragePrecision, matches: np.ndarray) -> dict[str, Any]:
        found, matched = precision.results(matches), matches[_MATCHED_AT]
        parts = {between: found.pop(range_name(*between)) for between in self.ranges}
        errors = self._errors_of_matches(matched)
        result = self._scored(found, matched, errors, None)
        for between, part in parts.items():
            result[range_name(*between)] = self._scored(part, matched, errors, between)
        return result

    def _scored(self, ap: dict[str, Any], matched: np.ndarray, errors: np.ndarray, between: Any) -> dict[str, Any]:
        values = self._mean_errors(matched, errors, between)  # [classes, errors]
        means = [mean_of_known(column) for column in values.T]
        known = [max(0.0, 1 - error) for error in means if not np.isnan(error)]
        result: dict[str, Any] = {"": (5 * ap[""] + sum(known)) / (5 + len(known)), "ap": ap}
        for name, mean, column in zip(ERRORS, means, values.T, strict=True):
            result[f"{name}_error"] = {"": mean, **dict(zip(self.classes, column.tolist(), strict=True))}
        return result

    def _errors_of_matches(self, matched: np.ndarray) -> np.ndarray:
        """Returns the errors of each prediction and its label, `[examples, predictions, errors]`."""
        if not np.size(self.boxes):
            return np.full((*matched.shape, len(ERRORS)), np.nan)
        index = matched.clip(0)
        a = np.asarray(self.predicted, np.float64)
        b = np.take_along_axis(np.asarray(self.boxes, np.float64), index[..., None], 1)
        both = np.minimum(a[..., 3:6], b[..., 3:6]).prod(-1)
        union = a[..., 3:6].prod(-1) + b[..., 3:6].prod(-1) - both
        turned = np.isin(np.asarray(self.guesses), [self.classes.index(name) for name in self.half_turn])
        period = np.where(turned, np.pi, 2 * np.pi)
        attribute = np.take_along_axis(np.asarray(self.attributes), index, 1)
        wrong = (np.asarray(self.predicted_attributes) != attribute).astype(np.float64)
        return np.stack(
            [
                np.linalg.norm(a[..., :2] - b[..., :2], axis=-1),
                1 - both / np.maximum(union, 1e-12),
                np.abs((a[..., 6] - b[..., 6] + period / 2) % period - period / 2),
                np.linalg.norm(a[..., 7:9] - b[..., 7:9], axis=-1),
                np.where(attribute < 0, np.nan, wrong),
            ],
            -1,
        )

    def _mean_errors(self, matched: np.ndarray, errors: np.ndarray, between: Any) -> np.ndarray:
        """Returns the errors of the labels in a range, `[classes, errors]`."""
        scores, guesses, labels = (np.asarray(x) for x in (self.scores, self.guesses, self.labels))
        kept, counted = self._chosen(matched, between)
        found = np.full((len(self.classes), len(ERRORS)), np.nan)
        for c in range(len(self.classes)):
            total = int((counted & (labels == c)).sum())
            if total:
                chosen = kept & (guesses == c)
                found[c] = matched_errors(scores[chosen], matched[chosen] >= 0, errors[chosen], total)
        found[self._left_out()] = np.nan
        if not (self.attributes >= 0).any():
            found[:, ERRORS.index("attribute")] = np.nan
        return found

    def _chosen(self, matched: np.ndarray, between: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns the predictions and the labels that count in a range."""
        labels = np.asarray(self.labels)
        kept, counted = np.isfinite(np.asarray(self.scores)), labels >= 0
        if between is not None:
            near, own = (_is_between(x, between) for x in (self.boxes, self.predicted))
            counted = counted & near
            at_label = np.take_along_axis(near, matched.clip(0), 1) if labels.size else own
            kept = kept & np.where(matched >= 0, at_label, own)
        return kept, counted

    def _left_out(self) -> np.ndarray:
        """Returns which errors are not defined, bool `[classes, errors]`."""
        without = dict(self.without)
        return np.array([[error in without.get(name, ()) for error in ERRORS] for name in self.classes], bool)

    def resampler(self) -> ScoreResampler:
        near = self._without_far()
        precision, scores = near._precision(), np.asarray(near.scores)
        ranked, matched = precision.resampler(), precision.matches()[_MATCHED_AT]
        errors, parts = near._errors_of_matches(matched), {}
        for between in (None, *self.ranges):
            name = "" if between is None else range_name(*between)
            kept, counted = near._chosen(matched, between)
            by_class = []
            for c in range(len(self.classes)):
                chosen = kept & (np.asarray(near.guesses) == c)
                labels = (counted & (np.asarray(near.labels) == c)).sum(1)
                by_class.append(RankedErrors.of(scores, chosen, matched >= 0, errors, labels))
            parts[name] = ranked.part(name), by_class
        has_attribute = (np.asarray(near.attributes) >= 0).any(1)
        return ScoreResampler(self.classes, ERRORS, self._left_out(), has_attribute, parts)


def matched_errors(scores: np.ndarray, hits: np.ndarray, errors: np.ndarray, total: int) -> np.ndarray:
    """Returns the errors of one class as their mean over recalls, `[errors]`.

    Args:
        scores: `[predictions]`.
        hits: whether each has a label, likewise.
        errors: errors of each prediction that has a label, `[predictions, errors]`; NaN where an error is not defined.
        total: number of labels, at least 1.
    """
    order = by_score(scores, "nuscenes")
    return ranked_errors(scores[order].astype(np.float64), hits[order], errors[order][hits[order]], total)


def _distances(boxes: ArrayLike) -> np.ndarray:
    return np.linalg.norm(_centres(boxes), axis=-1)


def _is_between(boxes: ArrayLike, between: tuple[float, float]) -> np.ndarray:
    distance = _distances(boxes)
    return (between[0] <= distance) & (distance < between[1])


def _centres(boxes: ArrayLike) -> PyTree:
    return np.asarray(boxes, np.float64)[..., :2]


def _check_shapes(predicted: Shape, boxes: Shape, shapes: Sequence[Shape]) -> None:
    """Raises TaskError if `shapes`, of scores, guesses, predicted attributes, labels and attributes, do not fit."""
    rows = [predicted[:2]] * 3 + [boxes[:2]] * 2
    if predicted[2:] != (9,) or boxes[2:] != (9,) or list(shapes) != rows:
        raise TaskError(
            f"DetectionScore.of: predicted {list(predicted)}, scores {list(shapes[0])}, guesses {list(shapes[1])}, "
            f"boxes {list(boxes)}, labels {list(shapes[3])}, attributes {list(shapes[2])} and {list(shapes[4])}. "
            "Allowed: [batch, n, 9], [batch, n], [batch, n], [batch, m, 9], [batch, m], and [batch, n] and [batch, m]."
        )


def _check_names(classes: Sequence[str], named: Mapping[str, Any], without: Mapping[str, Sequence[str]]) -> None:
    """Raises TaskError for a class or an error that does not exist."""
    if unknown := next((name for name in named if name not in classes), None):
        raise TaskError(f"DetectionScore.of: class {unknown!r} is unknown. Allowed: {', '.join(classes)}.")
    if unknown := next((error for errors in without.values() for error in errors if error not in ERRORS), None):
        raise TaskError(f"DetectionScore.of: error {unknown!r} is unknown. Allowed: {', '.join(ERRORS)}.")
