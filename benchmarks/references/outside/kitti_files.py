"""Reads the frames in FOLDER/dataset and the results in FOLDER/results with mmdet3d; writes FOLDER/results.json.

Imports no engine. Numbers of the frames are float32, which is what the engine reads.
"""

import importlib.util
import json
import sys
import types
from importlib.metadata import files
from pathlib import Path

import numpy as np

MATRICES = ("P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo")
NUMBERS = ("bbox", "size", "location", "rotation_y")


def readers():
    """Returns the module kitti_data_utils.py of mmdet3d, whose package would import torch."""
    path = next(path for path in files("mmdet3d") if path.name == "kitti_data_utils.py").locate()
    sys.modules["mmengine"] = types.ModuleType("mmengine")  # reads planes, which are not read here
    spec = importlib.util.spec_from_file_location("kitti_data_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def boxes(annotations):
    """Returns the classes, and the numbers of boxes by name; sizes are height, width, length, as in the files."""
    annotations = {**annotations, "size": annotations["dimensions"][:, [1, 2, 0]]}
    return annotations["name"].tolist(), annotations


def frame(info):
    """Returns parts of a frame."""
    classes, numbers = boxes(info["annos"])
    names = (*NUMBERS, "alpha", "truncated")
    labels = {name: numbers[name].astype(np.float32).tolist() for name in names}
    return {
        "name": f"{info['image']['image_idx']:06d}",
        "height and width of the image": info["image"]["image_shape"].tolist(),
        "calibration": {name: info["calib"][name].astype(np.float32).tolist() for name in MATRICES},
        "classes": classes,
        "labels": {**labels, "occluded": numbers["occluded"].tolist()},
    }


def result(module, path):
    """Returns the content of a file of results."""
    classes, numbers = boxes(module.get_label_anno(str(path)))
    return {"classes": classes, **{name: numbers[name].tolist() for name in (*NUMBERS, "score")}}


def main(folder):
    """Reads the files in the folder and writes what they have."""
    module = readers()
    names = sorted(int(path.stem) for path in folder.glob("dataset/training/velodyne/*.bin"))
    infos = module.get_kitti_image_info(
        str(folder / "dataset"), calib=True, velodyne=True, image_ids=names, extend_matrix=False, num_worker=1
    )
    results = {path.stem: result(module, path) for path in sorted(folder.glob("results/*.txt"))}
    (folder / "results.json").write_text(json.dumps({"frames": list(map(frame, infos)), "results": results}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
