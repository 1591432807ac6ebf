import io
import json

import numpy as np
import pytest

from engine.base.errors import DataError, TaskError
from engine.readers.poses import pose_matrices
from engine.submissions.nuscenes import ATTRIBUTES, CLASSES, SENSORS, Format

POSES = [[600.1, 1600.1, 0.5, 1, 0, 0, 0], [-3, 4, 5, 0, 0.6, -0.8, 0], [1, 2, 3, 0.1, -0.2, 0.3, -0.9]]


def example(sample="one", pose=POSES[0], modality="lidar"):
    return {"sample": sample, "ego_to_world": pose_matrices(pose), "modality": modality}


def prediction(count=3, **changes):
    rng = np.random.default_rng(0)
    boxes = rng.uniform(1, 5, (count, 9)).astype(np.float32)
    found = dict(boxes=boxes, score=np.linspace(0.9, 0.1, count), label=np.arange(count) % 10)
    return {**found, "attribute": np.arange(count) % 8 - 1, **changes}


def write(*pairs):
    file = io.BytesIO()
    writer = Format(file)
    for pair in pairs:
        writer.add(*pair)
    writer.finish()
    return json.loads(file.getvalue())


@pytest.mark.parametrize("pose", POSES)
def test_boxes_move_to_the_world(pose):
    predicted = prediction()
    [rows] = write((predicted, example(pose=pose)))["results"].values()
    to_world = pose_matrices(pose)
    for number, (row, box) in enumerate(zip(rows, predicted["boxes"].astype(float), strict=True)):
        wanted = to_world @ pose_matrices([*box[:3], np.cos(box[6] / 2), 0, 0, np.sin(box[6] / 2)])
        found = pose_matrices([*row["translation"], *row["rotation"]])
        np.testing.assert_allclose(found, wanted, rtol=1e-14, atol=1e-12)
        assert row["size"] == box[[4, 3, 5]].tolist()
        np.testing.assert_allclose(row["velocity"], (to_world[:3, :3] @ [*box[7:], 0])[:2], atol=1e-12)
        assert (row["sample_token"], row["detection_name"]) == ("one", CLASSES[number])
        assert row["attribute_name"] == ["", *ATTRIBUTES][number]


def test_rows_that_are_no_boxes_are_left_out_and_the_best_500_stay():
    score = np.array([0.2, -np.inf, 0.9])
    found = write((prediction(score=score, valid=np.array([True, True, False])), example()))
    assert [row["detection_score"] for row in found["results"]["one"]] == [0.2]
    many = write((prediction(600, score=np.arange(600.0)), example()))["results"]["one"]
    assert [row["detection_score"] for row in many] == list(range(599, 99, -1))


def test_file_says_which_inputs_were_used_and_has_every_sample():
    empty = {name: values[:0] for name, values in prediction().items()}
    found = write((empty, example("a", modality="camera,lidar")), (empty, example("b", modality="camera,lidar")))
    assert found["meta"] == {f"use_{name}": name in ("camera", "lidar") for name in SENSORS}
    assert found["results"] == {"a": [], "b": []}
    assert write()["results"] == {}


@pytest.mark.parametrize(
    ("changed", "entries", "text"),
    [
        ({"boxes": np.ones((3, 7))}, {}, r"boxes \[3, 7\], score \[3\].*Allowed: \[boxes, 9\]"),
        ({"boxes": np.full((3, 9), np.nan)}, {}, "sample one: a predicted box is not finite, or has no size"),
        ({"label": np.full(3, 10)}, {}, "sample one: a predicted label or attribute is no index"),
        ({}, {"modality": "sonar"}, "modality = 'sonar': 'sonar' is unknown. Allowed: camera, lidar"),
    ],
)
def test_wrong_predictions_are_one_sentence(changed, entries, text):
    with pytest.raises((TaskError, DataError), match=text):
        write((prediction(**changed), example(**entries)))


def test_samples_must_be_different_and_use_the_same_inputs():
    with pytest.raises(DataError, match="sample one: it is in the dataset twice"):
        write((prediction(), example()), (prediction(), example()))
    with pytest.raises(DataError, match="sample two: modality is 'camera', but 'lidar' before"):
        write((prediction(), example()), (prediction(), example("two", modality="camera")))
