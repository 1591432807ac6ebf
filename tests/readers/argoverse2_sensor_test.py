import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches
from engine.data.ragged.padded import Padded
from engine.readers import Argoverse2Sensor

LAYOUT = Path(__file__).parent / "fixtures" / "argoverse2_layout" / "sensor"
START = 315_966_070_000_000_000
FIELDS = {"points": ["lidar"], "boxes": ["box_to_ego", "box_size", "box_category", "box_points"]}


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(LAYOUT, tmp_path / "data"))


def test_sweep_holds_points_pose_and_boxes():
    source = Argoverse2Sensor(str(LAYOUT))
    assert source.logs == ["a1", "b2"]
    names = [("a1", START), ("a1", START + 10**8), ("a1", START + 2 * 10**8), ("b2", START)]
    assert [(source[i]["log"], source[i]["timestamp_ns"]) for i in range(len(source))] == [
        (log, str(time)) for log, time in names
    ]
    found = source[1]
    assert float(found["time_s"]) == pytest.approx(0.1)
    assert found["lidar"].dtype == np.float32
    assert found["lidar"][:, :5].tolist() == [[i, -i, i / 2, 250 + i, 1] for i in range(5)]
    assert found["lidar"][:, 5].tolist() == pytest.approx([0, 0.001, 0.002, 0.003, 0.004])
    # A quarter turn about z: the x axis of the vehicle, and of the box, points along the y axis outside.
    turn = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    np.testing.assert_allclose(found["ego_to_city"][:3], np.c_[turn, [5002, 100, 2]], atol=1e-9)
    np.testing.assert_allclose(found["box_to_ego"][1, :3], np.c_[turn, [10, 21, 1]], atol=1e-6)
    assert found["box_name"].tolist() == ["REGULAR_VEHICLE", "DOG"]
    assert found["box_category"].tolist() == [18, 9]
    assert found["box_track"].tolist() == ["track-0", "track-1"]
    assert (found["box_size"][0].tolist(), found["box_points"].tolist()) == ([4.5, 2, 1.5], [30, 2])
    assert source[2]["box_to_ego"].shape == (0, 4, 4)


def test_logs_and_parts_are_chosen():
    whole, one = Argoverse2Sensor(str(LAYOUT)), Argoverse2Sensor(str(LAYOUT), logs=["b2"], boxes=False)
    assert len(one) == 1 and "box_name" not in one[0]
    sources = [whole, one, Argoverse2Sensor(str(LAYOUT), boxes=False)]
    assert len({one.fingerprint() for one in sources}) == 3
    copy = pickle.loads(pickle.dumps(whole))
    assert copy.fingerprint() == whole.fingerprint()
    padded = Padded(copy, fields=FIELDS, lengths={"points": 8, "boxes": 2})
    batch = Batches(padded, 4, 3, True)[0].examples
    assert (batch["lidar"].shape, int(batch["mask"]["points"].sum())) == ((4, 8, 6), 19)


def test_damaged_and_missing_files_are_skipped(folder):
    lidar = folder / "train/a1/sensors/lidar" / f"{START}.feather"
    lidar.write_bytes(lidar.read_bytes()[:-100])
    (folder / "train/b2/annotations.feather").unlink()
    source = Argoverse2Sensor(str(folder))
    for index, error in ((0, rf"{START}.feather: cannot be read"), (3, r"b2/annotations.feather: cannot be read")):
        with pytest.raises(DataError, match=error):
            source[index]
    padded = Padded(source, fields=FIELDS, lengths={"points": 8, "boxes": 2})
    assert [bad.address for bad in TolerantBatches(Batches(padded, 4, 0, False))[0].bad] == [0, 3]
    other = folder / "train/a1/city_SE3_egovehicle.feather"
    shutil.copy(folder / "train/b2/city_SE3_egovehicle.feather", other)
    with pytest.raises(DataError, match=rf"city_SE3_egovehicle.feather: no pose at {START + 10**8} ns"):
        Argoverse2Sensor(str(folder), logs=["a1"])[1]


def test_fingerprint_depends_on_the_content(folder):
    first = Argoverse2Sensor(str(folder)).fingerprint()
    assert first == Argoverse2Sensor(str(LAYOUT)).fingerprint()
    shutil.copy(folder / "train/b2/annotations.feather", folder / "train/a1/annotations.feather")
    assert Argoverse2Sensor(str(folder)).fingerprint() != first


def test_split_without_boxes_needs_boxes_false(folder):
    for path in folder.glob("train/*/annotations.feather"):
        path.unlink()
    with pytest.raises(DataError, match=r"no train/LOG/annotations.feather. Set boxes=False"):
        Argoverse2Sensor(str(folder))
    assert len(Argoverse2Sensor(str(folder), boxes=False)) == 4


def test_wrong_arguments_are_named():
    with pytest.raises(DataError, match=r"logs: \S+ has no train/a2\."):
        Argoverse2Sensor(str(LAYOUT), logs=["a2"])
    with pytest.raises(DataError, match=r"no val/LOG/sensors/lidar/TIMESTAMP.feather. Correct the path or `split`"):
        Argoverse2Sensor(str(LAYOUT), "val")
