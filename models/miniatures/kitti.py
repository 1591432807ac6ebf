"""Writes simulated frames in the layout of KITTI's object detection: lidar, images, calibration, labels and splits.

python -m convoy_zoo.models.miniatures.kitti FOLDER

The sweeps are those of `models/street/scenes.py`, with every second point; the images show the boxes as flat areas,
since no config reads them. As in KITTI, only objects in the image have a label, those with few points are DontCare
regions, and some trucks are vans. The frames of `testing` have no labels.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..street.kitti_frames import camera_boxes, clipped, image_boxes
from ..street.scenes import CAR, CYCLIST, HEIGHT, PEDESTRIAN, sweep

SIZE = np.array([375, 1242])  # height, width
P2 = np.array([[721.5377, 0, 609.5593, 44.85728], [0, 721.5377, 172.854, 0.2163791], [0, 0, 1, 0.002745884]])
BASELINES = {"P0": 0.0, "P1": -387.5744, "P2": 44.85728, "P3": -339.5242}
RECTIFY = np.array([[0.99992, 0.0098, -0.0074], [-0.00984, 0.99994, -0.0043], [0.0074, 0.0044, 0.99996]])
TURN = np.array([[0.0075, -0.99997, -0.0006], [0.0148, 0.0007, -0.99989], [0.99986, 0.0075, 0.0148]])
MOVE = np.array([-0.0041, -0.0763, -0.2718])
LABELS = {CAR: "Car", PEDESTRIAN: "Pedestrian", CYCLIST: "Cyclist"}
FEWEST_POINTS = 5  # of an object with a label
COLORS = {"Car": "silver", "Van": "gray", "Truck": "navy", "Pedestrian": "maroon", "Cyclist": "olive"}


def write(folder: str | Path, frames: int = 128, held_out: int = 32, testing: int = 4, seed: int = 0) -> None:
    """Writes a miniature. The same arguments give the same bytes.

    Args:
        folder: made if it is absent.
        frames: frames of the split `train`.
        held_out: frames of the split `val`, in the same folder `training`.
        testing: frames of the folder `testing`.
        seed: another seed gives other scenes.
    """
    folder, names = Path(folder), [f"{number:06}" for number in range(max(frames + held_out, testing))]
    splits = {"train": names[:frames], "val": names[frames : frames + held_out], "test": names[:testing]}
    (folder / "ImageSets").mkdir(parents=True, exist_ok=True)
    for split, own in (*splits.items(), ("trainval", names[: frames + held_out])):
        (folder / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in own))
    for number, name in enumerate(names[: frames + held_out]):
        _write_frame(folder / "training", name, np.random.default_rng([seed, 0, number]), True)
    for number, name in enumerate(splits["test"]):
        _write_frame(folder / "testing", name, np.random.default_rng([seed, 1, number]), False)


def to_camera() -> np.ndarray:
    """Returns the matrix from the lidar to the rectified camera, `[3, 4]`, with rotations in all digits of its file."""
    return np.concatenate([_nearest(RECTIFY) @ _nearest(TURN), (_nearest(RECTIFY) @ MOVE)[:, None]], 1)


def _nearest(matrix: np.ndarray) -> np.ndarray:
    """Returns the rotation nearest to a matrix."""
    u, _, v = np.linalg.svd(matrix)
    return u @ v


def _write_frame(folder: Path, name: str, rng: np.random.Generator, labelled: bool) -> None:
    example = sweep(rng)
    points = example["points"][::2]
    points[:, 2] -= HEIGHT  # the lidar is the origin
    example["boxes"][:, 2] -= HEIGHT
    rows = _label_rows(rng, example)
    for part, ending in (("velodyne", "bin"), ("image_2", "png"), ("calib", "txt"), ("label_2", "txt")):
        path = folder / part / f"{name}.{ending}"
        if part == "label_2" and not labelled:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if part == "velodyne":
            points.astype("<f4").tofile(path)
        elif part == "image_2":
            _picture(rows).save(path)
        else:
            path.write_text(_calib() if part == "calib" else "".join(f"{row}\n" for row in rows))


def _calib() -> str:
    rows = {}
    for camera, baseline in BASELINES.items():
        matrix = P2.copy()
        matrix[0, 3] = baseline
        rows[camera] = matrix
    rows |= {"R0_rect": _nearest(RECTIFY), "Tr_velo_to_cam": np.concatenate([_nearest(TURN), MOVE[:, None]], 1)}
    rows["Tr_imu_to_velo"] = np.eye(3, 4)
    return "".join(f"{name}: {' '.join(f'{x:.12e}' for x in matrix.ravel())}\n" for name, matrix in rows.items())


def _label_rows(rng: np.random.Generator, example: dict[str, np.ndarray]) -> list[str]:
    """Returns the lines of the label file; the regions without a label come last, as in KITTI."""
    boxes = camera_boxes(example["boxes"].astype(np.float64), to_camera(), np)
    whole = image_boxes(boxes, P2, np)
    inside = clipped(whole, SIZE, np)
    areas = [np.prod(image[:, 2:] - image[:, :2], axis=1) for image in (inside, whole)]
    truncated = 1 - areas[0] / areas[1]
    rows, regions = [], []
    for i in np.flatnonzero((boxes[:, 2] > 1) & (areas[0] > 20) & (truncated < 0.9)):
        image = " ".join(f"{x:.2f}" for x in inside[i])
        hidden = 1 - example["hits"][i] / max(example["alone"][i], 1)  # a tenth to a third of the rays find nothing
        kind = LABELS.get(example["label"][i]) or ("Van" if rng.random() < 0.5 else "Truck")
        if example["hits"][i] < FEWEST_POINTS:
            regions.append(f"DontCare -1 -1 -10 {image} -1 -1 -1 -1000 -1000 -1000 -10")
            continue
        x, y, z, height, width, length, yaw = boxes[i]
        alpha = (yaw - np.arctan2(x, z) + np.pi) % (2 * np.pi) - np.pi
        numbers = [height, width, length, x, y, z, yaw]
        text = " ".join(f"{number:.2f}" for number in numbers)
        rows.append(f"{kind} {truncated[i]:.2f} {np.digitize(hidden, [0.4, 0.7])} {alpha:.2f} {image} {text}")
    return rows + regions


def _picture(rows: list[str]) -> Image.Image:
    """Returns a picture of the sky, the street, and the labelled objects, the farthest first."""
    height, width = SIZE.tolist()
    image = Image.new("RGB", (width, height), "lightskyblue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, round(P2[1, 2]), width, height), fill="dimgray")
    for row in sorted(rows, key=lambda row: -float(row.split()[13])):
        kind, *numbers = row.split()
        draw.rectangle([float(x) for x in numbers[3:7]], fill=COLORS.get(kind, "black"))
    return image


if __name__ == "__main__":
    write(sys.argv[1])
