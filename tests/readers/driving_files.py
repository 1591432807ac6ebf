"""Writes folders in the layouts of nuScenes and KITTI, with generated content. Uses NumPy and Pillow alone."""

import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = ("vehicle.car", "human.pedestrian.adult")
SENSORS = ("LIDAR_TOP", "CAM_FRONT", "RADAR_FRONT")
RADAR = "x y z dyn_prop id rcs vx vy vx_comp vy_comp is_quality_valid ambig_state x_rms y_rms invalid_state pdh0 vx_rms"
RADAR_TYPES = "fffbhfffffbbbbbbbb"  # of each field, and of vy_rms
SAMPLES, BOXES = (3, 2), 3  # samples of each scene; boxes of a sample, but one less in the second


def pose(rng: np.random.Generator, scale: float) -> dict:
    """Returns a random translation and rotation, as in the tables of nuScenes."""
    rotation = rng.normal(size=4)
    rotation /= np.linalg.norm(rotation)
    return {"translation": (scale * rng.normal(size=3)).tolist(), "rotation": rotation.tolist()}


def write_nuscenes(folder: Path, version: str = "v1.0-mini") -> Path:
    """Writes two scenes of three and two samples with a lidar and a camera, and sweeps between them."""
    rng = np.random.default_rng(0)
    tables: dict[str, list[dict]] = {name: [] for name in ("attribute", "log", "map", "visibility", "sample_data")}
    tables["category"] = [{"token": f"category{i}", "name": n, "description": ""} for i, n in enumerate(CATEGORIES)]
    tables["instance"] = [{"token": f"instance{i}", "category_token": f"category{i % 2}"} for i in range(BOXES)]
    modality = {"LIDAR": "lidar", "CAM": "camera", "RADAR": "radar"}
    tables["sensor"] = [
        {"token": name, "channel": name, "modality": modality[name.partition("_")[0]]} for name in SENSORS
    ]
    tables["log"] = [{"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": "made-up"}]
    tables["map"] = [{"token": "map", "filename": f"{version}/map.json", "category": "", "log_tokens": ["log"]}]
    tables["visibility"] = [{"token": "1", "level": "", "description": ""}]
    intrinsics = {"CAM_FRONT": [[50.0, 0.0, 32.0], [0.0, 60.0, 24.0], [0.0, 0.0, 1.0]]}
    tables["calibrated_sensor"] = [
        {"token": f"calibrated{name}", "sensor_token": name, "camera_intrinsic": intrinsics.get(name, [])}
        for name in SENSORS
    ]
    for row in tables["calibrated_sensor"]:
        row |= pose(rng, 1)
    for name in ("scene", "sample", "sample_annotation", "ego_pose"):
        tables[name] = []
    for scene, count in enumerate(SAMPLES):
        tokens = [f"sample{scene}{i}" for i in range(count)]
        tables["scene"].append({"token": f"scene{scene}", "name": f"scene-{scene:04}", "log_token": "log"})
        tables["scene"][-1] |= {"nbr_samples": count, "description": ""}
        tables["scene"][-1] |= {"first_sample_token": tokens[0], "last_sample_token": tokens[-1]}
        for i, token in enumerate(tokens):
            time = 1_500_000_000_000_000 + 10**8 * scene + 500_000 * i
            links = {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < count else ""}
            tables["sample"].append({"token": token, "timestamp": time, "scene_token": f"scene{scene}", **links})
            for sensor in SENSORS:
                for sweep in (False, True):  # a sweep belongs to the sample, too, but is no key frame
                    _write_frame(folder, tables, rng, token, sensor, time + 20_000 * sweep, sweep)
            for box in range(BOXES - (token == "sample01")):
                tables["sample_annotation"].append(
                    {
                        "token": f"{token}box{box}",
                        "sample_token": token,
                        "instance_token": f"instance{box}",
                        "visibility_token": "1",
                        "attribute_tokens": [],
                        "size": [2.0 + box, 4.0, 1.5],
                        "num_lidar_pts": 10 * box,
                        "num_radar_pts": 0,
                        "prev": "",
                        "next": "",
                        **pose(rng, 1000),
                    }
                )
    _link_frames(tables["sample_data"])
    tables["sample_annotation"].reverse()  # the order of the tables means nothing
    tables["sample_data"].reverse()
    (folder / version).mkdir(parents=True)
    for name, rows in tables.items():
        (folder / version / f"{name}.json").write_text(json.dumps(rows))
    return folder


