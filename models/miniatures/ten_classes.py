"""A moving simulated street with the ten classes of the detection task of nuScenes, for miniatures.

The drive is that of `models/street/drives.py`, whose four classes become ten: some trucks are longer, some cyclists
ride a motorcycle, and small clutter becomes cones, barriers and bicycles.
"""

import dataclasses

import numpy as np

from ..street.camera_scenes import Street
from ..street.drives import at_time, draw_drive
from ..street.scenes import CYCLIST, PEDESTRIAN, TRUCK, Scene, rotation

NAMES = ("car", "truck", "bus", "trailer", "construction_vehicle", "pedestrian", "motorcycle", "bicycle")
NAMES += ("traffic_cone", "barrier")
LONG = {  # class -> mean length, width and height in metres; nearby trucks take these classes in turn
    "bus": (11.0, 2.9, 3.4),
    "truck": (7.0, 2.5, 2.9),
    "trailer": (12.5, 2.7, 3.9),
    "construction_vehicle": (6.4, 2.9, 3.1),
}
CONE, BARRIER, MOTORCYCLE = (0.42, 0.42, 1.05), (0.5, 2.5, 1.0), (2.1, 0.8, 1.5)
KERB = -8.6  # metres to the left of the lane of the vehicle: barriers stand there
PERIOD = 0.5  # seconds between samples


@dataclasses.dataclass
class World:
    """A street in which the vehicle drives straight on.

    Attributes:
        scene: what stands and moves there, in the frame of the vehicle at the start.
        names: one of NAMES for each box; "" for clutter.
        speed: metres per second of the vehicle.
        slope: rise of the ground along x and y.
    """

    scene: Scene
    names: list[str]
    speed: float
    slope: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, samples: int) -> "World":
        """Returns a random world that lasts for some samples."""
        scene, speed = draw_drive(rng, samples)
        for x in rng.permutation(np.arange(-22, 26, 4.0))[:8]:
            scene.add(np.array([x, KERB, 0, BARRIER[1], BARRIER[0], BARRIER[2], 0.0]))
        names = [
            _name(box, label, soft) for box, label, soft in zip(scene.boxes, scene.labels, scene.soft, strict=True)
        ]
        _divide(rng, scene, names)
        return cls(scene, names, speed, rng.normal(0, 0.01, 2))

    @property
    def labels(self) -> np.ndarray:
        """Class of each box in `models/street/scenes.py`, -1 for clutter."""
        return np.array(self.scene.labels)

    @property
    def speeds(self) -> np.ndarray:
        """Metres per second of each box, along its heading."""
        return np.array(self.scene.speeds)

    def boxes(self, seconds: float) -> np.ndarray:
        """Returns the boxes after some seconds in the frame of the vehicle: x, y, z of the bottom, l, w, h, yaw."""
        boxes = at_time(self.scene, self.speed, seconds)
        boxes[:, 2] += boxes[:, :2] @ self.slope
        return boxes

    def travelled(self, seconds: float) -> np.ndarray:
        """Returns how far the vehicle has moved, in its frame at the start, `[3]`; its axes do not turn."""
        return self.speed * seconds * np.array([1, 0, self.slope[0]])

    def street(self, seconds: float) -> Street:
        """Returns the street in the frame of the vehicle, as `models/street/camera_scenes.py` draws it."""
        return Street(0.0, np.array([-self.speed * seconds, 0.0]), self.slope, None)


def _name(box: np.ndarray, label: int, soft: float) -> str:
    """Returns the class of a box before trucks and cyclists are divided."""
    if label >= 0:
        return ("car", "truck", "pedestrian", "bicycle")[label]
    length, width, height = box[3:6]
    if soft > 0.02 or height > 2 or width > 0.8:
        return ""
    if length <= 0.8:
        return "traffic_cone" if height >= 1 else ""
    return "barrier" if length >= 2 else "bicycle" if length >= 1.5 else ""


def _divide(rng: np.random.Generator, scene: Scene, names: list[str]) -> None:
    """Gives the boxes of a scene the classes that the simulated street lacks, with their sizes."""

    def resize(n: int, size: tuple[float, ...]) -> None:
        scene.boxes[n] = scene.boxes[n].copy()
        scene.boxes[n][3:6] = np.array(size) * (1 + 0.05 * rng.normal(size=3).clip(-2, 2))

    near = sorted(range(len(names)), key=lambda n: np.hypot(*scene.boxes[n][:2]))
    longs, riders = ([n for n in near if scene.labels[n] == label] for label in (TRUCK, CYCLIST))
    parked = [n for n in near if names[n] == "car" and scene.speeds[n] == 0]
    for turn, n in enumerate([*parked[:: len(parked) // 3 + 1], *longs]):
        names[n] = list(LONG)[turn % len(LONG)]
        scene.labels[n] = TRUCK
        resize(n, LONG[names[n]])
        _clear(scene, names, n)
    for n in riders[::2]:
        names[n] = "motorcycle"
        resize(n, MOTORCYCLE)
    for n, name in enumerate(names):
        if name == "traffic_cone":
            resize(n, CONE)
        elif name == "barrier":
            resize(n, BARRIER)
            scene.boxes[n][6] += np.pi / 2


def _clear(scene: Scene, names: list[str], n: int) -> None:
    """Moves objects that a longer vehicle overlaps far away: the order of the boxes must not change."""
    x, y, _, length, width, _, yaw = scene.boxes[n]
    for other, box in enumerate(scene.boxes):
        ahead, left = np.abs((box[:2] - [x, y]) @ rotation(yaw))
        if other != n and names[other] and ahead < (length + box[3]) / 2 + 0.3 and left < (width + box[4]) / 2:
            scene.boxes[other] = box + np.array([0, 500.0, 0, 0, 0, 0, 0])
            names[other] = ""


def attribute(name: str, speed: float, label: int) -> str:
    """Returns the attribute of nuScenes of an object; "" for a class without attributes."""
    if name in ("traffic_cone", "barrier"):
        return ""
    if label == PEDESTRIAN:
        return "pedestrian.moving" if speed > 0 else "pedestrian.standing"
    if name in ("motorcycle", "bicycle"):
        return "cycle.with_rider" if label == CYCLIST else "cycle.without_rider"
    return "vehicle.moving" if speed > 0 else "vehicle.parked"
