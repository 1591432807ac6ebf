"""The detection score equals the numbers of the nuscenes-devkit, and counts only the labels of a range."""

import json
import pathlib

import numpy as np
import pytest

from benchmarks.references import detection_score as devkit
from benchmarks.references.exchange import largest_difference
from engine.base.errors import TaskError
from engine.metrics import DetectionScore
from tests.merging import results

GOLDEN = pathlib.Path(__file__).parent / "golden" / "detection_score.json"  # by golden/make_detection_score.py
# Written by: python -m benchmarks.references --only=detection_score --golden=tests/driving/golden/references
TIES = GOLDEN.parent / "references" / "detection_score.json"
CLASSES = ("car", "pedestrian", "barrier", "traffic_cone")
BY_THRESHOLD = {f"ap/{limit}" for limit in ("0.5", "1", "2", "4")}  # not given for a range
NUSCENES = {
    "classes": CLASSES,
    "farthest": {"car": 50, "pedestrian": 40, "barrier": 30, "traffic_cone": 30},
    "without": {"traffic_cone": ("orientation", "velocity", "attribute"), "barrier": ("velocity", "attribute")},
    "half_turn": ("barrier",),
}


def arguments(case):
    names = ("predicted", "scores", "guesses", "boxes", "labels")
    return [np.array(case[name]) for name in names]


def found(case, **options):
    attributes = (np.array(case["predicted_attributes"]), np.array(case["attributes"]))
    score = DetectionScore.of(*arguments(case), attributes=attributes, **{**NUSCENES, **options})
    return {name[2:]: value for name, value in results(score, 3).items() if name != "m"} | {"": results(score, 3)["m"]}


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["accurate", "coarse", "poor"])
def test_score_equals_the_devkit(golden, name):
    case = golden[name]
    wanted = case["results"]
    got = found(case)
    assert set(wanted) == set(got)
    for key, value in wanted.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-6, atol=1e-7, err_msg=key)


def test_tied_scores_and_distances_equal_the_devkit():
    ties = json.loads(TIES.read_text(encoding="utf-8"))
    pairs = []
    for case, wanted in zip(ties["sets"], ties["results"], strict=True):
        got = devkit.engine_results(case)
        pairs += [(got[name], value) for name, value in wanted.items()]
    assert largest_difference(pairs) <= devkit.TOLERANCE


def test_distances_to_the_limit_are_compared_in_float64(golden):
    box = np.array([[[36.3696174621582, 34.31108856201172, 0, 1, 1, 1, 0, 0, 0]]], np.float32)
    assert np.linalg.norm(box[0, 0, :2].astype(np.float64)) < 50 <= np.linalg.norm(box[0, 0, :2])
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    found = results(DetectionScore.of(box, one, zero, box, zero, classes=["car"], farthest={"car": 50}))
    assert found["m/ap"] == pytest.approx(1)


def test_a_range_of_everything_equals_the_whole_and_parts_do_not(golden):
    got = found(golden["coarse"], ranges=((0, 1000), (0, 20)))
    whole = {name: value for name, value in got.items() if not name.startswith(("0-1000", "0-20"))}
    same = {name.removeprefix("0-1000").removeprefix("/"): got[name] for name in got if name.startswith("0-1000")}
    assert same.keys() == {key for key in whole if key not in BY_THRESHOLD}
    for key, value in same.items():
        np.testing.assert_allclose(value, whole[key], rtol=1e-12, err_msg=key)
    assert got["0-20/ap"] != got["ap"]


def test_a_range_equals_the_score_of_the_labels_and_predictions_in_it(golden):
    case = golden["accurate"]
    predicted, scores, guesses, boxes, labels = arguments(case)
    predicted[..., :6] = boxes[:, [*range(10), 0, 1, 2, 3], :6]  # no match crosses the limit
    guesses = labels[:, [*range(10), 0, 1, 2, 3]]
    near, own = (np.linalg.norm(x[..., :2], axis=-1) < 25 for x in (boxes, predicted))
    options = {"classes": CLASSES, "attributes": (np.ones(guesses.shape), np.ones(labels.shape))}
    part = results(DetectionScore.of(predicted, scores, guesses, boxes, labels, ranges=((0, 25),), **options))
    masked = DetectionScore.of(predicted, scores, guesses, boxes, labels, near, predicted_where=own, **options)
    wanted = results(masked)
    for key, value in wanted.items():
        if key[2:] not in BY_THRESHOLD:
            np.testing.assert_allclose(part[key.replace("m", "m/0-25", 1)], value, rtol=1e-12, err_msg=key)


def test_perfect_boxes_score_one_with_and_without_attributes(golden):
    _, scores, _, boxes, labels = arguments(golden["poor"])
    boxes, ones = np.nan_to_num(boxes), np.ones(labels.shape)
    perfect = DetectionScore.of(boxes, scores[:, :10], labels, boxes, labels, classes=CLASSES)
    got = results(perfect)
    assert got["m"] == pytest.approx(1) and np.isnan(got["m/attribute_error"])
    wrong = DetectionScore.of(
        boxes, scores[:, :10], labels, boxes, labels, classes=CLASSES, attributes=(ones, 2 * ones)
    )
    assert results(wrong)["m"] == pytest.approx(0.9) and results(wrong)["m/attribute_error"] == 1


def test_a_class_without_labels_has_no_value_and_no_labels_give_none(golden):
    predicted, scores, guesses, boxes, labels = arguments(golden["accurate"])
    only = results(DetectionScore.of(predicted, scores, guesses, boxes, labels, labels == 0, classes=CLASSES))
    assert np.isnan(only["m/ap/pedestrian"]) and only["m/ap"] == only["m/ap/car"]
    none = results(DetectionScore.of(predicted, scores, guesses, boxes[:, :0], labels[:, :0], classes=CLASSES))
    assert none.keys() == only.keys() and np.isnan(list(none.values())).all()


def test_wrong_arguments_are_refused(golden):
    args = arguments(golden["accurate"])
    with pytest.raises(TaskError, match=r"DetectionScore.of: predicted \[8, 14, 7\]"):
        DetectionScore.of(args[0][..., :7], *args[1:], classes=CLASSES)
    with pytest.raises(TaskError, match=r"DetectionScore.of: two of the classes, .* give a result named '0-20'"):
        DetectionScore.of(*args, classes=CLASSES, ranges=((0, 20), (0, 20.000001)))
    with pytest.raises(TaskError, match="class 'tram' is unknown"):
        DetectionScore.of(*args, classes=CLASSES, farthest={"tram": 3})
    with pytest.raises(TaskError, match="error 'size' is unknown"):
        DetectionScore.of(*args, classes=CLASSES, without={"car": ("size",)})
