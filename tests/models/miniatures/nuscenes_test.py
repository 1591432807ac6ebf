"""The miniature of nuScenes: the devkit evaluated a file of results for it, and its entries agree with each other.

Golden numbers: python -m benchmarks.references --only=nuscenes_files --golden=tests/models/miniatures/golden
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.references import nuscenes_files
from convoy_zoo.models.miniatures import nuscenes
from engine.readers import NuScenes

GOLDEN = Path(__file__).parent / "golden" / "nuscenes_files.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that the devkit has read and evaluated."""
    path = tmp_path_factory.mktemp("nuscenes")
    nuscenes_files.write_inputs(path, 2)
    return path


def test_scores_of_a_file_of_results_are_those_of_the_devkit(folder):
    found = nuscenes_files.engine_scores(folder)
    rows = list(nuscenes_files.score_rows(found, json.loads(GOLDEN.read_text())))
    assert len(rows) == 4
    assert [row for row in rows if not row.agrees] == []


def test_same_seed_gives_the_same_bytes(tmp_path):
    def digest(name, seed):
        nuscenes.write(tmp_path / name, (1, 0), 1, 0, seed)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        content = [(str(path.relative_to(tmp_path / name)), path.read_bytes()) for path in files]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    assert digest("a", 0) == digest("b", 0) != digest("c", 1)


def test_boxes_move_with_their_velocity_and_hold_their_points(folder):
    source = NuScenes(str(folder / "data"), nuscenes.VERSION, detection=True)
    assert len(source) == 4
    first, second = source[0], source[1]
    own = {name: index for index, name in enumerate(second["box_instance"])}
    both = [(index, own[name]) for index, name in enumerate(first["box_instance"]) if name in own]
    a, b = (np.array(rows) for rows in zip(*both, strict=True))
    places = [(one["ego_to_world"] @ one["box_to_ego"])[:, :3, 3] for one in (first, second)]
    speeds = first["box_velocity"][a] @ first["ego_to_world"][:3, :3].T
    np.testing.assert_allclose(places[1][b] - places[0][a], 0.5 * speeds, atol=1e-3)
    assert np.linalg.norm(speeds, axis=1).max() > 1
    to_ego = first["calibration"]["LIDAR_TOP"]["to_ego"]
    points = first["LIDAR_TOP"][:, :3] @ to_ego[:3, :3].T + to_ego[:3, 3]
    best = first["box_points"].argmax()
    near = np.abs((np.append(points, np.ones((len(points), 1)), 1) @ np.linalg.inv(first["box_to_ego"][best]).T)[:, :3])
    inside = (near < first["box_size"][best][[1, 0, 2]] / 2 + [0.1, 0.1, 0.1]).all(1)
    assert inside.sum() >= first["box_points"][best] > 20


def test_images_show_vehicles_where_their_boxes_are(folder):
    cameras = [f"CAM_{name.upper()}" for name in nuscenes.CAMERAS]
    example = NuScenes(str(folder / "data"), nuscenes.VERSION, ["LIDAR_TOP", *cameras])[0]
    changed = []
    for name in cameras:
        calibration, image = example["calibration"][name], example[name].astype(float)
        boxes = np.linalg.inv(calibration["to_ego"]) @ example["box_to_ego"]
        for box, (width, length, height), points in zip(boxes, example["box_size"], example["box_points"], strict=True):
            ends = np.array([[length, 0, -height], [length, 0, height]]) / 2 @ box[:3, :3].T + box[:3, 3]
            pixels = ends @ calibration["intrinsics"].T
            if points > 40 and (ends[:, 2] > 3).all() and width > 1.5:
                (u, low), (_, high) = pixels[:, :2] / pixels[:, 2:]
                if 5 < u < image.shape[1] - 5 and high > 3 and low < image.shape[0] - 5:
                    inside, below = image[round((low + high) / 2), round(u)], image[round(low) + 3, round(u)]
                    changed.append(np.abs(inside - below).max())
    assert len(changed) >= 3 and np.median(changed) > 20
