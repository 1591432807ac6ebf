import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches
from engine.data.ragged.padded import Padded
from engine.readers import NuScenes
from tests.readers.driving_files import write_nuscenes

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "nuscenes.json").read_text())
BOTH = ("LIDAR_TOP", "CAM_FRONT")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return str(write_nuscenes(tmp_path_factory.mktemp("nuscenes") / "data"))


@pytest.fixture
def folder(tmp_path):
    """A copy that a test may damage."""
    return write_nuscenes(tmp_path / "data")


def test_boxes_and_sensors_are_those_of_the_devkit(whole):
    source = NuScenes(whole, "v1.0-mini", BOTH)
    assert source.tokens == [entry["sample"] for entry in GOLDEN]
    for index, entry in enumerate(GOLDEN):
        found = source[index]
        assert (found["sample"], found["scene"]) == (entry["sample"], entry["scene"])
        for sensor, golden in entry["sensors"].items():
            in_sensor = np.linalg.inv(found["calibration"][sensor]["to_ego"]) @ found["box_to_ego"]
            assert len(in_sensor) == len(golden["boxes"])
            boxes = {f"{entry['sample']}box{name[-1]}": i for i, name in enumerate(found["box_instance"])}
            for token, box in golden["boxes"].items():
                i = boxes[token]
                np.testing.assert_allclose(in_sensor[i, :3, 3], box["center"], atol=2e-3)
                np.testing.assert_allclose(in_sensor[i, :3, :3], box["rotation"], atol=1e-5)
                assert (found["box_name"][i], found["box_size"][i].tolist()) == (box["name"], box["size"])
                assert source.categories[found["box_category"][i]] == box["name"]
            if golden["intrinsics"] is not None:
                assert found["calibration"][sensor]["intrinsics"].tolist() == golden["intrinsics"]
        points = np.fromfile(Path(whole, entry["sensors"]["LIDAR_TOP"]["file"]), np.float32)
        assert found["LIDAR_TOP"].reshape(-1).tolist() == points.tolist()
        assert found["CAM_FRONT"].shape == (48, 64, 3)
    assert [float(source[i]["time_s"]) for i in range(5)] == [0, 0.5, 1, 0, 0.5]


def test_sweeps_and_radar_points_are_those_of_the_devkit(whole):
    source = NuScenes(whole, "v1.0-mini", ("LIDAR_TOP", "RADAR_FRONT"), sweeps=2)
    single = NuScenes(whole, "v1.0-mini", ("LIDAR_TOP", "RADAR_FRONT"))
    for index, entry in enumerate(GOLDEN):
        found, golden = source[index], entry["points"]
        points = found["LIDAR_TOP"]
        assert (points.shape, points.dtype) == ((golden["count"], 6), np.float32)
        # The devkit drops the ring, which is column 4 here.
        np.testing.assert_allclose(points[::10, [0, 1, 2, 3, 5]], golden["lidar"], rtol=1e-5, atol=2e-3)
        assert sorted(set(points[:, 5].tolist())) == pytest.approx([0] if index in (0, 3) else [0, 0.48, 0.5])
        own = single[index]["LIDAR_TOP"]
        assert own.tolist() == points[: len(own), :5].tolist()
        assert found["RADAR_FRONT"].tolist() == golden["radar"]
    assert source.fingerprint() != single.fingerprint()


def test_missing_sweep_is_a_bad_example(folder):
    (folder / "sweeps/LIDAR_TOP/sample00.pcd.bin").unlink()
    source = pickle.loads(pickle.dumps(NuScenes(str(folder), "v1.0-mini", sweeps=1)))
    with pytest.raises(DataError, match=r"sweeps/LIDAR_TOP/sample00.pcd.bin: cannot be read"):
        source[1]
    assert source[2]["LIDAR_TOP"].shape[1] == source[0]["LIDAR_TOP"].shape[1] == 6


def test_resized_image_scales_the_intrinsics(whole):
    found = NuScenes(whole, "v1.0-mini", ("CAM_FRONT",), size=(12, 32))[0]
    assert found["CAM_FRONT"].shape == (12, 32, 3)
    assert found["calibration"]["CAM_FRONT"]["intrinsics"].tolist() == [[25, 0, 16], [0, 15, 6], [0, 0, 1]]


