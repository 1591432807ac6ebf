"""Frames with points in labelled boxes that do not overlap, for the tests of `SampleObjects`."""

import numpy as np

from engine.augmentation.footprints import inside, overlaps

KINDS = ("car", "bus", "sign")


def pose():
    """Returns a tilted pose of a sensor, float64 `[4, 4]`."""
    axes, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = axes * np.sign(np.linalg.det(axes)), [1, 2, 0.5]
    return found


class Frames:
    """Source of frames of 5 boxes at most, with 0 to 40 points in each and 200 others.

    `points` float32 `[points, 5]`, `boxes` float32 `[boxes, 9]`, `kind` int32 `[boxes]`, and `own`, the number of
    points in each box. With `to_ego`, the points are in the frame of a tilted sensor.
    """

    def __init__(self, count=8, to_ego=False):
        self.count, self.to_ego, self.reads = count, to_ego, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        rng = np.random.default_rng(index)
        boxes = np.zeros((0, 9))
        while len(boxes) < 4 + index % 2:
            box = np.concatenate([rng.uniform(-15, 15, 2), [0], rng.uniform(1, 4, 3), rng.uniform(-3, 3, 3)])
            if not overlaps(box[None, :7], boxes[:, :7]).any():
                boxes = np.concatenate([boxes, box[None]])
        boxes = boxes.astype(np.float32)
        parts = [rng.uniform(-18, 18, (200, 5))]
        for box in boxes.astype(np.float64):
            own = rng.uniform(-0.49, 0.49, (rng.integers(0, 40), 5))
            own[:, :3] *= box[3:6]
            c, s = np.cos(box[6]), np.sin(box[6])
            own[:, :2] = own[:, :2] @ np.array([[c, s], [-s, c]])
            own[:, :3] += box[:3]
            parts.append(own)
        points = np.concatenate(parts)
        counts = [int(inside(points, box).sum()) for box in boxes[:, :7].astype(np.float64)]
        if self.to_ego:
            back = np.linalg.inv(pose())
            points[:, :3] = points[:, :3] @ back[:3, :3].T + back[:3, 3]
        frame = {
            "points": points.astype(np.float32),
            "boxes": boxes,
            "kind": (np.arange(len(boxes)) % 3).astype(np.int32),
            "own": np.array(counts),
        }
        return {**frame, "to_ego": pose()} if self.to_ego else frame
