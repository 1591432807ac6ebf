"""Simulated lidar sweeps of street scenes with labelled boxes, made by casting rays at boxes.

A scene is a street with four lanes, right-hand traffic, parked cars, pavements and houses. Cars, trucks, pedestrians
and cyclists are objects; poles, trees, bushes, bins, walls and houses are clutter. Everything hides what is behind it.
The front of each class has another shape than its back. `lidar_baseline.py` prints the difficulty in numbers.
"""

import dataclasses
import functools

import numpy as np

CLASSES = ("car", "truck", "pedestrian", "cyclist")
SIZES = np.array([[4.5, 1.85, 1.6], [8.0, 2.5, 3.2], [0.6, 0.65, 1.72], [1.8, 0.65, 1.75]])  # [class, (l, w, h)] m
SPREAD = np.array([[0.35, 0.1, 0.15], [1.2, 0.1, 0.35], [0.08, 0.08, 0.12], [0.12, 0.06, 0.1]])  # standard deviations
EXTENT = 32.0  # metres: labels lie in the square |x|, |y| < EXTENT
AZIMUTHS, BEAMS, HEIGHT, RANGE = 1000, 40, 1.8, 60.0
RAYS = AZIMUTHS * BEAMS
RANGES = ((0, 15), (15, 30), (30, 50))  # metres from the sensor, for which metrics are given
CAR, TRUCK, PEDESTRIAN, CYCLIST = range(4)

# Parts of each class: size and centre as shares of (l, w, h), the centre from the middle of the bottom.
PARTS = (
    [((1, 1, 0.5), (0, 0, 0.36)), ((0.55, 0.88, 0.42), (-0.1, 0, 0.79))],  # body, cabin
    [((0.74, 1, 0.9), (-0.13, 0, 0.55)), ((0.24, 0.96, 0.7), (0.38, 0, 0.44))],  # load, cab
    [
        *[((0.4, 0.35, 0.48), (0.25 * side, 0.25 * side, 0.24)) for side in (-1, 1)],  # legs in a stride
        ((0.45, 1, 0.37), (-0.05, 0, 0.665)),  # trunk and arms
        ((0.4, 0.35, 0.15), (0.15, 0, 0.925)),  # head, ahead of the trunk
    ],
    [
        ((1, 0.25, 0.55), (0, 0, 0.28)),  # bicycle
        ((0.3, 0.7, 0.45), (-0.1, 0, 0.55)),  # legs and hips of the rider
        ((0.35, 1, 0.25), (0.05, 0, 0.875)),  # shoulders and head, bent forward
    ],
)


@dataclasses.dataclass
class Scene:
    """What stands in a scene, in the frame of the street. Boxes are x, y, z of the bottom, l, w, h and yaw."""

    boxes: list[np.ndarray] = dataclasses.field(default_factory=list)
    labels: list[int] = dataclasses.field(default_factory=list)  # -1 for clutter
    speeds: list[float] = dataclasses.field(default_factory=list)
    soft: list[float] = dataclasses.field(default_factory=list)  # standard deviation of the range of a hit, in metres
    placed: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((512, 6)))  # x, y, reach (2), cos, sin

    def add(self, box: np.ndarray, label: int = -1, speed: float = 0.0, soft: float = 0.02) -> None:
        """Adds a box, unless its footprint is within 0.3 m of another, or within 2 m of the sensor."""
        half, c, s = box[3:5] / 2, np.cos(box[6]), np.sin(box[6])
        ahead, left = np.abs([c * box[0] + s * box[1], c * box[1] - s * box[0]])  # the sensor in the box's frame
        if np.hypot(max(ahead - half[0], 0), max(left - half[1], 0)) < 2:
            return
        others = self.placed[: len(self.boxes)]
        dx, dy, oc, os = box[0] - others[:, 0], box[1] - others[:, 1], others[:, 4], others[:, 5]
        turn, across = np.abs(c * oc + s * os), np.abs(c * os - s * oc)  # cosine and sine between the headings
        length, width = others[:, 2], others[:, 3]
        touching = np.abs(c * dx + s * dy) < half[0] + turn * length + across * width
        touching &= np.abs(c * dy - s * dx) < half[1] + across * length + turn * width
        touching &= np.abs(oc * dx + os * dy) < length + turn * half[0] + across * half[1]
        touching &= np.abs(oc * dy - os * dx) < width + across * half[0] + turn * half[1]
        if not touching.any():  # rectangles are apart if they are apart along a side of either
            self.put(box, label, speed, soft)

    def put(self, box: np.ndarray, label: int = -1, speed: float = 0.0, soft: float = 0.02) -> None:
        """Adds a box, even if it overlaps others."""
        near = box[3:5] / 2 + 0.3
        self.placed[len(self.boxes)] = [*box[:2], *near, np.cos(box[6]), np.sin(box[6])]
        self.boxes.append(box)
        self.labels.append(label)
        self.speeds.append(speed)
        self.soft.append(soft)


