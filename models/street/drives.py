"""Simulated drives: lidar sweeps of one street at 2 Hz, in which objects move, are hidden, and appear again.

The vehicle drives straight on in the right lane, at the speed of that lane. Every other object keeps its speed and its
heading. The scenes and the sensor are those of `models/street/scenes.py`.
"""

import functools

import numpy as np

from engine import Sequences

from .lidar import OBJECTS
from .scenes import RAYS, Scene, annotations, draw_scene, measure

PERIOD = 0.5  # seconds between two sweeps
FRAMES = (6, 16)  # least and most sweeps of a drive
REMEMBERED = 4  # sweeps after its last point for which a hidden object is labelled: 2 s


def draw_drive(rng: np.random.Generator, frames: int) -> tuple[Scene, float]:
    """Returns what stands and moves in a street, and the speed of the vehicle in metres per second."""
    street, speed = draw_scene(rng), rng.uniform(0, 8)
    times = PERIOD * np.arange(frames)[:, None]
    scene = Scene()
    for box, label, own, soft in zip(street.boxes, street.labels, street.speeds, street.soft, strict=True):
        in_lane = label >= 0 and own > 0 and abs(box[1]) < 1.5 and abs(box[6]) < 0.5
        if in_lane:
            own = speed
        path = box[:2] + times * (own * np.array([np.cos(box[6]), np.sin(box[6])]) - [speed, 0])
        if np.linalg.norm(path, axis=1).min() > 1.5 + max(box[3:5]) / 2 or label < 0:
            scene.put(box, label, own, soft)
    return scene, speed


def at_time(scene: Scene, speed: float, seconds: float) -> np.ndarray:
    """Returns the boxes of a scene after some seconds in the frame of the vehicle, `[boxes, 7]`."""
    boxes, own = np.stack(scene.boxes), np.array(scene.speeds)
    boxes[:, 0] += seconds * (own * np.cos(boxes[:, 6]) - speed)
    boxes[:, 1] += seconds * own * np.sin(boxes[:, 6])
    return boxes


@functools.lru_cache(maxsize=8)  # a drive is read in order, several at a time
def drive(seed: int, number: int, frames: int) -> list[dict[str, np.ndarray]]:
    """Returns the sweeps of a drive, see Drives."""
    rng = np.random.default_rng([seed, number])
    scene, speed = draw_drive(rng, frames)
    slope = rng.normal(0, 0.01, 2)
    unseen = np.full(len(scene.boxes), REMEMBERED + 1)  # sweeps since the last point on each object
    sweeps = []
    for frame in range(frames):
        boxes = at_time(scene, speed, PERIOD * frame)
        boxes[:, 2] += boxes[:, :2] @ slope
        points, hits, alone = measure(rng, scene, boxes, slope)
        unseen = np.where(hits > 0, 0, unseen + 1)
        labels = annotations(scene, boxes, unseen <= REMEMBERED, hits, alone)
        motion = np.array([speed * PERIOD * (frame > 0), 0, 0], np.float32)
        sweeps.append({**_padded(points, labels), "motion": motion})
    return sweeps


def _padded(points: np.ndarray, labels: dict[str, np.ndarray]) -> dict:
    """Returns points and labels with space for RAYS points and OBJECTS labels, and the masks of both."""
    count = min(len(labels["label"]), OBJECTS)

    def padded(array: np.ndarray, length: int) -> np.ndarray:
        array = array[:length]
        return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])

    masks = {"points": np.arange(RAYS) < len(points), "objects": np.arange(OBJECTS) < count}
    return {
        "points": padded(points, RAYS),
        **{name: padded(array, OBJECTS) for name, array in labels.items()},
        "mask": masks,
    }


class Drives:
    """Source of the sweeps of drives, one drive after the other, each in the order of time.

    - The fields of StreetScenes, padded as by `lidar.sweeps`, with their `mask`.
    - `motion`, float32 `[3]`: x, y and yaw of the vehicle in its own frame of the sweep before; zeros at the start.

    An object is labelled while it is within EXTENT and has a point, or had one at most REMEMBERED sweeps ago. So `hits`
    is 0 for a hidden object. Each drive depends only on the seed and its number.
    """

    def __init__(self, count: int = 100, seed: int = 0):
        self.seed = seed
        self.lengths = np.random.default_rng([seed, 2**31]).integers(FRAMES[0], FRAMES[1], count, endpoint=True)
        self.numbers = np.repeat(np.arange(count), self.lengths)  # of the drive of each sweep
        self.frames = np.arange(len(self.numbers)) - (np.cumsum(self.lengths) - self.lengths)[self.numbers]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        number = int(self.numbers[index])
        return dict(drive(self.seed, number, int(self.lengths[number]))[self.frames[index]])


def windows(count: int = 100, seed: int = 0, length: int = 4) -> Sequences:
    """Returns the windows of simulated drives, whose rows continue from step to step."""
    source = Drives(count, seed)
    return Sequences(source, group=source.numbers, order=PERIOD * source.frames, length=length, carry=True)
