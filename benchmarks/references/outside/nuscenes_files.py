"""Reads and evaluates a dataset of FOLDER/data with the nuscenes-devkit; writes FOLDER/results.json. Imports no engine.

results.json has `samples`, what the devkit reads, and `scores`, its evaluation of FOLDER/predictions.json.
"""

import json
import sys
from pathlib import Path

import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import BoxVisibility
from nuscenes.utils.splits import create_splits_scenes


def read(devkit, sample, sensors, sweeps):
    """Returns boxes in the frames of sensors, velocities, and some points of accumulated sweeps of a sample."""
    found = {"token": sample["token"], "boxes": {}, "intrinsics": {}}
    for sensor in sensors:
        _, boxes, matrix = devkit.get_sample_data(sample["data"][sensor], box_vis_level=BoxVisibility.NONE)
        found["boxes"][sensor] = [np.column_stack([box.rotation_matrix, box.center]).tolist() for box in boxes]
        if matrix is not None:
            found["intrinsics"][sensor] = np.asarray(matrix).tolist()
    annotations = [devkit.get("sample_annotation", token) for token in sample["anns"]]
    found["instances"] = [row["instance_token"] for row in annotations]
    found["sizes"] = [row["size"] for row in annotations]
    found["velocities"] = [devkit.box_velocity(token).tolist() for token in sample["anns"]]
    points, _ = LidarPointCloud.from_file_multisweep(devkit, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=sweeps + 1)
    found["points"] = points.points.T[::20].tolist()
    return found


def main(folder):
    """Reads and evaluates what is in the folder."""
    inputs = json.loads((folder / "inputs.json").read_text())
    devkit = NuScenes(inputs["version"], str(folder / "data"), verbose=False)
    for row in devkit.map:
        assert row["mask"].mask().any()
    names = set(create_splits_scenes()[inputs["split"]])
    scenes = [scene for scene in devkit.scene if scene["name"] in names]
    samples = []
    for scene in scenes:
        token = scene["first_sample_token"]
        while token:
            samples.append(read(devkit, devkit.get("sample", token), inputs["sensors"], inputs["sweeps"]))
            token = devkit.get("sample", token)["next"]
    evaluation = DetectionEval(
        devkit,
        config_factory("detection_cvpr_2019"),
        str(folder / "predictions.json"),
        inputs["split"],
        str(folder / "evaluated"),
        verbose=False,
    )
    scores = evaluation.evaluate()[0].serialize()
    kept = {name: scores[name] for name in ("nd_score", "mean_ap", "label_aps", "tp_errors")}
    (folder / "results.json").write_text(json.dumps({"samples": samples, "scores": kept}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
