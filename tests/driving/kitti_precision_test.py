"""KITTI's average precision equals the numbers of mmdet3d; borders of difficulties are those of the label files."""

import json
import math
import pathlib

import numpy as np
import pytest

from benchmarks.references import kitti_precision as reference
from benchmarks.references.exchange import largest_difference
from engine.base.errors import TaskError
from engine.driving.kitti_precision import LABELS
from engine.metrics import KittiAveragePrecision
from engine.readers.kitti import TYPES
from tests.merging import results

# Written by: python -m benchmarks.references --only=kitti_precision --golden=tests/driving/golden/references
GOLDEN = pathlib.Path(__file__).parent / "golden" / "references" / "kitti_precision.json"
CAR, PEDESTRIAN, VAN, DONT_CARE = 0, 3, 1, -1


def frame(count=60, **changes):
    """Returns arguments of one frame: cars 10 m apart, each of which is found."""
    boxes = np.zeros((1, count, 7), np.float32)
    boxes[0, :, 0], boxes[..., 3:6] = 10 * np.arange(count), (1.5, 2, 4)
    boxes_2d = np.zeros((1, count, 4), np.float32)
    boxes_2d[..., 0], boxes_2d[..., 2], boxes_2d[..., 3] = boxes[..., 0], boxes[..., 0] + 9, 50
    row = np.zeros((1, count))
    found = {"predicted": boxes, "predicted_2d": boxes_2d, "scores": row + np.linspace(0.9, 0.1, count), "guesses": row}
    found |= {"boxes": boxes, "boxes_2d": boxes_2d, "labels": row, "truncated": row, "occluded": row}
    return found | changes


def values(arguments, size=None, **options):
    return results(KittiAveragePrecision.of(**arguments, **options), size)


def test_ties_ignored_labels_and_regions_equal_mmdet3d():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    pairs = []
    for case, wanted in zip(golden["sets"], golden["results"], strict=True):
        got = reference.engine_results(case)
        pairs += [(got[name], math.nan if value is None else value) for name, value in wanted.items()]
    assert largest_difference(pairs) <= reference.TOLERANCE
    known = [value for result in golden["results"] for value in result.values() if value is not None]
    assert len({round(value, 6) for value in known}) > 50


def test_perfect_cars_are_1_and_other_classes_have_no_value():
    found = values(frame())
    assert found["m"] == found["m/2d/car/easy"] == found["m/bev/car/hard"] == found["m/3d/car/moderate"] == 1
    assert math.isnan(found["m/3d/cyclist/easy"])


def test_ten_labels_reach_nine_of_forty_recalls():
    assert values(frame(10))["m/3d/car/easy"] == pytest.approx(9 / 40)


def test_padded_batches_of_any_size_give_the_same():
    case = json.loads(GOLDEN.read_text(encoding="utf-8"))["sets"][2]
    arguments = {name: np.array(case[name]) for name in reference.NAMES}
    whole = values(arguments)
    assert whole["m"] > 0
    assert values(arguments, 5) == pytest.approx(whole, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "value", "levels"),
    [
        ("truncated", 0.15, "easy moderate hard"),  # 0.15 in float32 is above 0.15
        ("truncated", 0.16, "moderate hard"),
        ("truncated", 0.5, "hard"),
        ("truncated", 0.51, ""),
        ("occluded", 0, "easy moderate hard"),
        ("occluded", 1, "moderate hard"),
        ("occluded", 2, "hard"),
        ("occluded", 3, ""),
    ],
)
def test_difficulty_counts_labels_up_to_its_border(name, value, levels):
    found = values(frame(50, **{name: np.full((1, 50), value)}))
    known = [level for level in ("easy", "moderate", "hard") if not math.isnan(found[f"m/3d/car/{level}"])]
    assert " ".join(known) == levels


@pytest.mark.parametrize(("top", "levels"), [(40.1, "easy moderate hard"), (25, "moderate hard"), (24.9, "")])
def test_difficulty_counts_boxes_from_its_height(top, levels):
    case = frame(50)
    low = case["boxes_2d"].copy()
    low[..., 1], low[..., 3] = 100.1, 100.1 + top
    found = values(case | {"boxes_2d": low, "predicted_2d": low})
    known = [level for level in ("easy", "moderate", "hard") if not math.isnan(found[f"m/2d/car/{level}"])]
    assert " ".join(known) == levels


def test_vans_and_dont_care_regions_forgive_predictions_that_trucks_do_not():
    kinds = {}
    for name, label in (("van", VAN), ("region", DONT_CARE), ("truck", 2)):
        labels = np.zeros((1, 60))
        labels[0, :10] = label  # those of the highest scores
        kinds[name] = values(frame(labels=labels))
    assert kinds["van"]["m/3d/car/easy"] == kinds["van"]["m/2d/car/easy"] == 1
    assert kinds["region"]["m/2d/car/easy"] == 1
    assert kinds["region"]["m/3d/car/easy"] == kinds["truck"]["m/3d/car/easy"] < 1
    assert kinds["truck"]["m/2d/car/easy"] < 1


def test_guess_of_another_class_is_a_miss_and_padding_counts_neither_way():
    case = frame(50)
    wrong = np.zeros((1, 50))
    wrong[0, :25] = 1
    assert values(case | {"guesses": wrong})["m/3d/car/easy"] < 0.6
    kept = np.ones((1, 50), bool)
    kept[0, 48:] = False
    assert values(case, where=kept, predicted_where=kept)["m/3d/car/easy"] == 1


def test_worst_frames_are_ranked_by_the_entry_that_is_named():
    one, other = frame(41), frame(41, scores=np.full((1, 41), -np.inf))
    both = {name: np.concatenate([one[name], other[name]]) for name in one}
    each = list(KittiAveragePrecision.of(**both).compute_each("bev/car/easy"))
    assert [row["bev"]["car"]["easy"] for row in each] == [1, 0]
    assert [row[""] for row in KittiAveragePrecision.of(**both).compute_each("")] == [1, 0]


def test_numbers_of_types_are_those_of_the_reader():
    assert {name: TYPES.index(name.capitalize()) for name in LABELS} == LABELS


def test_errors_name_what_is_wrong():
    with pytest.raises(TaskError, match=r"predicted \[1, 3, 6\].*Allowed: predictions \[batch, n, 7\]"):
        KittiAveragePrecision.of(**frame(3, predicted=np.zeros((1, 3, 6))))
    with pytest.raises(TaskError, match="1 of the scores of predictions are NaN"):
        KittiAveragePrecision.of(**frame(2, scores=np.array([[0.5, np.nan]]))).compute()
