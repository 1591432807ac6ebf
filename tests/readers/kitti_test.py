import pickle
from typing import Any

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches
from engine.data.ragged.padded import Padded
from engine.readers import KittiObject
from tests.readers.driving_files import write_kitti

BOXES = ["box_type", "truncated", "occluded", "box_alpha", "box_2d", "box_size", "box_bottom", "box_yaw"]


@pytest.fixture
def folder(tmp_path):
    return write_kitti(tmp_path / "kitti")


def test_frame_holds_points_image_matrices_and_boxes(folder):
    source = KittiObject(str(folder))
    assert source.frames == ["000000", "000001", "000002", "000003"]
    found = source[1]
    assert found["frame"] == "000001"
    assert found["lidar"].shape == (31, 4)
    assert found["image"].shape == (37, 124, 3)
    assert found["image"][0, 0].tolist() == [1, 1, 1]
    assert found["calib"]["P2"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert found["calib"]["R0_rect"].shape == (3, 3)
    assert found["box_name"].tolist() == ["Car", "Cyclist", "DontCare"]
    assert found["box_type"].tolist() == [0, 5, -1]
    assert found["box_2d"][0].tolist() == [10, 20, 60.5, 30]
    assert found["box_size"][0] == pytest.approx([1.5, 1.6, 3.9])
    assert found["box_bottom"][1] == pytest.approx([-5, 1.6, 9])
    assert (found["box_yaw"][0], found["truncated"][0], found["occluded"][0]) == pytest.approx((-1.6, 0.25, 1))
    assert source[2]["box_2d"].shape == (0, 4)


def test_resized_image_scales_what_is_given_in_pixels(folder):
    found = KittiObject(str(folder), size=(74, 61))[0]
    assert found["image"].shape == (74, 61, 3)
    assert found["box_2d"][0].tolist() == [5, 40, 30.25, 60]
    assert found["calib"]["P2"].tolist() == [[0, 0.5, 1, 1.5], [8, 10, 12, 14], [8, 9, 10, 11]]
    assert found["calib"]["P3"][0].tolist() == [0, 1, 2, 3]


def test_boxes_of_the_lidar_have_poses_and_no_regions(tmp_path):
    folder = write_kitti(tmp_path / "kitti", rigid=True)
    source = KittiObject(str(folder), parts=("lidar", "boxes"), box_frame="lidar")
    found = source[0]
    names = {"box_type", "box_name", "truncated", "occluded", "box_to_lidar", "box_size"}
    assert found.keys() == names | {"frame", "lidar"}
    assert found["box_name"].tolist() == ["Car", "Cyclist"]
    assert found["box_size"][0] == pytest.approx([3.9, 1.6, 1.5])
    pose = found["box_to_lidar"][0]
    assert pose[:3, 3] == pytest.approx([20.5, -2, -1.7 + 0.75])
    assert pose[:3, 0] == pytest.approx([np.cos(1.6 - np.pi / 2), np.sin(1.6 - np.pi / 2), 0], abs=1e-6)
    assert pose[:3, 2] == pytest.approx([0, 0, 1])
    assert np.linalg.det(found["box_to_lidar"]) == pytest.approx(1)
    assert source[2]["box_to_lidar"].shape == (0, 4, 4)
    assert source.fingerprint() != KittiObject(str(folder), parts=("lidar", "boxes")).fingerprint()
    with pytest.raises(DataError, match="box_frame = 'velodyne': allowed are 'camera' and 'lidar'"):
        KittiObject(str(folder), box_frame="velodyne")  # pyright: ignore[reportArgumentType]


def test_parts_and_frames_are_chosen(folder):
    source = KittiObject(str(folder), parts=["lidar"], frames=["000003", "000001"])
    assert sorted(source[0]) == ["frame", "lidar"]
    assert [source[i]["frame"] for i in range(2)] == ["000003", "000001"]
    others = [KittiObject(str(folder)), KittiObject(str(folder), parts=["lidar"]), source]
    assert len({one.fingerprint() for one in others}) == 3
    assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()
    assert KittiObject(str(folder), size=[8, 8]).fingerprint() == KittiObject(str(folder), size=(8, 8)).fingerprint()


def test_damaged_files_are_skipped(folder):
    lidar, labels = folder / "training/velodyne/000000.bin", folder / "training/label_2/000001.txt"
    lidar.write_bytes(lidar.read_bytes()[:-8])
    labels.write_text(labels.read_text()[:-20])
    (folder / "training/image_2/000003.png").write_bytes(b"\x89PNG")
    source = KittiObject(str(folder), size=(8, 8))
    for index, error in (
        (0, r"velodyne/000000.bin: has 472 bytes, which are no points of 4 numbers each"),
        (1, r"label_2/000001.txt: line 3 is no label of KITTI"),
        (3, r"image_2/000003.png: the image of 4 bytes is damaged"),
    ):
        with pytest.raises(DataError, match=error):
            source[index]
    fields = {"points": ["lidar"], "boxes": BOXES}
    padded = Padded(source, fields=fields, lengths={"points": 40, "boxes": 3})
    found = TolerantBatches(Batches(padded, 4, 0, False))[0]
    assert [bad.address for bad in found.bad] == [0, 1, 3]
    assert np.asarray(found.batch.examples["image"]).shape == (4, 8, 8, 3)


def test_wrong_arguments_are_named(folder):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"parts": ["box"]}, r"parts = \('box',\): allowed are lidar, image, calib, boxes. Did you mean boxes"),
        ({"parts": []}, r"parts = \(\): allowed are"),
        ({"split": "testing"}, r"no testing/velodyne/\*.bin. Correct the path, `split` or `parts`"),
        ({"frames": ["000009"]}, r"no frame 000009 in training/velodyne. Remove it from `frames`"),
    ]
    for arguments, error in wrong:
        with pytest.raises(DataError, match=error):
            KittiObject(str(folder), **arguments)
    (folder / "training/label_2").rename(folder / "labels")
    with pytest.raises(DataError, match=r"no folder training/label_2. Remove 'boxes' from `parts`"):
        KittiObject(str(folder))
    (folder / "labels").rename(folder / "training/label_2")
    (folder / "training/calib/000000.txt").write_text("P0: 1 2")
    with pytest.raises(DataError, match=r"calib/000000.txt: the line 'P0' is no matrix of 3 rows"):
        KittiObject(str(folder))[0]


