"""Average precision of detections: boxes or points with a class and a score, matched to labelled ones on the host."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from engine.base.errors import TaskError
from engine.driving.matching import IGNORED_LABEL, Detections, Match, areas_of, class_ranks, match_predictions
from engine.driving.precision_resampler import PrecisionResampler, Table
from engine.driving.ranked import average_precision, mean_of_known
from engine.metrics.metric import Metric, collected, one_example
from engine.metrics.values import real_array, rows_and_mask

type Shape = tuple[int, ...]
_THRESHOLDS = {"distance": (0.5, 1.0, 2.0, 4.0), "iou": tuple(np.linspace(0.5, 0.95, 10).tolist())}
_AREAS = ("sum", "voc", "coco", "nuscenes")
_COCO_MAX_DETECTIONS = 100
_COCO_SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # square pixels
_RECALL = "recall"  # name of the average recalls


class AveragePrecision(Metric):
    """Average precision of detections, by class, by threshold of the match, by range and by size.

    In the order of their scores, predictions take the best free label of their class in their example, if it is close
    enough. With several thresholds, each has its own matching. The average precision is an area below precision over
    recall, of all examples together:

    - "sum": precision times the increase of recall, without interpolation (as in scikit-learn).
    - "voc": the area below the largest precision at this or a higher recall (Everingham et al. 2010,
      doi:10.1007/s11263-009-0275-4, with all points as from VOC 2010).
    - "coco": the same at 101 recalls (Lin et al. 2014, arXiv:1405.0312, and the COCO evaluation code).
    - "nuscenes": precision interpolated at 101 recalls, above recall 0.1 and precision 0.1, scaled to 0..1 (Caesar et
      al. 2020, arXiv:1903.11027, section 3.1).

    Predictions of equal scores count together for "sum" and "voc". As in the evaluation codes, they count one by one
    for "coco", in the order of the dataset and then of the predictions, and for "nuscenes" in the reverse of this
    order. Of labels that fit equally well, "coco" takes the last one, and the others the first one. Overlaps are
    computed in float64. As in COCO, 100 predictions of the highest scores of each class and example count for "coco",
    unless `max_detections` differs. Its results agree with pycocotools within 1e-12, as
    `python -m benchmarks.references` shows.

    Ignored labels, such as crowds, follow the COCO evaluation code: they need not be found, and predictions of their
    class that match them, any number and after the other labels, count neither way. For "iou", such a match compares
    the intersection with the area of the prediction.

    A class without labels has no value (NaN) and is not part of a mean. A label whose box is not finite does not count.
    A prediction whose box is not finite has no label.
    """

    higher_is_better = True

    predicted: jax.Array = collected()
    scores: jax.Array = collected(fill=-np.inf)
    guesses: jax.Array = collected()
    boxes: jax.Array = collected()
    labels: jax.Array = collected(fill=-1)
    ignored: jax.Array = collected()
    areas: jax.Array = collected()
    classes: tuple[str, ...] = ("",)
    match: str | Match = "distance"
    thresholds: tuple[float, ...] = ()
    ranges: tuple[tuple[float, float], ...] = ()
    area: str = "sum"
    max_detections: int | None = None
    sizes: tuple[tuple[str, float, float], ...] = ()
    recalls_at: tuple[int, ...] = ()

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
        max_detections: int | None = None,
    ) -> Self:
        """Returns the detections of each example.

        Args:
            predicted: `[batch, predictions, dim]`: centres in metres for "distance", boxes (x0, y0, x1, y1) for "iou".
            scores: predicted scores, `[batch, predictions]`, comparable over examples; -inf for no prediction.
            guesses: predicted classes as integers, `[batch, predictions]`.
            boxes: true positions, `[batch, labels, dim]`, of the kind of `predicted`, padded to the same number.
            labels: true classes as integers, `[batch, labels]`.
            where: mask of true objects that are no padding, `[batch, labels]`; None if none is padding.
            classes: names of the classes, which give results of each class, or their number.
            predicted_where: mask of predictions that are no padding, likewise.
            ignored: mask of true objects that count neither way, `[batch, labels]`; None for none.
            match: "distance", "iou" for boxes along the axes, or a function (module level, in numpy) of `[n, 1, dim]`
                and `[n, labels, dim]` that returns similarities `[n, labels]`.
            thresholds: a match is a distance below, or a similarity of at least, one of them. By default 0.5, 1, 2 and
                4 for "distance", and 0.5 to 0.95 for "iou".
            ranges: (from, to) distances of the first two coordinates from the origin, each of which gives a result. A
                matched prediction has the range of its label.
            area: see the class; by default "nuscenes" for "distance" and "coco" otherwise.
            max_detections: predictions of a class and an example that count; by default 100 for "coco", else all.

        Raises:
            TaskError: shapes do not fit together, or a setting is unknown.
        """
        area = area or ("nuscenes" if match == "distance" else "coco")
        most = max_detections if max_detections is not None else (_COCO_MAX_DETECTIONS if area == "coco" else None)
        _check_settings(match, area, most)
        predicted, boxes = (real_array(x, "AveragePrecision.of needs boxes") for x in (predicted, boxes))
        shapes = [jnp.shape(x) for x in (scores, guesses, labels)]
        _check_shapes(match, predicted.shape, boxes.shape, shapes)
        scores, real = rows_and_mask("AveragePrecision", scores, predicted_where, "predicted_where")
        _, present = rows_and_mask("AveragePrecision", labels, where)
        _, ignored = rows_and_mask("AveragePrecision", labels, False if ignored is None else ignored, "ignored")
        present &= jnp.isfinite(boxes).all(-1)
        guesses, labels = (jnp.asarray(x).astype(jnp.int32) for x in (guesses, labels))
        names = ("",) * classes if isinstance(classes, int) else tuple(classes)
        limits = tuple(thresholds or _THRESHOLDS["distance" if match == "distance" else "iou"])
        between = tuple((float(low), float(high)) for low, high in ranges)
        check_result_names("AveragePrecision.of", names, limits, between)
        scores, labels = jnp.where(real, scores, -jnp.inf), jnp.where(present, labels, -1)
        arrays = (predicted, scores, guesses, boxes, labels, ignored, jnp.full(labels.shape, jnp.nan))
        return cls(*arrays, names, match, limits, between, area, most)

    def by_size(
        self, sizes: Mapping[str, tuple[float, float]] | None = None, *, areas: ArrayLike | None = None
    ) -> Self:
        """Returns the same detections with results by size, such as "small", for "iou".

        As in the COCO evaluation code, each size is matched anew, labels of other areas are ignored, and so are
        predictions of other areas without a label. Both limits belong to a size.

        Args:
            sizes: name -> (smallest, largest) area; by default small, medium and large of COCO, in square pixels.
            areas: areas that decide the size of labels, `[batch, labels]`, in float32. COCO takes those of the masks
                ("area" in its files). By default those of the boxes.

        Raises:
            TaskError: the match is not "iou", shapes do not fit together, or two results have one name.
        """
        if self.match != "iou":
            raise TaskError(
                "AveragePrecision.by_size: sizes are areas of boxes. Set match='iou' in AveragePrecision.of."
            )
        named = _COCO_SIZES if sizes is None else sizes
        within = tuple((name, float(low), float(high)) for name, (low, high) in named.items())
        kind, shape = "AveragePrecision.by_size", jnp.shape(self.labels)
        found = self.areas if areas is None else real_array(areas, f"{kind} needs areas")
        if found.shape != shape:
            raise TaskError(f"{kind}: found areas of shape {list(found.shape)}. Allowed: {list(shape)}, as labels.")
        check_result_names(kind, self.classes, self.thresholds, self.ranges, self._others(within, self.recalls_at))
        return dataclasses.replace(self, areas=found, sizes=within)

    def with_recall(self, at: Sequence[int] = (1, 10, 100)) -> Self:
        """Returns the same detections with average recalls, such as "recall/10".

        It is the share of labels that so many predictions of each class and example find, averaged over classes and
        thresholds; of each range and each size, too.

        Args:
            at: numbers of predictions, those of the highest scores.

        Raises:
            TaskError: a number is not positive or above max_detections, or two results have one name.
        """
        most = self.max_detections
        if any(not 1 <= n <= (most or n) for n in at):
            raise TaskError(
                f"AveragePrecision.with_recall: at = {list(at)}. Allowed: positive numbers up to "
                f"max_detections = {most}."
            )
        others, kind = self._others(self.sizes, at), "AveragePrecision.with_recall"
        check_result_names(kind, self.classes, self.thresholds, self.ranges, others)
        return dataclasses.replace(self, recalls_at=tuple(at))

    def _others(self, sizes: Sequence[tuple[str, float, float]], recalls_at: Sequence[int]) -> list[str]:
        """Returns the names of results in addition to those of classes, thresholds and ranges."""
        return [name for name, _, _ in sizes] + [_RECALL] * bool(recalls_at)

    def compute(self) -> dict[str, Any]:
        """Returns the mean over classes and thresholds as "", and means by threshold, by class, range and size."""
        return self.results(self.matches(), self._matches_by_size())

    def compute_each(self, key: str) -> Iterator[dict[str, Any]]:
        """Yields the results of each example, without the ranges and sizes that `key` does not name.

        The examples are matched together: 1000 of them with 100 predictions each take 2 s instead of 12 s.
        """
        sizes = tuple(size for size in self.sizes if f"{key}/".startswith(f"{size[0]}/"))
        part = dataclasses.replace(self, ranges=named_ranges(self.ranges, key), sizes=sizes)
        matched, by_size = self.matches(), part._matches_by_size()
        for row in range(matched.shape[1]):
            of_row = {name: found[:, row : row + 1] for name, found in by_size.items()}
            yield one_example(part, row).results(matched[:, row : row + 1], of_row)

    def results(self, matched: np.ndarray, by_size: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
        """Returns what `compute` returns.

        Args:
            matched: what `matches` returns.
            by_size: name of a size -> what `matches` returns for it.
        """
        ranks = class_ranks(np.asarray(self.scores), np.asarray(self.guesses), self.area)
        values, recalls = self._values(matched, ranks, True, True)
        found = self._means(values, recalls)
        if len(self.thresholds) > 1:
            found |= {f"{limit:g}": mean_of_known(row) for limit, row in zip(self.thresholds, values, strict=True)}
        for between in self.ranges:
            near, own = (self._is_between(boxes, between) for boxes in (self.boxes, self.predicted))
            found[range_name(*between)] = self._means(*self._values(matched, ranks, near, own))
        for name, low, high in self.sizes:
            rematched = (by_size or {})[name]
            fits, own = self._has_size(low, high), _is_within(areas_of(np.asarray(self.predicted)), low, high)
            found[name] = self._means(*self._values(rematched, ranks, fits, own))
        return found

    def _means(self, values: np.ndarray, recalls: np.ndarray) -> dict[str, Any]:
        """Returns the means of average precisions `[thresholds, classes]` and of recalls `[recalls_at, ...]`."""
        found: dict[str, Any] = {"": mean_of_known(values)}
        found |= {name: mean_of_known(column) for name, column in zip(self.classes, values.T, strict=True) if name}
        if self.recalls_at:
            found[_RECALL] = {str(n): mean_of_known(part) for n, part in zip(self.recalls_at, recalls, strict=True)}
        return found

    def matches(self, size: tuple[float, float] | None = None) -> np.ndarray:
        """Returns what `match_predictions` returns, `[thresholds, examples, predictions]`.

        Args:
            size: (smallest, largest) area; labels of other areas are ignored.

        Raises:
            TaskError: a score is NaN or infinite, and so has no rank. That of padding is -inf.
        """
        scores, labels = np.asarray(self.scores), np.asarray(self.labels)
        if count := int((np.isnan(scores) | (scores == np.inf)).sum()):
            raise TaskError(
                f"{count:,} of the scores of predictions are NaN or infinite, so these have no rank. Correct "
                "what the model returns, or leave them out by predicted_where."
            )
        guesses, crowds = np.asarray(self.guesses), np.asarray(self.ignored, bool)
        if self.max_detections is not None:
            scores = np.where(class_ranks(scores, guesses, self.area) < self.max_detections, scores, -np.inf)
        found = Detections(
            predicted=np.asarray(self.predicted),
            scores=scores,
            guesses=guesses,
            boxes=np.asarray(self.boxes),
            labels=labels,
            crowds=crowds,
            outside=np.zeros(labels.shape, bool) if size is None else ~self._has_size(*size),
        )
        return match_predictions(found, self.match, self.thresholds, self.area)

    def _matches_by_size(self) -> dict[str, np.ndarray]:
        return {name: self.matches((low, high)) for name, low, high in self.sizes}

    def _values(
        self, matched: np.ndarray, ranks: np.ndarray, inside: np.ndarray | bool, own: np.ndarray | bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns average precisions `[thresholds, classes]`, and recalls `[recalls_at, thresholds, classes]`.

        Args:
            matched: what `matches` returns.
            ranks: what `class_ranks` returns.
            inside: labels that count, `[examples, labels]`.
            own: predictions that count if they have no label, `[examples, predictions]`.
        """
        scores, guesses, labels = (np.asarray(x) for x in (self.scores, self.guesses, self.labels))
        values = np.full((len(matched), len(self.classes)), np.nan)
        recalls = np.full((len(self.recalls_at), *values.shape), np.nan)
        counted, kept = self._chosen(matched, ranks, inside, own)
        for t, (chosen_here, hit) in enumerate(zip(kept, matched >= 0, strict=True)):
            for c in range(len(self.classes)):
                chosen = chosen_here & (guesses == c)
                total = int((counted & (labels == c)).sum())
                values[t, c] = average_precision(scores[chosen], hit[chosen], total, self.area)
                for n, most in enumerate(self.recalls_at if total else ()):
                    recalls[n, t, c] = (chosen & hit & (ranks < most)).sum() / total
        return values, recalls

    def _chosen(
        self, matched: np.ndarray, ranks: np.ndarray, inside: np.ndarray | bool, own: np.ndarray | bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the labels that count, and the predictions that do at each threshold; arguments as for `_values`."""
        counted, real = ~np.asarray(self.ignored, bool) & inside, np.isfinite(np.asarray(self.scores))
        if self.max_detections is not None:
            real &= ranks < self.max_detections
        kept = np.zeros(matched.shape, bool)
        for t, label in enumerate(matched):
            at_label = np.take_along_axis(counted, label.clip(0), 1) if counted.size else own
            kept[t] = np.where(label >= 0, at_label, own) & real & (label != IGNORED_LABEL)
        return counted, kept

    def resampler(self) -> PrecisionResampler:
        ranks, matched = class_ranks(np.asarray(self.scores), np.asarray(self.guesses), self.area), self.matches()
        parts: dict[str, tuple[np.ndarray, np.ndarray | bool, np.ndarray | bool]] = {"": (matched, True, True)}
        for between in self.ranges:
            near, own = (self._is_between(boxes, between) for boxes in (self.boxes, self.predicted))
            parts[range_name(*between)] = matched, near, own
        for name, low, high in self.sizes:
            fits, own = self._has_size(low, high), _is_within(areas_of(np.asarray(self.predicted)), low, high)
            parts[name] = self.matches((low, high)), fits, own
        tables = {}
        for name, (found, inside, own) in parts.items():
            counted, kept = self._chosen(found, ranks, inside, own)
            tables[name] = Table.of(self, np.where(counted, self.labels, -1), kept, found >= 0, ranks)
        limits = [f"{limit:g}" for limit in self.thresholds] if len(self.thresholds) > 1 else []
        return PrecisionResampler(self.classes, limits, [str(n) for n in self.recalls_at], tables)

    def _is_between(self, boxes: Any, between: tuple[float, float]) -> np.ndarray:
        boxes = np.asarray(boxes, np.float64)
        centres = (boxes[..., :2] + boxes[..., 2:4]) / 2 if self.match == "iou" else boxes[..., :2]
        distance = np.linalg.norm(centres, axis=-1)
        return (between[0] <= distance) & (distance < between[1])

    def _has_size(self, low: float, high: float) -> np.ndarray:
        given = np.asarray(self.areas, np.float64)
        return _is_within(np.where(np.isnan(given), areas_of(np.asarray(self.boxes)), given), low, high)


def _is_within(areas: np.ndarray, low: float, high: float) -> np.ndarray:
    return (low <= areas) & (areas <= high)


def _check_settings(match: str | Match, area: str, most: int | None) -> None:
    """Raises TaskError for an unknown setting."""
    if not callable(match) and match not in _THRESHOLDS:
        raise TaskError(f"AveragePrecision.of: match = {match!r} is unknown. Allowed: distance, iou, a function.")
    if area not in _AREAS:
        raise TaskError(f"AveragePrecision.of: area = {area!r} is unknown. Allowed: {', '.join(_AREAS)}.")
    if most is not None and most < 1:
        raise TaskError(f"AveragePrecision.of: max_detections = {most}. Allowed: positive numbers.")


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
    where: str,
    classes: Sequence[str],
    thresholds: Sequence[float],
    ranges: Sequence[tuple[float, float]],
    others: Sequence[str] = (),
) -> None:
    """Raises TaskError if two results of a metric have the same name."""
    names = [*filter(None, classes), *(range_name(low, high) for low, high in ranges), *others]
    names += [f"{limit:g}" for limit in thresholds] if len(thresholds) > 1 else []
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise TaskError(
            f"{where}: two of the classes, thresholds, ranges and sizes give a result named {twice!r}. Rename the "
            "class, such as digit_1, or give each threshold, range and size once."
        )
