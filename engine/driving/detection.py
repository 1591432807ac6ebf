"""Average precision of detections: boxes or points with a class and a score, matched to labelled ones on the host."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from engine.base.errors import TaskError
from engine.metrics.metric import Metric, collected, one_example
from engine.metrics.values import real_array, rows_and_mask

type Shape = tuple[int, ...]
type Match = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Similarity of predictions `[n, 1, dim]` and labels `[n, labels, dim]`, larger for better: `[n, labels]`."""

_THRESHOLDS = {"distance": (0.5, 1.0, 2.0, 4.0), "iou": tuple(round(0.5 + 0.05 * i, 2) for i in range(10))}
_AREAS = ("sum", "voc", "coco", "nuscenes")
_NONE, _IGNORED = -1, -2  # values in place of the label of a prediction


class AveragePrecision(Metric):
    """Average precision of detections, by class, by threshold of the match and by range.

    In the order of their scores, predictions take the best free label of their class in their example, if it is close
    enough. With several thresholds, each has its own matching. The average precision is an area below precision over
    recall, of all examples together:

    - "sum": precision times the increase of recall, without interpolation (as in scikit-learn).
    - "voc": the area below the largest precision at this or a higher recall (Everingham et al. 2010,
      doi:10.1007/s11263-009-0275-4, with all points as from VOC 2010).
    - "coco": the same at 101 recalls (Lin et al. 2014, arXiv:1405.0312, and the COCO evaluation code).
    - "nuscenes": precision interpolated at 101 recalls, above recall 0.1 and precision 0.1, scaled to 0..1 (Caesar et
      al. 2020, arXiv:1903.11027, section 3.1).

    Ignored labels, such as crowds, follow the COCO evaluation code: they need not be found, and predictions of their
    class that match them, any number and after the other labels, count neither way. For "iou", such a match compares
    the intersection with the area of the prediction.

    A class without labels has no value (NaN) and is not part of a mean. A label whose box is not finite does not count.
    A prediction whose box is not finite has no label.
    """

    predicted: jax.Array = collected()
    scores: jax.Array = collected(fill=-np.inf)
    guesses: jax.Array = collected()
    boxes: jax.Array = collected()
    labels: jax.Array = collected(fill=-1)
    ignored: jax.Array = collected()
    classes: tuple[str, ...] = ("",)
    match: str | Match = "distance"
    thresholds: tuple[float, ...] = ()
    ranges: tuple[tuple[float, float], ...] = ()
    area: str = "sum"

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
        classes: int | Sequence[str],
        predicted_where: ArrayLike | None = None,
        ignored: ArrayLike | None = None,
        match: str | Match = "distance",
        thresholds: Sequence[float] | None = None,
        ranges: Sequence[tuple[float, float]] = (),
        area: str | None = None,
    ) -> Self:
        """Returns the detections of each example.

        Args:
            predicted: `[batch, predictions, dim]`: centres in metres for "distance", boxes (x0, y0, x1, y1) for "iou".
            scores: `[batch, predictions]`, comparable over examples.
            guesses: predicted classes as integers, `[batch, predictions]`.
            boxes: labelled centres or boxes, `[batch, labels, dim]`, padded to the same number.
            labels: their classes, `[batch, labels]`.
            where: mask of real labels, `[batch, labels]`; None if none is padding.
            classes: names of the classes, which give results of each class, or their number.
            predicted_where: mask of real predictions, likewise.
            ignored: mask of labels that count neither way, `[batch, labels]`; None for none.
            match: "distance", "iou" for boxes along the axes, or a function (module level, in numpy) of `[n, 1, dim]`
                and `[n, labels, dim]` that returns similarities `[n, labels]`.
            thresholds: a match is a distance below, or a similarity of at least, one of them. By default 0.5, 1, 2 and
                4 for "distance", and 0.5 to 0.95 for "iou".
            ranges: (from, to) distances of the first two coordinates from the origin, each of which gives a result. A
                matched prediction has the range of its label.
            area: see the class; by default "nuscenes" for "distance" and "coco" otherwise.

        Raises:
            TaskError: shapes do not fit together, or a setting is unknown.
        """
        area = area or ("nuscenes" if match == "distance" else "coco")
        _check_settings(match, area)
        predicted, boxes = (real_array(x, "AveragePrecision.of needs boxes") for x in (predicted, boxes))
        shapes = [jnp.shape(x) for x in (scores, guesses, labels)]
        _check_shapes(match, predicted.shape, boxes.shape, shapes)
        scores, real = rows_and_mask("AveragePrecision", scores, predicted_where, "predicted_where")
        _, present = rows_and_mask("AveragePrecision", labels, where)
        ignored = jnp.zeros(shapes[2], bool) if ignored is None else ignored
        _, ignored = rows_and_mask("AveragePrecision", labels, ignored, "ignored")
        present &= jnp.isfinite(boxes).all(-1)
        guesses, labels = (jnp.asarray(x).astype(jnp.int32) for x in (guesses, labels))
        names = ("",) * classes if isinstance(classes, int) else tuple(classes)
        limits = tuple(thresholds or _THRESHOLDS["distance" if match == "distance" else "iou"])
        between = tuple((float(low), float(high)) for low, high in ranges)
        check_result_names("AveragePrecision", names, limits, between)
        settings = (names, match, limits, between, area)
        scores, labels = jnp.where(real, scores, -jnp.inf), jnp.where(present, labels, -1)
        return cls(predicted, scores, guesses, boxes, labels, ignored, *settings)

    def compute(self) -> dict[str, Any]:
        """Returns the mean over classes and thresholds as "", and means by threshold, by class and by range."""
        return self.results(self.matches())

    def compute_each(self, key: str) -> Iterator[dict[str, Any]]:
        """Yields the results of each example, without the ranges that `key` does not name.

        The examples are matched together: 1000 of them with 100 predictions each take 2 s instead of 12 s.
        """
        matched = self.matches()
        part = dataclasses.replace(self, ranges=named_ranges(self.ranges, key))
        for row in range(matched.shape[1]):
            yield one_example(part, row).results(matched[:, row : row + 1])

    def results(self, matched: np.ndarray) -> dict[str, Any]:
        """Returns what `compute` returns; `matched` is what `matches` returns."""
        everywhere = self._average_precisions(matched, None)  # [thresholds, classes]
        found: dict[str, Any] = {"": mean_of_known(everywhere)}
        if len(self.thresholds) > 1:
            found |= {f"{limit:g}": mean_of_known(row) for limit, row in zip(self.thresholds, everywhere, strict=True)}
        found |= self._by_class(everywhere)
        for low, high in self.ranges:
            values = self._average_precisions(matched, (low, high))
            found[range_name(low, high)] = {"": mean_of_known(values), **self._by_class(values)}
        return found

    def _by_class(self, values: np.ndarray) -> dict[str, float]:
        return {name: mean_of_known(column) for name, column in zip(self.classes, values.T, strict=True) if name}

    def matches(self) -> np.ndarray:
        """Returns the index of the label that each prediction takes, _NONE or _IGNORED.

        The shape is `[thresholds, examples, predictions]`.
        """
        scores, labels, boxes = (np.asarray(x) for x in (self.scores, self.labels, self.boxes))
        predicted, guesses, ignored = (np.asarray(x) for x in (self.predicted, self.guesses, self.ignored))
        limits, rows = np.array(self.thresholds)[:, None], np.arange(len(scores))
        matched = np.full((len(limits), *scores.shape), _NONE)
        if not boxes.size:
            return matched
        taken = np.zeros((len(limits), *labels.shape), bool)
        at = np.arange(len(limits))[:, None], rows[None]
        for k in np.argsort(-scores, axis=1, kind="stable").T:  # the prediction of each example with the next score
            box = predicted[rows, k][:, None]
            allowed = (labels == guesses[rows, k][:, None]) & (labels >= 0) & np.isfinite(scores[rows, k])[:, None]
            similar = np.where(allowed & ~ignored, _similarity(self.match, box, boxes), -np.inf)
            free = np.where(taken | np.isnan(similar), -np.inf, similar)  # [thresholds, examples, labels]
            best = free.argmax(-1)
            hit = self._is_match(free[(*at, best)], limits)
            taken[(*at, best)] |= hit
            found = np.full(hit.shape, _NONE)
            if ignored.any():
                similar = np.where(allowed & ignored, _similarity(self.match, box, boxes, crowd=True), -np.inf)
                near = np.where(np.isnan(similar), -np.inf, similar).max(-1)
                found[self._is_match(near[None], limits)] = _IGNORED
            matched[(*at, k[None])] = np.where(hit, best, found)
        return matched

    def _is_match(self, similar: np.ndarray, limits: np.ndarray) -> np.ndarray:
        return similar > -limits if self.match == "distance" else similar >= limits

    def _average_precisions(self, matched: np.ndarray, between: tuple[float, float] | None) -> np.ndarray:
        """Returns average precisions `[thresholds, classes]` of the labels in a range."""
        scores, guesses, labels = (np.asarray(x) for x in (self.scores, self.guesses, self.labels))
        counted, own = ~np.asarray(self.ignored), np.isfinite(scores)
        if between is not None:
            counted = counted & self._is_between(self.boxes, between)
            own = own & self._is_between(self.predicted, between)
        found = np.full((len(matched), len(self.classes)), np.nan)
        for t, label in enumerate(matched):
            hit = label >= 0
            kept = np.where(hit, np.take_along_axis(counted, label.clip(0), 1), own) if labels.size else own
            for c in range(len(self.classes)):
                chosen = kept & np.isfinite(scores) & (guesses == c) & (label != _IGNORED)
                total = int((counted & (labels == c)).sum())
                found[t, c] = average_precision(scores[chosen], hit[chosen], total, self.area)
        return found

    def _is_between(self, boxes: Any, between: tuple[float, float]) -> np.ndarray:
        centres = (boxes[..., :2] + boxes[..., 2:4]) / 2 if self.match == "iou" else boxes[..., :2]
        distance = np.linalg.norm(np.asarray(centres), axis=-1)
        return (between[0] <= distance) & (distance < between[1])


