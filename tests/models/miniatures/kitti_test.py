"""The miniature of KITTI is read by the engine's reader, its labels fit its images, and it is the same every time."""

import hashlib

import numpy as np
import pytest

from convoy_zoo.models.miniatures import kitti
from convoy_zoo.models.street.kitti_frames import camera_boxes, clipped, image_boxes
from engine.readers import KittiObject

CHOICES = dict(frames=2, held_out=1, testing=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("kitti")
    kitti.write(path, **CHOICES)
    return path


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    kitti.write(tmp_path / "same", **CHOICES)
    assert digests(tmp_path / "same") == digests(folder)
    kitti.write(tmp_path / "other", frames=1, held_out=0, testing=0, seed=1)
    name = "training/velodyne/000000.bin"
    assert digests(tmp_path / "other")[name] != digests(folder)[name]


def test_layout_is_that_of_kitti(folder):
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    parts = {"velodyne": "bin", "image_2": "png", "calib": "txt", "label_2": "txt"}
    wanted = {f"training/{part}/00000{i}.{end}" for part, end in parts.items() for i in range(3)}
    wanted |= {f"testing/{part}/000000.{end}" for part, end in parts.items() if part != "label_2"}
    assert found == wanted | {f"ImageSets/{split}.txt" for split in ("train", "val", "trainval", "test")}
    assert (folder / "ImageSets" / "val.txt").read_text() == "000002\n"
    assert len(KittiObject(str(folder), "testing", ("lidar", "image", "calib"))) == 1


def test_labels_fit_the_calibration_the_image_and_the_points(folder):
    kinds = set()
    for example in KittiObject(str(folder)):
        assert example["image"].shape == (375, 1242, 3)
        kinds |= set(example["box_name"].tolist())
        real = example["box_type"] >= 0
        parts = [example["box_bottom"], example["box_size"], example["box_yaw"][:, None]]
        boxes = np.concatenate(parts, 1)[real].astype(np.float64)
        calib = example["calib"]
        image = clipped(image_boxes(boxes, calib["P2"].astype(np.float64), np), kitti.SIZE, np)
        np.testing.assert_allclose(image, example["box_2d"][real], atol=6)  # centimetres near the camera
        turn = calib["R0_rect"] @ calib["Tr_velo_to_cam"]
        points = example["lidar"][:, :3] @ turn[:, :3].T + turn[:, 3]
        assert all(_inside(points, box).sum() >= 1 for box in boxes)
    assert {"Car", "Pedestrian"} <= kinds


def _inside(points, box):
    """Returns which points in the frame of the camera are at most 0.1 m outside of a box."""
    x, y, z = (points - box[:3]).T
    cos, sin = np.cos(box[6]), np.sin(box[6])
    along, across = cos * x - sin * z, sin * x + cos * z
    height, width, length = box[3:6] + 0.2
    return (abs(along) < length / 2) & (abs(across) < width / 2) & (y < 0.1) & (y > -height)


def test_boxes_of_the_matrix_are_those_of_the_calibration_file(folder):
    calib = KittiObject(str(folder), parts=("calib",))[0]["calib"]
    np.testing.assert_allclose(calib["R0_rect"] @ calib["Tr_velo_to_cam"], kitti.to_camera(), atol=1e-6)
    box = np.array([[10.0, 2, -1, 4, 2, 1.5, 0.3]])
    [found] = camera_boxes(box, kitti.to_camera(), np)
    assert found[:3] == pytest.approx([-2, 1.75, 10], abs=0.5)
    assert found[3:] == pytest.approx([1.5, 2, 4, -0.3 - np.pi / 2], abs=0.02)
