"""Frames of KITTI as batches: boxes in the frame of the lidar, all labels for the metric, and splits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convoy_zoo.models.miniatures import kitti as miniature
from convoy_zoo.models.street.kitti import TYPES, KittiDetection, frames
from convoy_zoo.models.street.kitti_frames import camera_boxes, clipped, image_boxes, lidar_boxes
from engine import DataError
from engine.metrics import KittiAveragePrecision
from engine.readers.kitti import TYPES as NAMES

LABELS = ("label_boxes", "label_2d", "label_type", "truncated", "occluded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("kitti")
    miniature.write(path, frames=2, held_out=1, testing=1)
    return str(path)


def test_boxes_and_points_are_in_the_frame_of_the_lidar(folder):
    source = frames(folder, reach=32.0)
    for example in (source[index] for index in range(len(source))):
        boxes, real = example["boxes"][example["mask"]["objects"]], example["mask"]["labels"]
        known = np.isin(example["label_type"][real], list(TYPES))
        camera = camera_boxes(boxes.astype(np.float64), example["to_camera"].astype(np.float64), np)
        np.testing.assert_allclose(camera[:, :6], example["label_boxes"][real][known][:, :6], atol=1e-4)
        points = example["points"][example["mask"]["points"]]
        assert len(points) > 1000 and points[:, 0].min() > 0 and np.abs(points[:, :2]).max() < 32
        assert np.isnan(boxes[:, 7:]).all() and (boxes[:, 0] > 0).all()
    assert [NAMES[number] for number in TYPES] == ["Car", "Pedestrian", "Cyclist"]


def test_labels_as_predictions_are_perfect(folder):
    example = frames(folder, "trainval")[1]
    one = {name: example[name][None] for name in LABELS}
    kept = np.isin(one["label_type"], list(TYPES)) & example["mask"]["labels"]
    guesses = np.array([TYPES.get(number, 0) for number in one["label_type"][0].tolist()])[None]
    own = [one["label_boxes"], one["label_2d"], np.where(kept, 0.5, 0), guesses]
    args = [*own, *one.values(), example["mask"]["labels"][None]]
    precision = KittiAveragePrecision.of(*args, predicted_where=kept).compute()
    height = one["label_2d"][..., 3] - one["label_2d"][..., 1]
    counted = (one["label_type"] == 0) & (height >= 25) & (one["truncated"] <= 0.5) & example["mask"]["labels"]
    assert counted.sum() > 3
    for view in ("2d", "bev", "3d"):
        assert precision[view]["car"]["hard"] == pytest.approx((counted.sum() - 1) / 40)


def test_frames_of_testing_have_no_labels_and_a_split_without_names_is_an_error(folder):
    example = frames(folder, "test")[0]
    assert example["frame"] == "000000" and "boxes" not in example
    assert example["image_size"].tolist() == [375, 1242]
    with pytest.raises(DataError, match=r"ImageSets/mini.txt: absent. Write the names of the frames"):
        frames(folder, "mini")


def test_predictions_are_boxes_of_the_camera_and_of_the_image_and_give_the_metric(folder):
    source = frames(folder, "val", reach=16.0, points=8000, objects=16, labels=24)
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], {k: v for k, v in source[0].items() if k != "frame"})
    task = KittiDetection(width=4, cells=(8, 8), capacity=100, predictions=3)
    metric = jax.jit(lambda: task.evaluate(task.build(nnx.Rngs(0)), batch)["kitti"])()
    boxes = np.asarray(metric.predicted, np.float64)
    assert boxes.shape == (1, 3, 7) and len(np.unique(boxes)) > 10
    wanted = image_boxes(boxes, np.asarray(batch["projection"], np.float64), np)
    np.testing.assert_allclose(metric.predicted_2d, clipped(wanted, np.array([[375, 1242]]), np), atol=0.5)
    found = lidar_boxes(boxes, np.asarray(batch["to_camera"], np.float64), np)[..., :2]
    assert (found > [-5, -45]).all() and (found < [75, 45]).all()  # the space, with a margin of some metres
    real = np.asarray(batch["mask"]["labels"])
    assert np.asarray(metric.labels)[real].tolist() == np.asarray(batch["label_type"])[real].tolist()
    assert metric.compute().keys() == {"", "2d", "bev", "3d"}
