"""Matches predictions to labels on the host, in float64, and breaks ties as the evaluation codes of COCO and nuScenes.

Overlaps are never rounded to float32: 70/100 must reach a threshold of 0.7.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

type Match = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Similarity of predictions `[n, 1, dim]` and labels `[n, labels, dim]`, larger for better: `[n, labels]`."""

NO_LABEL, IGNORED_LABEL = -1, -2  # values in place of the label of a prediction
_LARGEST_IOU = 1 - 1e-10  # of a threshold in the COCO evaluation code, so that rounding loses no perfect box


def by_score(scores: np.ndarray, area: str) -> np.ndarray:
    """Returns the indices that sort scores along the last axis, the largest first.

    Of equal scores, the COCO evaluation code takes the first prediction first, and the nuScenes devkit the last one.
    """
    if area != "nuscenes":
        return np.argsort(-scores, axis=-1, kind="stable")
    return scores.shape[-1] - 1 - np.argsort(-scores[..., ::-1], axis=-1, kind="stable")


def class_ranks(scores: np.ndarray, guesses: np.ndarray, area: str) -> np.ndarray:
    """Returns how many predictions of its class and example come before each prediction, `[examples, predictions]`."""
    order = by_score(scores, area)
    classes = np.take_along_axis(guesses, order, 1)
    groups = np.argsort(classes, axis=1, kind="stable")  # by class, and then by score
    grouped, at = np.take_along_axis(classes, groups, 1), np.arange(scores.shape[1])[None]
    begins = np.ones(scores.shape, bool)
    begins[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    ranks, sorted_ranks = np.empty(scores.shape, np.int64), np.empty(scores.shape, np.int64)
    np.put_along_axis(sorted_ranks, groups, at - np.maximum.accumulate(np.where(begins, at, 0), axis=1), 1)
    np.put_along_axis(ranks, order, sorted_ranks, 1)
    return ranks


@dataclasses.dataclass(frozen=True)
class Detections:
    """Predictions and labels of several examples.

    Attributes:
        predicted: `[examples, predictions, dim]`.
        scores: `[examples, predictions]`; a prediction whose score is not finite takes no label.
        guesses: predicted classes, likewise.
        boxes: `[examples, labels, dim]`.
        labels: their classes, `[examples, labels]`; -1 for padding.
        crowds: labels that count neither way and that any number of predictions take, likewise.
        outside: labels that count neither way and that one prediction takes, likewise.
    """

    predicted: np.ndarray
    scores: np.ndarray
    guesses: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray
    outside: np.ndarray


def match_predictions(found: Detections, match: str | Match, thresholds: Sequence[float], area: str) -> np.ndarray:
    """Returns the index of the label that each prediction takes, `[thresholds, examples, predictions]`.

    It is NO_LABEL if there is none, and IGNORED_LABEL if the prediction takes a label that counts neither way.

    Args:
        found: the predictions and labels.
        match: see AveragePrecision.
        thresholds: likewise.
        area: likewise; it selects how ties are broken.
    """
    scores, guesses, labels = found.scores, found.guesses, found.labels
    limits, rows = np.array(thresholds, np.float64)[:, None], np.arange(len(scores))
    if match == "iou" and area == "coco":
        limits = np.minimum(limits, _LARGEST_IOU)
    matched = np.full((len(limits), *scores.shape), NO_LABEL)
    if not found.boxes.size:
        return matched
    predicted, boxes = found.predicted.astype(np.float64), found.boxes.astype(np.float64)
    best_of = _last_best if area == "coco" else _first_best
    taken = np.zeros((len(limits), *labels.shape), bool)
    at = np.arange(len(limits))[:, None], rows[None]
    crowds, ignored = found.crowds, found.crowds | found.outside
    some_crowds, some_ignored = bool(crowds.any()), bool(ignored.any())
    for k in by_score(scores, area).T:  # the prediction of each example with the next score
        box = predicted[rows, k][:, None]
        allowed = (labels == guesses[rows, k][:, None]) & (labels >= 0) & np.isfinite(scores[rows, k])[:, None]
        similar = _known(similarity(match, box, boxes))
        best, value = best_of(np.where(~taken & allowed & ~ignored, similar, -np.inf))  # [thresholds, examples]
        hit = _is_match(match, value, limits)
        taken[(*at, best)] |= hit
        chosen = np.where(hit, best, NO_LABEL)
        if some_ignored:
            if match == "iou" and some_crowds:
                similar = np.where(crowds, _known(similarity(match, box, boxes, crowd=True)), similar)
            free = allowed & (crowds | (found.outside & ~taken))
            other, value = best_of(np.where(free, similar, -np.inf))
            near = _is_match(match, value, limits) & ~hit
            taken[(*at, other)] |= near
            chosen[near] = IGNORED_LABEL
        matched[(*at, k[None])] = chosen
    return matched


def similarity(match: str | Match, predicted: np.ndarray, boxes: np.ndarray, crowd: bool = False) -> np.ndarray:
    """Returns the similarities `[n, labels]`; `crowd` compares the intersection with the area of the prediction."""
    if callable(match):
        return match(predicted, boxes)
    if match == "distance":
        return -np.linalg.norm(predicted - boxes, axis=-1)
    low, high = np.maximum(predicted[..., :2], boxes[..., :2]), np.minimum(predicted[..., 2:], boxes[..., 2:])
    both = np.maximum(high - low, 0).prod(-1)
    whole = areas_of(predicted) if crowd else areas_of(predicted) + areas_of(boxes) - both
    return np.divide(both, whole, out=np.zeros(both.shape), where=both > 0)


def areas_of(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas of boxes (x0, y0, x1, y1), `[..., 4]`, in float64."""
    boxes = np.asarray(boxes, np.float64)
    return np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(-1)


def _is_match(match: str | Match, similar: np.ndarray, limits: np.ndarray) -> np.ndarray:
    return similar > -limits if match == "distance" else similar >= limits


def _known(similar: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(similar), -np.inf, similar)


def _first_best(similar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the index of the largest value along the last axis, the first of equal ones, and this value."""
    best = similar.argmax(-1)
    return best, np.take_along_axis(similar, best[..., None], -1)[..., 0]


def _last_best(similar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `_first_best` returns, for the last of equal values."""
    best = similar.shape[-1] - 1 - similar[..., ::-1].argmax(-1)
    return best, np.take_along_axis(similar, best[..., None], -1)[..., 0]
