import numpy as np
import pytest

from convoy_zoo.models.street import nuscenes
from engine import DataError
from engine.readers import NuScenes
from engine.submissions.nuscenes import ATTRIBUTES, CLASSES
from tests.readers.driving_files import write_nuscenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset whose poses are turned about all axes."""
    path = write_nuscenes(tmp_path_factory.mktemp("nuscenes") / "data")
    return str(path)


def test_names_are_those_of_the_file_of_results():
    assert (nuscenes.CLASSES, nuscenes.ATTRIBUTES) == (CLASSES, ATTRIBUTES)
    assert sorted(name for group in nuscenes.GROUPS for name in group) == sorted(CLASSES)
    assert len(set(nuscenes.VAL)) == 150


def test_level_frame_is_upright_and_keeps_places_and_velocities_of_the_world(folder):
    source = NuScenes(folder, "v1.0-mini", sweeps=1, detection=True)
    found, raw = nuscenes.Samples(source, 1e6)[1], source[1]
    kept = np.isin(raw["box_name"], list(nuscenes.CATEGORIES)) & (raw["box_points"] > 0)
    names = [nuscenes.CATEGORIES[name] for name in raw["box_name"][kept]]
    assert [CLASSES[label] for label in found["label"]] == names != []
    assert found["ego_to_world"][2].tolist() == [0, 0, 1, raw["ego_to_world"][2, 3]]
    turn, shift = found["ego_to_world"][:3, :3], found["ego_to_world"][:3, 3]
    poses = (raw["ego_to_world"] @ raw["box_to_ego"])[kept]
    np.testing.assert_allclose(found["boxes"][:, :3] @ turn.T + shift, poses[:, :3, 3], atol=2e-3)
    heading = found["boxes"][:, 6] + np.arctan2(turn[1, 0], turn[0, 0])
    np.testing.assert_allclose(np.cos(heading - np.arctan2(poses[:, 1, 0], poses[:, 0, 0])), 1, atol=1e-5)
    points, to_ego = raw["LIDAR_TOP"], raw["calibration"]["LIDAR_TOP"]["to_ego"]
    far = np.abs(points[:, :2]).max(1) >= 1
    world = raw["ego_to_world"] @ to_ego
    wanted = points[far, :3] @ world[:3, :3].T + world[:3, 3]
    np.testing.assert_allclose(found["points"][:, :3] @ turn.T + shift, wanted, atol=2e-3)
    assert found["points"][:, 4].tolist() == points[far, 5].tolist()


def test_wrong_split_and_folder_are_one_sentence(folder):
    with pytest.raises(DataError, match=r"split = 'test': unknown. Allowed: train, val, mini_train, mini_val, all"):
        nuscenes.sweeps(folder, "test")
    with pytest.raises(DataError, match=r"absent/v1.0-mini/.*json: no table of nuScenes"):
        nuscenes.sweeps("absent", "mini_val")
