import numpy as np
import pytest

from engine.readers.nuscenes_sweeps import Sweeps
from engine.readers.poses import pose_matrices

STILL = {"translation": [0, 0, 0], "rotation": [1, 0, 0, 0]}


def test_static_point_stays_where_it_is_while_the_vehicle_moves_and_turns(tmp_path):
    """A point in the world at (10, 0, 0), seen from the origin, and then from (4, 0, 0) after a quarter turn."""
    half = 0.5**0.5
    rows = {
        "key": {"token": "key", "timestamp": 150_000, "prev": "old"},
        "old": {"token": "old", "timestamp": 100_000, "prev": "", "filename": "old.bin", "ego_pose_token": "a"},
    }
    rows["old"]["calibrated_sensor_token"] = "lidar"
    tables = {"sample_data": rows, "calibrated_sensor": {"lidar": STILL}, "ego_pose": {"a": STILL}}
    np.array([[10, 0, 0, 7, 3]], np.float32).tofile(tmp_path / "old.bin")
    key_to_world = pose_matrices([4, 0, 0, half, 0, 0, half])
    sweeps = Sweeps([rows["key"], None], tables, count=5)
    own = np.array([[1, 2, 3, 4, 5]], np.float32)
    found = sweeps.added(own, 0, str(tmp_path), key_to_world)
    np.testing.assert_allclose(found, [[1, 2, 3, 4, 5, 0], [0, -6, 0, 7, 3, 0.05]], atol=1e-6)
    assert sweeps.added(own, 1, str(tmp_path), key_to_world).tolist() == [[1, 2, 3, 4, 5, 0]]


def test_a_cache_of_any_size_and_any_order_give_the_same_points(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"token": str(i), "timestamp": 50_000 * i, "prev": str(i - 1) if i else "", "filename": f"{i}.bin"}
        | {"ego_pose_token": str(i), "calibrated_sensor_token": "lidar"}
        for i in range(6)
    ]
    poses = {str(i): {"translation": [i, 0.5, 0], "rotation": [1, 0, 0, 0.1 * i]} for i in range(6)}
    tables = {"sample_data": {row["token"]: row for row in rows}, "ego_pose": poses}
    tables["calibrated_sensor"] = {"lidar": {"translation": [1, 0, 2], "rotation": [0.8, 0, 0.6, 0]}}
    for i in range(6):
        rng.normal(size=(5 + i, 5)).astype(np.float32).tofile(tmp_path / f"{i}.bin")

    def added(sweeps, index):
        return sweeps.added(sweeps.read(str(tmp_path / f"{index}.bin")), index, str(tmp_path), np.eye(4))

    plain = Sweeps(rows, tables, 3, cache_bytes=0)
    wanted = [added(plain, index) for index in range(6)]
    assert [len(found) for found in wanted] == [5, 11, 18, 26, 30, 34]
    for cache_bytes, order in ((300, range(6)), (2**20, range(6)), (2**20, (4, 1, 5, 0, 3, 2))):
        cached = Sweeps(rows, tables, 3, cache_bytes)
        for index in (*order, *order):
            np.testing.assert_array_equal(added(cached, index), wanted[index])
        path = str(tmp_path / "5.bin")
        assert cached.read(path) is cached.read(path)
        with pytest.raises(ValueError, match="read-only"):
            cached.read(path)[0] = 0