CALIB = """P2: 700 0 600 45 0 700 180 -0.3 0 0 1 0.005
R0_rect: 0.96 0 0.28 0 1 0 -0.28 0 0.96
Tr_velo_to_cam: 0 -1 0 0.1 0 0 -1 -0.1 1 0 0 -0.3
"""
LABEL = "Car 0.00 0 0.2 {} 1.5 1.6 4.0 2.0 1.5 20.0 {} \n"


def project(calib, camera):
    """Returns the pixels of points `[points, 3]` in the rectified frame of the camera."""
    pixels = np.c_[camera, np.ones(len(camera))] @ calib["P2"].T
    return pixels[:, :2] / pixels[:, 2:]


def test_lidar_points_fall_on_the_pixels_of_the_formula_of_the_devkit(folder):
    """The readme of KITTI's object devkit projects a lidar point X by P2 * R0_rect * Tr_velo_to_cam * X."""
    (folder / "training/calib/000000.txt").write_text(CALIB)
    np.array([[20.3, -2, 0.5, 0.9]], np.float32).tofile(folder / "training/velodyne/000000.bin")
    # By hand: Tr_velo_to_cam gives (2.1, -0.6, 20), R0_rect (7.616, -0.6, 18.612), P2 (16543.4, 2929.86, 18.617).
    expected = np.array([16543.4, 2929.86]) / 18.617
    for size, scale in ((None, (1, 1)), ((74, 61), (0.5, 2))):  # width and height of the image: 122, 37
        found = KittiObject(str(folder), size=size)[0]
        calib = found["calib"]
        camera = np.c_[found["lidar"][:, :3], np.ones(1)] @ calib["Tr_velo_to_cam"].T @ calib["R0_rect"].T
        np.testing.assert_allclose(project(calib, camera)[0], expected * scale, rtol=1e-5)


@pytest.mark.parametrize("yaw", [0.0, -np.pi / 2])
def test_boxes_have_the_corners_of_the_formula_of_the_devkit(folder, yaw):
    """computeBox3D.m of KITTI's object devkit: corners of the box, turned about y, at the center of its bottom."""
    # By hand: the car is 4 m long, 1.6 m wide and 1.5 m high, and stands on y = 1.5 m, which points down.
    half_x, half_z = (2.0, 0.8) if yaw == 0 else (0.8, 2.0)
    corners = [(2 + i * half_x, y, 20 + k * half_z) for i in (-1, 1) for y in (0.0, 1.5) for k in (-1, 1)]
    pixels = [((700 * x + 600 * z + 45) / (z + 0.005), (700 * y + 180 * z - 0.3) / (z + 0.005)) for x, y, z in corners]
    box = [*map(min, zip(*pixels, strict=True)), *map(max, zip(*pixels, strict=True))]
    (folder / "training/calib/000000.txt").write_text(CALIB)
    text = LABEL.format(" ".join(f"{value:.4f}" for value in box), yaw)
    (folder / "training/label_2/000000.txt").write_text(text)
    found = KittiObject(str(folder))[0]
    height, width, length = found["box_size"][0]
    cos, sin = np.cos(found["box_yaw"][0]), np.sin(found["box_yaw"][0])
    x, z = np.array([1, 1, -1, -1] * 2) * length / 2, np.array([1, -1, -1, 1] * 2) * width / 2
    y = np.array([0] * 4 + [-1] * 4) * height
    camera = np.c_[cos * x + sin * z, y, -sin * x + cos * z] + found["box_bottom"][0]
    seen = project(found["calib"], camera)
    np.testing.assert_allclose([*seen.min(axis=0), *seen.max(axis=0)], found["box_2d"][0], rtol=1e-5)
