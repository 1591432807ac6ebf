"""Velocities and attributes of the boxes of nuScenes, which the detection task evaluates.

The velocity is that of `NuScenes.box_velocity` in python-sdk/nuscenes/nuscenes.py of
https://github.com/nutonomy/nuscenes-devkit: the way between the annotations before and after, over the time.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from engine.readers.nuscenes_sweeps import Row

LONGEST_S = 1.5  # between two annotations of a velocity; twice as long if there is one on both sides


class DetectionLabels:
    """What the detection task evaluates of the boxes of a dataset, besides their poses, sizes and categories.

    Args:
        rows: the boxes, rows of `sample_annotation`.
        tables: tables by name, with `sample_annotation` and `attribute`.
        samples: rows of `sample` by token.

    Raises:
        KeyError: the tables do not fit each other.
    """

    def __init__(self, rows: Sequence[Row], tables: Mapping[str, list[Row]], samples: Mapping[str, Row]):
        annotations = {row["token"]: row for row in tables["sample_annotation"]}
        velocities = [_velocity(row, annotations, samples) for row in rows]
        self._velocities = np.array(velocities, np.float64).reshape(-1, 3)
        numbers = {row["token"]: number for number, row in enumerate(tables["attribute"])}
        found = [numbers[row["attribute_tokens"][0]] if row["attribute_tokens"] else -1 for row in rows]
        self._attributes = np.array(found, np.int32)
        self._radar_points = np.array([row["num_radar_pts"] for row in rows], np.int32)

    def of(self, rows: slice, world_to_ego: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the entries of an example for some boxes, see `NuScenes`.

        Args:
            rows: which boxes.
            world_to_ego: pose of the world in the ego frame, float64 `[4, 4]`.
        """
        return {
            "box_velocity": (self._velocities[rows] @ world_to_ego[:3, :3].T).astype(np.float32),
            "box_attribute": self._attributes[rows].copy(),
            "box_radar_points": self._radar_points[rows].copy(),
        }


def _velocity(row: Row, annotations: Mapping[str, Row], samples: Mapping[str, Row]) -> np.ndarray:
    ends = [annotations[row[side]] if row[side] else row for side in ("prev", "next")]
    times = [1e-6 * samples[end["sample_token"]]["timestamp"] for end in ends]
    longest = LONGEST_S * (2 if row["prev"] and row["next"] else 1)
    if ends[0] is ends[1] or times[1] - times[0] > longest:
        return np.full(3, np.nan)
    return np.subtract(ends[1]["translation"], ends[0]["translation"]) / (times[1] - times[0])