def rotation(yaw) -> np.ndarray:
    """Returns the matrices `[..., 2, 2]` that turn a vector by `yaw`."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)


def draw_object(rng: np.random.Generator, label: int, x: float, y: float, yaw: float) -> np.ndarray:
    """Returns the box of an object of a class, of a random size, on the ground."""
    size = SIZES[label] + SPREAD[label] * rng.normal(size=3).clip(-2, 2)
    return np.array([x, y, 0, *size, yaw])


def draw_scene(rng: np.random.Generator) -> Scene:
    """Returns the objects and the clutter of a random street, whose right lane goes through the origin."""
    scene = Scene()
    for lane, heading in ((0.0, 0.0), (-3.5, 0.0), (3.5, np.pi), (7.0, np.pi)):
        share, stopped = rng.uniform(0.1, 0.55), rng.random() < 0.3
        for slot in np.arange(-45, 46, 13.0):
            if rng.random() < share:
                label = TRUCK if rng.random() < 0.25 else CAR
                box = draw_object(rng, label, slot + rng.uniform(-2, 2), lane + rng.normal(0, 0.2), heading)
                box[6] += rng.normal(0, 0.04)
                scene.add(box, label, 0.0 if stopped else rng.uniform(2, 14))
    for lane, heading in ((-6.3, 0.0), (9.8, np.pi)):  # parked
        share = rng.uniform(0.1, 0.7)
        for slot in np.arange(-45, 46, 7.0):
            if rng.random() < share:
                label = TRUCK if rng.random() < 0.08 else CAR
                turned = np.pi * (rng.random() < 0.15)
                box = draw_object(
                    rng, label, slot + rng.uniform(-0.6, 0.6), lane + rng.normal(0, 0.15), heading + turned
                )
                scene.add(box, label)
    for _ in range(rng.integers(0, 4)):  # crossing
        label = CAR if rng.random() < 0.8 else TRUCK
        box = draw_object(rng, label, rng.uniform(-30, 30), rng.uniform(-12, 15), rng.choice([-1, 1]) * np.pi / 2)
        scene.add(box, label, rng.uniform(0, 8))
    for _ in range(rng.integers(2, 8)):
        y, heading = [(-4.9, 0.0), (8.3, np.pi), (-9.5, 0.0), (13, np.pi)][rng.integers(4)]
        box = draw_object(rng, CYCLIST, rng.uniform(-34, 34), y + rng.normal(0, 0.3), heading + rng.normal(0, 0.15))
        scene.add(box, CYCLIST, rng.uniform(2, 7) * (rng.random() < 0.85))
    for _ in range(rng.integers(3, 11)):  # pedestrians, alone or side by side
        crossing = rng.random() < 0.25
        x, y = rng.uniform(-33, 33), rng.uniform(-8, 11) if crossing else _pavement(rng)
        yaw = rng.uniform(-np.pi, np.pi) if rng.random() < 0.3 else np.pi * rng.integers(2) + crossing * np.pi / 2
        speed = rng.uniform(0.6, 1.9) * (crossing or rng.random() < 0.7)
        for place in range(int(rng.choice([1, 1, 2, 3]))):
            dx, dy = 1.0 * place * np.array([-np.sin(yaw), np.cos(yaw)])
            box = draw_object(rng, PEDESTRIAN, x + dx, y + dy, yaw + rng.normal(0, 0.2))
            scene.add(box, PEDESTRIAN, speed)
    _add_clutter(rng, scene)
    return scene


def _pavement(rng: np.random.Generator) -> float:
    return rng.uniform(-12, -8.3) if rng.random() < 0.5 else rng.uniform(11.8, 15.5)


def _add_clutter(rng: np.random.Generator, scene: Scene) -> None:
    def stand(count: int, low: tuple, high: tuple, soft: float = 0.02) -> None:
        for _ in range(count):
            size = rng.uniform(low, high)
            scene.add(np.array([rng.uniform(-40, 40), _pavement(rng), 0, *size, rng.uniform(-np.pi, np.pi)]), soft=soft)

    for side, first in ((-1, -13.0), (1, 16.5)):
        x = -60.0
        while x < 60:
            length, gap = rng.uniform(8, 25), rng.choice([0.0, 0.0, 2.0, 8.0])
            y = first + side * (5 + rng.uniform(0, 3))
            scene.add(np.array([x + length / 2, y, 0, length, 10, rng.uniform(5, 15), 0]))
            x += length + gap + 0.5
    stand(int(rng.integers(6, 16)), (0.15, 0.15, 2.2), (0.4, 0.4, 6))  # poles and trunks
    stand(int(rng.integers(6, 18)), (0.3, 0.3, 1.0), (0.8, 0.8, 2.0))  # boxes, bins and columns
    stand(int(rng.integers(2, 8)), (1.5, 0.1, 0.8), (1.9, 0.3, 1.2))  # bicycles without rider
    stand(int(rng.integers(4, 14)), (0.8, 0.6, 0.6), (4.5, 2.0, 2.2), 0.2)  # bushes
    stand(int(rng.integers(1, 6)), (2, 0.2, 0.8), (6, 0.4, 2.0))  # walls and fences
    for _ in range(rng.integers(0, 6)):  # crowns of trees, above the pavement
        size = rng.uniform((2, 2, 2), (4, 4, 3))
        place = [rng.uniform(-40, 40), _pavement(rng), rng.uniform(2.4, 3)]
        scene.put(np.array([*place, *size, 0]), soft=0.3)


@functools.cache
def directions() -> np.ndarray:
    """Returns the directions of the rays of a sweep, `[rays, 3]`."""
    azimuth = (np.arange(AZIMUTHS) + 0.5) * (2 * np.pi / AZIMUTHS)
    elevation = np.deg2rad(np.concatenate([np.linspace(-24, -9, 14), np.linspace(-8.4, 4, BEAMS - 14)]))
    flat = np.cos(elevation) * np.stack([np.cos(azimuth), np.sin(azimuth)])[..., None]  # [2, azimuths, beams]
    return np.stack([*flat, np.broadcast_to(np.sin(elevation), flat.shape[1:])], -1).reshape(-1, 3)


def cast(
    boxes: np.ndarray, slope: np.ndarray, part_of: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Casts every ray of a sweep at boxes and at the ground.

    Args:
        boxes: `[boxes, 7]`: x, y, z of the bottom, l, w, h, yaw.
        slope: rise of the ground along x and y, `[2]`.
        part_of: index of the object of each box, `[boxes]`; None if each box is an object.

    Returns:
        Directions `[rays, 3]`; the distances `[rays]`, infinite where nothing is hit; the index of the box that each
        ray hits, -1 for the ground; and the number of rays that would hit each object if it stood alone, `[objects]`.
    """
    rays = directions()
    fall = rays[:, :2] @ slope - rays[:, 2]
    depth = np.where(fall > 1e-6, HEIGHT / np.maximum(fall, 1e-6), np.inf)
    column, box = _columns(boxes)
    boxes, rays = boxes.astype(np.float32), rays.astype(np.float32)  # half the time
    ray = (column[:, None] * BEAMS + np.arange(BEAMS)).ravel()
    box = np.repeat(box, BEAMS)
    c, s = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    x, y = -boxes[:, 0], -boxes[:, 1]
    half = np.concatenate([boxes[:, 3:5] / 2, boxes[:, 5:6] / 2], 1)
    origin = np.stack([c * x + s * y, c * y - s * x, HEIGHT - boxes[:, 2] - half[:, 2]])  # in the frame of each box
    near, far = np.full(len(ray), 0.5, np.float32), np.full(len(ray), RANGE, np.float32)
    turned = (c[box] * rays[ray, 0] + s[box] * rays[ray, 1], c[box] * rays[ray, 1] - s[box] * rays[ray, 0])
    for k, along in enumerate((*turned, rays[ray, 2])):
        inverse = 1 / np.where(np.abs(along) < 1e-6, np.float32(1e-6), along)
        middle, reach = -origin[k][box] * inverse, half[box, k] * np.abs(inverse)
        near, far = np.maximum(near, middle - reach), np.minimum(far, middle + reach)
    hit = near < far
    ray, box, near = ray[hit], box[hit], near[hit]
    last = np.argsort(-near, kind="stable")  # the nearest is written last
    first, owner = np.full(len(rays), np.inf), np.full(len(rays), -1)
    first[ray[last]], owner[ray[last]] = near[last], box[last]
    owner[depth < first] = -1
    seen, part_of = near < depth[ray], np.arange(len(boxes)) if part_of is None else part_of
    passed = np.zeros((part_of.max() + 1, RAYS), bool)  # a ray may pass several parts of an object
    passed[part_of[box[seen]], ray[seen]] = True
    alone = passed.sum(1)
    return rays, np.minimum(depth, first), owner, alone


