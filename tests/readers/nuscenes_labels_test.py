import numpy as np
import pytest

from engine.readers.nuscenes_labels import DetectionLabels

TABLES = {"attribute": [{"token": "a"}, {"token": "b"}]}


def labels(*seconds):
    """Labels of a box that moves 2 m per second along x, with annotations at some times."""
    rows = [
        {
            "token": str(n),
            "sample_token": str(n),
            "prev": str(n - 1) if n else "",
            "next": str(n + 1) if n + 1 < len(seconds) else "",
            "translation": [2.0 * at, 5.0, 1.0],
            "attribute_tokens": ["b"] if n == 0 else [],
            "num_radar_pts": n,
        }
        for n, at in enumerate(seconds)
    ]
    samples = {str(n): {"timestamp": round(1e6 * at)} for n, at in enumerate(seconds)}
    return DetectionLabels(rows, {**TABLES, "sample_annotation": rows}, samples)


def test_velocity_is_that_between_the_neighbours_in_the_ego_frame():
    world_to_ego = np.eye(4)
    world_to_ego[:3, :3] = [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]
    found = labels(0, 0.5, 1.0).of(slice(0, 3), world_to_ego)
    assert found["box_velocity"].tolist() == [[0, -2, 0]] * 3
    assert found["box_attribute"].tolist() == [1, -1, -1]
    assert found["box_radar_points"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("seconds", "known"),
    [((0,), [False]), ((0, 1.5), [True, True]), ((0, 1.6), [False, False]), ((0, 1.4, 3.0), [True, True, False])],
)
def test_velocity_is_unknown_without_near_neighbours(seconds, known):
    found = labels(*seconds).of(slice(0, len(seconds)), np.eye(4))["box_velocity"]
    assert (~np.isnan(found[:, 0])).tolist() == known
