"""Matches and average precision equal the golden numbers of pycocotools, at ties and limits too."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.references import average_precision as coco
from benchmarks.references.exchange import largest_difference
from engine.driving.matching import (
    IGNORED_LABEL,
    NO_LABEL,
    Detections,
    by_score,
    class_ranks,
    match_predictions,
    similarity,
)
from engine.metrics import AveragePrecision
from engine.metrics.results import named_results, scalars
from tests.merging import results

# Written by: python -m benchmarks.references --only=average_precision --golden=tests/driving/golden/references
GOLDEN = Path(__file__).parent / "golden" / "references" / "average_precision.json"


def boxes(*rows):
    return np.array([rows], np.float32)  # one example


def matched(predicted, scores, labels, *, area="coco", thresholds=(0.5,), crowds=None, outside=None, match="iou"):
    """Returns the labels that predictions of one class in one example take, by threshold."""
    none = np.zeros(labels.shape[:2], bool)
    scene = Detections(
        predicted=predicted,
        scores=np.array([scores], np.float32),
        guesses=np.zeros(predicted.shape[:2], int),
        boxes=labels,
        labels=np.zeros(labels.shape[:2], int),
        crowds=none if crowds is None else np.array([crowds]),
        outside=none if outside is None else np.array([outside]),
    )
    found = match_predictions(scene, match, thresholds, area)
    return found[:, 0].tolist()


def test_results_equal_pycocotools():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    pairs = {}
    for images, wanted in zip(golden["sets"], golden["results"], strict=True):
        for item, found in coco.compared(coco.engine_results(images), wanted).items():
            pairs.setdefault(item, []).extend(found)
    assert {item: largest_difference(found) for item, found in pairs.items()} == pytest.approx(
        dict.fromkeys(pairs, 0), abs=coco.TOLERANCE
    )


def test_overlap_of_70_percent_reaches_the_threshold_of_0_7():
    predicted, label = np.array([[[0, 0, 10, 7]]]), np.array([[[0, 0, 10, 10]]])
    one = np.ones((1, 1))
    found = results(AveragePrecision.of(predicted, one, one, label, one, classes=2, match="iou"))
    assert found["m/0.7"] == 1 and found["m/0.75"] == 0
    assert found["m"] == pytest.approx(0.5, abs=1e-12)


def test_of_equal_overlaps_coco_takes_the_last_label_and_others_the_first():
    predicted, labels = boxes((0, 0, 10, 10)), boxes((0, 0, 10, 9), (0, 1, 10, 10), (0, 0, 10, 5))
    assert matched(predicted, [1], labels) == [[1]]
    assert matched(predicted, [1], labels, area="voc") == [[0]]
    centres = np.array([[[1.0, 0], [-1, 0]]])
    assert matched(np.zeros((1, 1, 2)), [1], centres, area="nuscenes", match="distance", thresholds=(2,)) == [[0]]


def test_of_equal_scores_coco_takes_the_first_prediction_and_nuscenes_the_last():
    predicted, label = boxes((0, 0, 10, 8), (0, 0, 10, 9)), boxes((0, 0, 10, 10))
    assert matched(predicted, [0.5, 0.5], label) == [[0, NO_LABEL]]
    assert matched(predicted, [0.5, 0.5], label, area="nuscenes") == [[NO_LABEL, 0]]
    scores = np.array([1.0, 3, 3, -np.inf, 2, 3])
    assert by_score(scores, "coco").tolist() == [1, 2, 5, 4, 0, 3]
    assert by_score(scores, "nuscenes").tolist() == [5, 2, 1, 4, 0, 3]


def test_a_crowd_takes_any_number_of_predictions_and_a_label_of_another_size_one():
    predicted = boxes((0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10))
    label = boxes((0, 0, 10, 10))
    assert matched(predicted, [3, 2, 1], label, crowds=[True]) == [[IGNORED_LABEL] * 3]
    assert matched(predicted, [3, 2, 1], label, outside=[True]) == [[IGNORED_LABEL, NO_LABEL, NO_LABEL]]
    both = boxes((0, 0, 10, 10), (0, 0, 10, 6))
    assert matched(predicted, [3, 2, 1], both, outside=[True, False]) == [[1, IGNORED_LABEL, NO_LABEL]]


def test_thresholds_of_one_are_met_by_equal_boxes_for_coco():
    box = boxes((0.1, 0.1, 0.3, 0.7))
    assert matched(box, [1], box, thresholds=(1.0,)) == [[0]]


def test_boxes_without_an_area_overlap_nothing_and_tiny_ones_do():
    point, tiny = boxes((1, 1, 1, 1)), boxes((0, 0, 2**-23, 2**-23))
    assert similarity("iou", point, point).tolist() == [[0]]
    assert similarity("iou", tiny, tiny).tolist() == [[1]]


def test_ranks_count_the_better_predictions_of_the_class_and_example():
    scores = np.array([[1.0, 2, 2, 0], [5, 4, 6, 7]])
    guesses = np.array([[0, 0, 0, 1], [1, 1, 0, 1]])
    assert class_ranks(scores, guesses, "coco").tolist() == [[2, 0, 1, 0], [1, 2, 0, 0]]
    assert class_ranks(scores, guesses, "nuscenes").tolist() == [[2, 1, 0, 0], [1, 2, 0, 0]]


def test_only_the_predictions_of_the_highest_scores_count():
    predicted = np.repeat(boxes((50, 50, 60, 60)), 101, 1)
    predicted[0, 100] = 0, 0, 10, 10
    scores, guesses, label = np.linspace(1, 0.5, 101)[None], np.zeros((1, 101)), boxes((0, 0, 10, 10))

    def found(**options):
        found = AveragePrecision.of(
            predicted, scores, guesses, label, np.zeros((1, 1)), classes=1, match="iou", **options
        )
        return results(found.with_recall((1, 10)))

    assert found()["m"] == 0  # 100 for "coco"
    assert found(max_detections=101)["m"] == pytest.approx(1 / 101)
    assert found(area="voc")["m"] == pytest.approx(1 / 101)
    assert found(area="voc", max_detections=100)["m"] == 0
    scores[0, 100] = 2
    assert found()["m"] == found()["m/recall/1"] == 1


def test_a_score_of_a_size_ranks_examples_like_each_alone():
    arrays = coco.padded_arrays(coco.image_set(3))

    def metric(rows):
        chosen = {name: value[rows] for name, value in arrays.items()}
        areas = chosen.pop("areas")
        found = AveragePrecision.of(**chosen, classes=coco.CLASSES, match="iou")
        return found.by_size(areas=areas).with_recall()

    found = list(metric(slice(None)).compute_each("small/recall/10"))
    assert len(found) == 5 and "large" not in found[0]
    for row, each in enumerate(found):
        wanted = metric(slice(row, row + 1)).compute()
        for name in ("small", "recall"):
            assert scalars(named_results(name, each[name], "")) == pytest.approx(
                scalars(named_results(name, wanted[name], "")), nan_ok=True
            )