def _check_settings(match: str | Match, area: str) -> None:
    """Raises TaskError for an unknown setting."""
    if not callable(match) and match not in _THRESHOLDS:
        raise TaskError(f"AveragePrecision.of: match = {match!r} is unknown. Allowed: distance, iou, a function.")
    if area not in _AREAS:
        raise TaskError(f"AveragePrecision.of: area = {area!r} is unknown. Allowed: {', '.join(_AREAS)}.")


def _check_shapes(match: str | Match, predicted: Shape, boxes: Shape, shapes: Sequence[Shape]) -> None:
    """Raises TaskError if `shapes`, of scores, guesses and labels, do not fit."""
    dims = {predicted[-1:], boxes[-1:]}
    fits = callable(match) or (dims == {(4,)} if match == "iou" else len(dims) == 1)
    rows = [predicted[:-1]] * 2 + [boxes[:-1]]
    if len(predicted) != 3 or len(boxes) != 3 or list(shapes) != rows or not fits:
        raise TaskError(
            f"AveragePrecision.of: predicted {list(predicted)}, scores {list(shapes[0])}, guesses {list(shapes[1])}, "
            f"boxes {list(boxes)}, labels {list(shapes[2])}. Allowed: [batch, n, dim], [batch, n], [batch, n], "
            "[batch, m, dim], [batch, m], where dim is 4 for iou."
        )