def test_part_of_an_image_moves_the_intrinsics(whole):
    found = NuScenes(whole, "v1.0-mini", ("CAM_FRONT",), size=(12, 32), crop=(4, 3, 8, 20))
    assert found[0]["CAM_FRONT"].shape == (8, 20, 3)
    assert found[0]["calibration"]["CAM_FRONT"]["intrinsics"].tolist() == [[25, 0, 13], [0, 15, 2], [0, 0, 1]]
    assert "crop (4, 3, 8, 20)" in found.fingerprint()


def test_a_negative_bound_of_the_cache_is_refused(whole):
    with pytest.raises(DataError, match="sweep_cache = -1: allowed are 0 and more bytes"):
        NuScenes(whole, "v1.0-mini", sweep_cache=-1)


def test_scenes_are_chosen_in_their_order(whole):
    source = NuScenes(whole, "v1.0-mini", scenes=["scene-0001", "scene-0000"])
    assert source.tokens == ["sample10", "sample11", "sample00", "sample01", "sample02"]
    assert len(NuScenes(whole, "v1.0-mini", scenes=["scene-0001"])) == 2


def test_points_are_padded_and_copies_equal(whole):
    source = pickle.loads(pickle.dumps(NuScenes(whole, "v1.0-mini")))
    assert source.fingerprint() == NuScenes(whole, "v1.0-mini").fingerprint()
    boxes = ["box_to_ego", "box_size", "box_category", "box_points"]
    padded = Padded(source, fields={"points": ["LIDAR_TOP"], "boxes": boxes}, lengths={"points": 32, "boxes": 4})
    batches = [Batches(padded, 5, 3, True)[n].examples for n in (0, 1)]
    assert batches[0]["LIDAR_TOP"].shape == (5, 32, 5)
    assert batches[0]["mask"]["boxes"].sum() == 14
    assert batches[0]["ego_to_world"].dtype == np.float32


def test_missing_and_cut_off_files_are_skipped(folder):
    (folder / "samples/CAM_FRONT/sample00.jpg").unlink()
    lidar = folder / "samples/LIDAR_TOP/sample11.pcd.bin"
    lidar.write_bytes(lidar.read_bytes()[:-4])
    source = NuScenes(str(folder), "v1.0-mini", BOTH)
    with pytest.raises(DataError, match=r"CAM_FRONT/sample00.jpg: .*No such file.*Copy the file again"):
        source[0]
    with pytest.raises(DataError, match=r"sample11.pcd.bin: has \d+ bytes, which are no points of 5 numbers each"):
        source[4]
    boxes = ["box_to_ego", "box_size", "box_category", "box_points"]
    fields = {"points": ["LIDAR_TOP"], "boxes": boxes}
    padded = Padded(source, fields=fields, lengths={"points": 32, "boxes": 4})
    assert [bad.address for bad in TolerantBatches(Batches(padded, 5, 0, False))[0].bad] == [0, 4]


def test_fingerprint_depends_on_tables_and_sensors(folder):
    first = NuScenes(str(folder), "v1.0-mini").fingerprint()
    assert NuScenes(str(folder), "v1.0-mini", BOTH).fingerprint() != first
    table = folder / "v1.0-mini" / "sample_annotation.json"
    table.write_text(table.read_text().replace("4.0", "5.0"))
    assert NuScenes(str(folder), "v1.0-mini").fingerprint() != first


def test_wrong_arguments_and_damaged_tables_are_named(folder):
    for arguments, error in (
        (
            {"version": "v1.0"},
            r"v1.0/calibrated_sensor.json: no table of nuScenes: .*Correct the folder",
        ),
        (
            {"sensors": ["LIDAR"]},
            r"sensor LIDAR: allowed are CAM_FRONT, LIDAR_TOP, RADAR_FRONT. Did you mean",
        ),
        ({"sweeps": -1}, r"sweeps = -1: allowed are 0 and more"),
        ({"sensors": []}, r"sensors is empty"),
        ({"scenes": ["scene-1"]}, r"scenes: no scene scene-1. Did you mean scene-0001"),
    ):
        with pytest.raises(DataError, match=error):
            NuScenes(str(folder), **{"version": "v1.0-mini", **arguments})
    (folder / "v1.0-mini" / "instance.json").write_text("[]")
    with pytest.raises(DataError, match=r"the tables of v1.0-mini do not fit each other: KeyError"):
        NuScenes(str(folder), "v1.0-mini")
