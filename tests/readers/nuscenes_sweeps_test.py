import numpy as np

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