def range_name(low: float, high: float) -> str:
    """Returns the name of the results of a range."""
    return f"{low:g}-{high:g}"


def named_ranges(ranges: Sequence[tuple[float, float]], key: str) -> tuple[tuple[float, float], ...]:
    """Returns the range whose results a key such as "0-10/car" names; none if it names none."""
    return tuple(between for between in ranges if f"{key}/".startswith(f"{range_name(*between)}/"))


def check_result_names(
    kind: str, classes: Sequence[str], thresholds: Sequence[float], ranges: Sequence[tuple[float, float]]
) -> None:
    """Raises TaskError if two results of a metric of class `kind` have the same name."""
    names = [*filter(None, classes), *(range_name(low, high) for low, high in ranges)]
    names += [f"{limit:g}" for limit in thresholds] if len(thresholds) > 1 else []
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise TaskError(
            f"{kind}.of: two of the classes, thresholds and ranges give a result named {twice!r}. Rename the "
            "class, such as digit_1, or give each threshold and range once."
        )


def average_precision(scores: np.ndarray, hits: np.ndarray, total: int, area: str) -> float:
    """Returns the area below precision over recall of predictions of one class; NaN without labels.

    Args:
        scores: `[predictions]`; equal scores count together.
        hits: whether each has a label, likewise.
        total: number of labels.
        area: how the area is computed, see AveragePrecision.
    """
    if not total:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if len(scores) else np.zeros(0, int)
    true = np.cumsum(hits[order], dtype=np.int64)[ends]
    recall, precision = true / total, true / (ends + 1)
    if area == "nuscenes":
        if not hits.any():
            return 0.0
        sampled = np.interp(np.linspace(0, 1, 101), recall, precision, right=0)[11:]
        return float(np.maximum(sampled - 0.1, 0).mean() / 0.9)
    if area != "sum":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    if area == "coco":
        at = np.searchsorted(recall, np.linspace(0, 1, 101))
        return float(np.append(precision, 0)[at].mean())
    return float((np.diff(recall, prepend=0) * precision).sum())


def _similarity(match: str | Match, predicted: np.ndarray, boxes: np.ndarray, crowd: bool = False) -> np.ndarray:
    """Returns the similarities `[n, labels]`; `crowd` compares the intersection with the area of the prediction."""
    if callable(match):
        return match(predicted, boxes)
    if match == "distance":
        return -np.linalg.norm(predicted - boxes, axis=-1)
    low, high = np.maximum(predicted[..., :2], boxes[..., :2]), np.minimum(predicted[..., 2:], boxes[..., 2:])
    both = np.maximum(high - low, 0).prod(-1)
    areas = [np.maximum(x[..., 2:] - x[..., :2], 0).prod(-1) for x in (predicted, boxes)]
    return both / np.maximum(areas[0] if crowd else areas[0] + areas[1] - both, 1e-12)


def mean_of_known(values: np.ndarray) -> float:
    """Returns the mean of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