def _write_frame(
    folder: Path, tables: dict, rng: np.random.Generator, token: str, sensor: str, time: int, sweep: bool
) -> None:
    ending = {"LIDAR_TOP": ".pcd.bin", "CAM_FRONT": ".jpg", "RADAR_FRONT": ".pcd"}[sensor]
    name = f"{'sweeps' if sweep else 'samples'}/{sensor}/{token}{ending}"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if sensor == "LIDAR_TOP":
        rng.normal(size=(20 + rng.integers(5), 5)).astype(np.float32).tofile(folder / name)
    elif sensor == "CAM_FRONT":
        Image.fromarray(np.full((48, 64, 3), rng.integers(256), np.uint8)).save(folder / name)
    else:
        (folder / name).write_bytes(radar_file(int(token[-1]) + 2))
    ego = f"ego{token}{sensor}{sweep}"
    tables["ego_pose"].append({"token": ego, "timestamp": time, **pose(rng, 1000)})
    size = {"height": 48, "width": 64} if sensor == "CAM_FRONT" else {"height": 0, "width": 0}
    tables["sample_data"].append(
        {
            "token": f"data{token}{sensor}{sweep}",
            "sample_token": token,
            "ego_pose_token": ego,
            "calibrated_sensor_token": f"calibrated{sensor}",
            "timestamp": time,
            "fileformat": ending[1:],
            "is_key_frame": not sweep,
            "filename": name,
            "prev": "",
            "next": "",
            **size,
        }
    )


def _link_frames(rows: list[dict]) -> None:
    """Links each frame of a sensor with the frames before and after it in the scene."""
    chains: dict[str, list[dict]] = {}
    for row in rows:
        chains.setdefault(row["calibrated_sensor_token"] + row["sample_token"][:-1], []).append(row)
    for chain in chains.values():
        for row, following in itertools.pairwise(chain):
            row["next"], following["prev"] = following["token"], row["token"]


def radar_file(count: int, invalid: int = 1) -> bytes:
    """Returns a file of radar points, of which the first `invalid` ones are not valid."""
    fields = f"{RADAR} vy_rms".split()
    table = np.zeros(count, [(name, f"<{kind}") for name, kind in zip(fields, RADAR_TYPES, strict=True)])
    for number, name in enumerate(fields):
        table[name] = np.arange(count) + number
    table["ambig_state"], table["invalid_state"] = 3, np.arange(count) < invalid
    sizes = " ".join(str(table.dtype[name].itemsize) for name in fields)
    types = " ".join("F" if kind == "f" else "I" for kind in RADAR_TYPES)
    head = f"# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS {' '.join(fields)}\nSIZE {sizes}\n"
    head += f"TYPE {types}\nCOUNT {' '.join('1' * len(fields))}\nWIDTH {count}\nHEIGHT 1\n"
    head += f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA binary\n"
    return head.encode() + table.tobytes() + b"\n"


def write_kitti(folder: Path, frames: int = 4, rigid: bool = False) -> Path:
    """Writes frames of KITTI's object detection; the second one has another size, and the third has no boxes.

    With `rigid`, the calibration is that of a camera 0.5 m ahead of the lidar; otherwise matrices of whole numbers.
    """
    rng = np.random.default_rng(0)
    for part in ("velodyne", "image_2", "calib", "label_2"):
        (folder / "training" / part).mkdir(parents=True)
    for number in range(frames):
        name, path = f"{number:06}", folder / "training"
        rng.random((30 + number, 4), np.float32).tofile(path / "velodyne" / f"{name}.bin")
        size = (37, 122 + 2 * (number == 1), 3)
        Image.fromarray(np.full(size, number, np.uint8)).save(path / "image_2" / f"{name}.png")
        rows = {f"P{i}": 12 for i in range(4)} | {"R0_rect": 9, "Tr_velo_to_cam": 12, "Tr_imu_to_velo": 12}
        lines = [f"{key}: {' '.join(f'{i + number:e}' for i in range(count))}" for key, count in rows.items()]
        if rigid:
            lines[4:6] = ["R0_rect: 1 0 0 0 1 0 0 0 1", "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 -0.5"]
        (path / "calib" / f"{name}.txt").write_text("\n".join(lines) + "\n\n")
        labels = [
            "Car 0.25 1 -1.57 10.00 20.00 60.50 30.00 1.5 1.6 3.9 2.0 1.7 20.0 -1.6",
            "Cyclist 0.00 0 0.50 1.00 2.00 3.00 4.00 1.7 0.6 1.8 -5.0 1.6 9.0 0.4",
            "DontCare -1 -1 -10 5.00 6.00 7.00 8.00 -1 -1 -1 -1000 -1000 -1000 -10",
        ]
        text = "" if number == 2 else "\n".join(labels) + "\n"
        (path / "label_2" / f"{name}.txt").write_text(text)
    return folder
