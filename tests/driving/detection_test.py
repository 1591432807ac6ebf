"""Average precision equals a loop over predictions, and scikit-learn's where every label is found."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from engine.base.errors import TaskError
from engine.driving.ranked import average_precision
from engine.metrics import AveragePrecision
from engine.metrics.state import MetricStates, compute
from tests.merging import results
from tests.properties import examples

EXAMPLES, PREDICTIONS, LABELS, CLASSES = 4, 6, 3, ("car", "bike")


def random_scenes(seed, dim):
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 6, (EXAMPLES, LABELS, 2))
    predicted = boxes[:, rng.integers(0, LABELS, PREDICTIONS)] + rng.normal(0, 0.7, (EXAMPLES, PREDICTIONS, 2))
    if dim == 4:
        boxes, predicted = (np.concatenate([x, x + rng.uniform(0.5, 3, x.shape)], -1) for x in (boxes, predicted))
    return {
        "predicted": predicted.astype(np.float32),
        "scores": rng.permutation(EXAMPLES * PREDICTIONS).reshape(EXAMPLES, PREDICTIONS).astype(np.float32),
        "guesses": rng.integers(0, 2, (EXAMPLES, PREDICTIONS)),
        "boxes": boxes.astype(np.float32),
        "labels": rng.integers(0, 2, (EXAMPLES, LABELS)),
        "where": rng.random((EXAMPLES, LABELS)) < 0.8,
        "predicted_where": rng.random((EXAMPLES, PREDICTIONS)) < 0.8,
        "ignored": rng.random((EXAMPLES, LABELS)) < rng.choice([0, 0.3]),
    }


def intersection(a, b):
    sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    return sides[0] * sides[1]


def in_crowd(box, label, limit):
    if len(box) == 2:
        return np.linalg.norm(box - label) < limit
    return intersection(box, label) / np.prod(box[2:] - box[:2]) >= limit


def iou(a, b):
    both = intersection(a, b)
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def centre(box):
    return box if len(box) == 2 else (box[:2] + box[2:]) / 2


def loop(scene, cls, limit, between, area):
    """One class at one threshold, prediction by prediction over all examples."""
    order = np.argwhere(scene["predicted_where"] & (scene["guesses"] == cls)).tolist()
    order.sort(key=lambda at: -scene["scores"][tuple(at)])
    low, high = between or (0, np.inf)
    present = scene["where"] & (scene["labels"] == cls) & np.isfinite(scene["boxes"]).all(-1)
    real, crowds = present & ~scene["ignored"], present & scene["ignored"]
    total = sum(low <= np.linalg.norm(centre(scene["boxes"][at])) < high for at in zip(*np.nonzero(real), strict=True))
    taken, hits = set(), []
    for n, k in order:
        box, best = scene["predicted"][n, k], None
        for g in np.flatnonzero(real[n]):
            if (n, g) in taken:
                continue
            label = scene["boxes"][n, g]
            value = -np.linalg.norm(box - label) if len(box) == 2 else iou(box, label)
            if best is None or value > best[0]:
                best = (value, g)
        hit = best is not None and (best[0] > -limit if len(box) == 2 else best[0] >= limit)
        if best is not None and hit:
            taken.add((n, best[1]))
            box = scene["boxes"][n, best[1]]
        elif any(in_crowd(box, scene["boxes"][n, g], limit) for g in np.flatnonzero(crowds[n])):
            continue
        if low <= np.linalg.norm(centre(box)) < high:
            hits.append(hit)
    if not total:
        return np.nan
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    recall = [sum(hits[: i + 1]) / total for i in range(len(hits))]
    if area == "nuscenes":
        values = [0.0] * 101 if not any(hits) else np.interp(np.linspace(0, 1, 101), recall, precision, right=0)
        return np.mean([max(p - 0.1, 0) for p in values[11:]]) / 0.9
    best = [max([p for p, r in zip(precision, recall, strict=True) if r >= at], default=0.0) for at in recall]
    if area == "coco":
        levels = np.linspace(0, 1, 101)
        return np.mean([max([p for p, r in zip(best, recall, strict=True) if r >= at], default=0) for at in levels])
    heights = best if area == "voc" else precision
    return sum(p * (r - before) for p, r, before in zip(heights, recall, [0, *recall], strict=False))


def mean(values):
    known = [value for value in values if not np.isnan(value)]
    return np.mean(known) if known else np.nan


@examples(25)
@given(st.integers(0, 10**6), st.sampled_from(["sum", "voc", "coco", "nuscenes"]), st.sampled_from([2, 4]))
def test_average_precision_equals_a_loop(seed, area, dim):
    scene = random_scenes(seed, dim)
    limits, ranges = ((0.4, 1.2) if dim == 2 else (0.3, 0.6)), ((0, 4), (4, 20))
    found = results(
        AveragePrecision.of(
            **scene,
            classes=CLASSES,
            match="distance" if dim == 2 else "iou",
            thresholds=limits,
            ranges=ranges,
            area=area,
        ),
        3,
    )
    everywhere = {(c, t): loop(scene, c, t, None, area) for c in range(2) for t in limits}
    expected = {"m": mean(everywhere.values())}
    expected |= {f"m/{t:g}": mean([everywhere[0, t], everywhere[1, t]]) for t in limits}
    expected |= {f"m/{name}": mean([everywhere[c, t] for t in limits]) for c, name in enumerate(CLASSES)}
    for low, high in ranges:
        near = {(c, t): loop(scene, c, t, (low, high), area) for c in range(2) for t in limits}
        expected[f"m/{low}-{high}"] = mean(near.values())
        expected |= {f"m/{low}-{high}/{name}": mean([near[c, t] for t in limits]) for c, name in enumerate(CLASSES)}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_score_without_a_rank_is_an_error(score):
    scene = random_scenes(3, 2)
    scene["scores"][0, 0], scene["predicted_where"][0, 0] = score, True
    with pytest.raises(TaskError, match="metric 'm': 1 of the scores of predictions are NaN or infinite"):
        results(AveragePrecision.of(**scene, classes=CLASSES))
    scene["predicted_where"][0, 0] = False
    assert results(AveragePrecision.of(**scene, classes=CLASSES))["m"] > 0


@pytest.mark.parametrize("dim", [2, 4])
def test_boxes_that_are_not_finite_do_not_affect_others(dim):
    scene, match, limits = random_scenes(3, dim), *(("distance", [2.0]) if dim == 2 else ("iou", [0.1]))
    broken = {name: value.copy() for name, value in scene.items()}
    broken["boxes"][:, 0] = [np.nan, np.inf, -np.inf, np.nan][:dim]
    scene["where"][:, 0] = False
    found, expected = (
        results(AveragePrecision.of(**values, classes=CLASSES, match=match, thresholds=limits))
        for values in (broken, scene)
    )
    assert found == pytest.approx(expected, nan_ok=True) and expected["m"] > 0
    broken["predicted"][:, 0] = np.nan
    scene["predicted"][:, 0] = 1e6
    found, expected = (
        results(AveragePrecision.of(**values, classes=CLASSES, match=match, thresholds=limits))
        for values in (broken, scene)
    )
    assert found == pytest.approx(expected, nan_ok=True)


@examples(25)
@given(st.integers(0, 10**6))
def test_average_precision_with_all_labels_found_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    hits, scores = rng.random(20) < 0.5, rng.integers(0, 8, 20)  # with ties
    hits[0] = True
    expected = average_precision_score(hits, scores)
    assert average_precision(scores, hits, int(hits.sum()), "sum") == pytest.approx(expected, abs=1e-12)
    order = rng.permutation(20)
    assert average_precision(scores[order], hits[order], int(hits.sum()), "sum") == pytest.approx(expected, abs=1e-12)


def test_batches_of_several_lengths_give_the_same_result():
    scene = random_scenes(5, 2)
    scene["predicted_where"][:2, 4:] = False  # so the first batch needs 4 predictions and 2 labels
    scene["where"][:2, 2:] = False

    def part(rows, predictions, labels):
        sizes: dict[str, int] = dict.fromkeys(("predicted", "scores", "guesses", "predicted_where"), predictions)
        cut = {key: value[rows, : sizes.get(key, labels)] for key, value in scene.items()}
        return {"m": AveragePrecision.of(**cut, classes=CLASSES)}

    whole, short = part(slice(2, 4), PREDICTIONS, LABELS), part(slice(0, 2), 4, 2)
    states = MetricStates(whole)
    merger = states.merger()
    for batch in (short, whole):
        merger.add(states.reduce(batch, jnp.ones(2)))
    found = compute("m", merger.metrics()["m"])
    assert found == pytest.approx(results(AveragePrecision.of(**scene, classes=CLASSES)), nan_ok=True)


def negative_offset(predicted, boxes):
    return -np.abs(predicted - boxes).max(-1)


def test_match_may_be_a_function():
    scene = random_scenes(3, 2)
    found = results(AveragePrecision.of(**scene, classes=2, match=negative_offset, thresholds=[-0.5], area="voc"))
    assert list(found) == ["m"]
    assert 0 < found["m"] < 1


def test_scenes_without_labels_or_predictions_have_no_or_zero_precision():
    nothing, one = np.zeros((2, 0)), np.ones((2, 1))
    empty = AveragePrecision.of(np.ones((2, 1, 2)), one, one, np.zeros((2, 0, 2)), nothing, classes=2)
    assert np.isnan(list(results(empty).values())).all()
    missed = AveragePrecision.of(np.zeros((2, 0, 2)), nothing, nothing, np.ones((2, 1, 2)), one, classes=2)
    assert results(missed)["m"] == 0
    assert missed.thresholds == (0.5, 1, 2, 4)
    assert missed.area == "nuscenes"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"match": "giou"}, "match = 'giou' is unknown"),
        ({"area": "kitti"}, "area = 'kitti' is unknown"),
        ({"classes": ("0", "1"), "thresholds": (0.5, 1)}, "two of the classes, .* give a result named '1'. Rename the"),
        ({"max_detections": 0}, "max_detections = 0. Allowed: positive numbers"),
        ({"match": "iou"}, r"predicted \[4, 6, 2\], .*, where dim is 4 for iou"),
        ({"boxes": np.zeros((4, 3, 3))}, r"predicted \[4, 6, 2\], .* boxes \[4, 3, 3\]"),
        ({"scores": np.zeros((4, 5))}, r"predicted \[4, 6, 2\], scores \[4, 5\]"),
        ({"ignored": np.zeros((4, 2))}, r"found ignored of shape \[4, 2\] for values of shape \[4, 3\]. Allowed"),
        ({"predicted_where": np.zeros((4, 2))}, r"found predicted_where of shape \[4, 2\] for values"),
    ],
)
def test_unknown_settings_and_wrong_shapes_are_errors(changes, text):
    with pytest.raises(TaskError, match=text):
        AveragePrecision.of(**{**random_scenes(0, 2), "classes": 2, **changes})


def test_wrong_sizes_and_recalls_are_errors():
    scene = random_scenes(0, 4)
    found = AveragePrecision.of(**scene, classes=("small", "recall"), match="iou", max_detections=5)
    with pytest.raises(TaskError, match=r"by_size: two of the classes, .* and sizes give a result named 'small'"):
        found.by_size()
    with pytest.raises(TaskError, match=r"by_size: found areas of shape \[4, 2\]. Allowed: \[4, 3\], as labels"):
        found.by_size({"tiny": (0, 1)}, areas=np.ones((4, 2)))
    with pytest.raises(TaskError, match=r"with_recall: two of the classes, .* give a result named 'recall'"):
        found.with_recall([1])
    with pytest.raises(TaskError, match=r"at = \[1, 10\]. Allowed: positive numbers up to max_detections = 5"):
        found.with_recall([1, 10])
    with pytest.raises(TaskError, match=r"sizes are areas of boxes\. Set match='iou'"):
        AveragePrecision.of(**random_scenes(0, 2), classes=1).by_size()