def _columns(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs (azimuth, box) at which a box can be seen, as two arrays of indices."""
    ends = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * boxes[:, None, 3:5] / 2
    corners = boxes[:, None, :2] + np.einsum("nij,nkj->nki", rotation(boxes[:, 6]), ends)
    middle = np.arctan2(boxes[:, 1], boxes[:, 0])
    angle = np.arctan2(corners[..., 1], corners[..., 0]) - middle[:, None]
    angle = (angle + np.pi) % (2 * np.pi) - np.pi
    step = 2 * np.pi / AZIMUTHS
    first = np.floor((middle + angle.min(1)) / step).astype(int)
    count = np.ceil((middle + angle.max(1)) / step).astype(int) - first + 1
    box = np.repeat(np.arange(len(boxes)), count)
    offset = np.arange(len(box)) - np.repeat(np.cumsum(count) - count, count)
    return (first[box] + offset) % AZIMUTHS, box


def sweep(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns a sweep and its labels, see StreetScenes."""
    scene, slope = draw_scene(rng), rng.normal(0, 0.01, 2)
    boxes = np.stack(scene.boxes)
    turn = rng.normal(0, 0.15)  # turn of the street in the frame of the sensor
    boxes[:, :2] = boxes[:, :2] @ rotation(turn).T
    boxes[:, 6] += turn
    boxes[:, 2] += boxes[:, :2] @ slope
    return scan(rng, scene, boxes, slope)


def scan(rng: np.random.Generator, scene: Scene, boxes: np.ndarray, slope: np.ndarray) -> dict[str, np.ndarray]:
    """Returns a sweep of a scene and its labels, see StreetScenes.

    Args:
        rng: source of the noise.
        scene: labels, speeds and surfaces of the boxes.
        boxes: in the frame of the sensor's vehicle, `[boxes, 7]`.
        slope: rise of the ground along x and y, `[2]`.
    """
    points, hits, alone = measure(rng, scene, boxes, slope)
    return {"points": points, **annotations(scene, boxes, hits > 0, hits, alone)}


def measure(
    rng: np.random.Generator, scene: Scene, boxes: np.ndarray, slope: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the points of a sweep, and the points on each box and the rays that would hit it if nothing hid it."""
    labels = np.array(scene.labels)
    parts, part_of = parts_of(boxes, labels)
    rays, depth, owner, alone = cast(parts, slope, part_of)
    seen = (depth < RANGE) & (rng.random(RAYS) > 0.05 + 0.25 * depth.clip(0, RANGE) / RANGE)
    rays, depth, owner = rays[seen], depth[seen], owner[seen]
    owner = np.where(owner >= 0, part_of[owner], -1)
    shine = np.append(rng.uniform(0.1, 0.9, len(boxes)), 0.2)[owner]
    depth = depth + rng.normal(size=len(depth)) * np.append(scene.soft, 0.02)[owner]
    points = rays * depth[:, None] + [0, 0, HEIGHT]
    intensity = (shine * np.exp(-depth / 60) + rng.normal(0, 0.03, len(depth))).clip(0, 1)
    hits = np.bincount(owner + 1, minlength=len(boxes) + 1)[1:]
    return np.concatenate([points, intensity[:, None]], 1).astype(np.float32), hits, alone


def annotations(
    scene: Scene, boxes: np.ndarray, known: np.ndarray, hits: np.ndarray, alone: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the labels of the objects within EXTENT that are `known`, bool `[boxes]`, see StreetScenes."""
    labels, speeds = np.array(scene.labels), np.array(scene.speeds)
    kept = (labels >= 0) & known & (np.abs(boxes[:, :2]).max(1) < EXTENT)
    boxes, yaw = boxes[kept], boxes[kept, 6]
    boxes[:, 2] += boxes[:, 5] / 2
    velocity = speeds[kept, None] * np.stack([np.cos(yaw), np.sin(yaw)], -1)
    return {
        "boxes": np.concatenate([boxes[:, :6], wrap(yaw)[:, None], velocity], 1).astype(np.float32),
        "label": labels[kept].astype(np.int32),
        "moving": (speeds[kept] > 0).astype(np.int32),
        "hits": hits[kept].astype(np.int32),
        "alone": alone[kept].astype(np.int32),
    }


def wrap(angle):
    """Returns angles as -pi to pi."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def parts_of(boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the boxes to cast rays at, `[parts, 7]`, and the index of the whole box of each."""
    found, owner = [], []
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        for share, centre in PARTS[label] if label >= 0 else [((1, 1, 1), (0, 0, 0.5))]:
            size, offset = box[3:6] * share, box[3:6] * centre
            xy = box[:2] + rotation(box[6]) @ offset[:2]
            found.append([*xy, box[2] + offset[2] - size[2] / 2, *size, box[6]])
            owner.append(index)
    return np.array(found), np.array(owner)


class StreetScenes:
    """Source of sweeps with ragged fields of two lengths, in metres in the frame of the sensor's vehicle; z = 0 is the
    ground below the sensor.

    - `points`, float32 `[points, 4]`: x, y, z and intensity, 0 to 1.
    - `boxes`, float32 `[objects, 9]`: x, y, z of the centre, length, width, height, yaw, velocity along x and y.
    - `label`, `moving`, int32 `[objects]`: index into CLASSES; 1 for an object that moves.
    - `hits`, `alone`, int32 `[objects]`: points on the object, and rays that would hit it if nothing hid it.

    Only objects with a point and a centre within EXTENT are labelled. Each depends only on the seed and its index.
    """

    def __init__(self, count: int = 1000, seed: int = 0):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        return sweep(np.random.default_rng([self.seed, index]))
