"""Simulated camera images of street scenes, with masks of vehicles and lane lines in the bird's-eye view.

The scenes are those of `models/street/scenes.py`, from a vehicle at any place and heading on the right half of the
street. A second street may cross. Boxes have a colour by class and a shade by face; lines are painted on the road; haze
and noise are added.
"""

import dataclasses

import numpy as np

from .cameras import COLUMNS, FAR, HORIZON, ROWS, Rig, cast
from .scenes import (
    CAR,
    CLASSES,
    CYCLIST,
    EXTENT,
    PEDESTRIAN,
    TRUCK,
    Scene,
    draw_object,
    draw_scene,
    parts_of,
    rotation,
    scan,
)

GRID = 128  # cells along each side of the masks, which cover the square |x|, |y| < EXTENT
MASKS = ("vehicle", "lane")
LINES = ((-5.25, False), (-1.75, True), (1.75, False), (5.25, True), (8.75, False))  # y in metres; whether dashed
ROADSIDE, WALL = (-7.6, 11.1), (-12.8, 16.3)  # edges of the road, and of the pavements
ACROSS = 3.6  # metres from the middle of a crossing street to its edges
PAINTED, LABELLED = 0.15, 0.6  # metres: width of a line on the road, and in the mask
VEHICLES = (CAR, TRUCK)
KINDS = (*CLASSES, "clutter", "line", "ground", "sky")  # what a patch of an image shows
CLUTTER, LINE, GROUND, SKY = range(len(CLASSES), len(KINDS))
PATCH = (8, 4)  # rows and columns of the patches of an image for which depth and kind are given
LEAST = 3  # pixels in all images of a vehicle in the mask

COLOURS = np.array([[0.5, 0.5, 0.5], [0.65, 0.6, 0.5], [0.5, 0.35, 0.3], [0.35, 0.45, 0.3], [0.45, 0.42, 0.36]])
ROAD, PAINT, PAVEMENT, GRASS = (0.3, 0.3, 0.32), (0.85, 0.85, 0.8), (0.52, 0.5, 0.47), (0.3, 0.4, 0.22)
GLASS = np.array([0.15, 0.18, 0.22])
HAZE, BLUE = np.array([0.75, 0.78, 0.82]), np.array([0.55, 0.68, 0.88])


@dataclasses.dataclass
class Street:
    """Where the street is in the frame of the vehicle: turned and then shifted; the ground rises by `slope`.

    `crossing` is the middle of a street that crosses, along x in the frame of the street; None without one.
    """

    turn: float
    shift: np.ndarray
    slope: np.ndarray
    crossing: float | None

    def place(self, boxes: np.ndarray) -> np.ndarray:
        """Returns boxes of the frame of the street in the frame of the vehicle."""
        boxes = boxes.copy()
        boxes[:, :2] = boxes[:, :2] @ rotation(self.turn).T + self.shift
        boxes[:, 6] += self.turn
        boxes[:, 2] += boxes[:, :2] @ self.slope
        return boxes

    def find(self, points: np.ndarray) -> np.ndarray:
        """Returns points `[..., 2]` of the frame of the vehicle in the frame of the street."""
        return (points - self.shift) @ rotation(self.turn)

    def lines(self, x: np.ndarray, y: np.ndarray):
        """Yields the lines at points of the frame of the street: distances, whether dashed, and where a line is."""
        across = np.inf if self.crossing is None else np.abs(x - self.crossing)
        for at, dashed in LINES:
            yield np.abs(y - at), x if dashed else None, across > ACROSS
        if self.crossing is not None:
            outside = (y < ROADSIDE[0]) | (y > ROADSIDE[1])
            yield across, y, outside


def draw_street(rng: np.random.Generator) -> tuple[Scene, Street]:
    """Returns a scene in the frame of the street, and where the street is in the frame of the vehicle."""
    scene = draw_scene(rng)
    crossing = rng.uniform(-20, 20) if rng.random() < 0.5 else None
    y = rng.choice([0.0, -3.5]) + rng.uniform(-1.2, 1.2)
    turn = rng.normal(0, 0.2) if rng.random() < 0.75 else rng.uniform(-np.pi, np.pi)
    street = Street(turn, np.zeros(2), rng.normal(0, 0.01, 2), crossing)
    street.shift = -street.place(np.array([[rng.uniform(-10, 10), y, 0, 0, 0, 0, 0]]))[0, :2]
    kept = Scene()
    for box, label, speed, soft in zip(scene.boxes, scene.labels, scene.speeds, scene.soft, strict=True):
        if _stays(box, label, street):
            kept.put(box, label, speed, soft)
    if crossing is not None:
        for lane, heading in ((1.75, np.pi / 2), (-1.75, -np.pi / 2)):
            for slot in np.arange(-36, 40, 9.0):
                if rng.random() < 0.4 and not -10 < slot < 13:
                    label = TRUCK if rng.random() < 0.2 else CAR
                    box = draw_object(
                        rng, label, crossing + lane, slot + rng.uniform(-1, 1), heading + rng.normal(0, 0.04)
                    )
                    kept.put(box, label, rng.uniform(0, 10))
    return kept, street


def _stays(box: np.ndarray, label: int, street: Street) -> bool:
    """Returns whether a box is neither at the vehicle nor on the crossing street outside of the road."""
    reach = np.hypot(*box[3:5]) / 2
    if np.hypot(*street.place(box[None])[0, :2]) < 2.5 + reach:
        return False
    if street.crossing is None or label in (PEDESTRIAN, CYCLIST):
        return True
    c, s = np.abs(np.cos(box[6])), np.abs(np.sin(box[6]))
    near = abs(box[0] - street.crossing) < ACROSS + 0.5 + (c * box[3] + s * box[4]) / 2
    return not (near and not -5.3 < box[1] < 8.8)


def masks(boxes: np.ndarray, street: Street) -> np.ndarray:
    """Returns the cells in boxes of the frame of the vehicle, and at lane lines, `[GRID, GRID, 2]`, rows along y."""
    centres = (np.arange(GRID) + 0.5) * (2 * EXTENT / GRID) - EXTENT
    taken = np.zeros((GRID, GRID), bool)
    for x, y, _, length, width, _, yaw in boxes:
        along, up = np.abs(centres - x) < (length + width) / 2, np.abs(centres - y) < (length + width) / 2
        dx, dy = np.meshgrid(centres[along] - x, centres[up] - y)
        c, s = np.cos(yaw), np.sin(yaw)
        taken[np.ix_(up, along)] |= (np.abs(c * dx + s * dy) < length / 2) & (np.abs(c * dy - s * dx) < width / 2)
    x, y = np.moveaxis(street.find(np.stack(np.meshgrid(centres, centres), -1)), -1, 0)
    painted = np.zeros((GRID, GRID), bool)
    for distance, _, where in street.lines(x, y):
        painted |= where & (distance < LABELLED / 2)
    return np.stack([taken, painted], -1)


def _cover(distance: np.ndarray | float, width: float, pixel: np.ndarray) -> np.ndarray:
    """Returns the share of a pixel of a size in metres that is in a strip of a width, at a distance from its middle."""
    low, high = np.maximum(distance - width / 2, -pixel / 2), np.minimum(distance + width / 2, pixel / 2)
    return (high - low).clip(0) / pixel


def ground(rays: np.ndarray, rig: Rig, street: Street) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the depth of the ground at each pixel, infinite at the sky; its colour; and the share of paint."""
    slope = np.append(street.slope, -1).astype(np.float32)
    height = -rig.poses[:, :3, 3] @ slope  # above the ground, along z
    fall = rays @ slope
    depth = np.where(fall > 1e-3, height[:, None, None] / np.maximum(fall, 1e-3), np.inf).astype(np.float32)
    points = rig.poses[:, None, None, :2, 3] + rays[..., :2] * np.minimum(depth, 1e3)[..., None]
    x, y = np.moveaxis(street.find(points), -1, 0).astype(np.float32)
    pixel = [np.abs(np.gradient(along, axis=1)) + np.abs(np.gradient(along, axis=2)) + 1e-3 for along in (x, y)]
    middle = np.mean(ROADSIDE), np.mean(WALL)
    road = _cover(np.abs(y - middle[0]), np.ptp(ROADSIDE), pixel[1])
    paved = _cover(np.abs(y - middle[1]), np.ptp(WALL), pixel[1])
    if street.crossing is not None:
        road = np.maximum(road, _cover(np.abs(x - street.crossing), 2 * ACROSS, pixel[0]))
    paint = np.zeros_like(road)
    for distance, dashes, where in street.lines(x, y):
        at = _cover(distance, PAINTED, pixel[0] if dashes is y else pixel[1])
        paint = np.maximum(paint, at * where * (1 if dashes is None else (dashes % 6 < 3.5)))
    colour = np.array(GRASS, np.float32)
    for share, over in ((paved, PAVEMENT), (road, ROAD), (paint, PAINT)):
        colour = colour + share[..., None] * (np.array(over, np.float32) - colour)
    return depth, colour, paint


def render(
    rng: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, street: Street, rig: Rig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns images, and the box, the depth and the kind of each pixel.

    Returns:
        Images, uint8 `[6, ROWS, COLUMNS, 3]`; the index of the box at each pixel, -1 without a box; the metres ahead of
        the camera, infinite in the sky; and the index into KINDS. Each but the first is `[6, ROWS, COLUMNS]`.
    """
    parts, part_of = parts_of(boxes, labels)
    depth, owner, face = cast(parts, rig)
    rays = rig.rays().astype(np.float32)
    below, image, paint = ground(rays, rig, street)
    image = image * rng.uniform(0.85, 1.15) + 0.015 * rng.standard_normal((*image.shape[:3], 1), np.float32)
    own = COLOURS[labels] * rng.uniform(0.4, 1.7, (len(boxes), 1)) + rng.normal(0, 0.08, (len(boxes), 3))
    own = own[part_of]
    upper = np.append(False, part_of[1:] == part_of[:-1]) & np.isin(labels, VEHICLES)[part_of]
    own[upper] = 0.5 * own[upper] + 0.5 * GLASS
    angle, high = rng.uniform(-np.pi, np.pi), rng.uniform(0.4, 1.2)
    sun = np.array([np.cos(angle) * np.cos(high), np.sin(angle) * np.cos(high), np.sin(high)])
    shade = 0.55 + 0.6 * (face @ sun).clip(0)
    solid = (owner >= 0) & (depth < below)
    image = np.where(solid[..., None], own.astype(np.float32)[owner] * shade[..., None].astype(np.float32), image)
    depth = np.minimum(depth, below)
    clear = np.exp(-depth / rng.uniform(60, 200))[..., None]
    up = (-np.arange(ROWS) + HORIZON).clip(0)[:, None, None] / HORIZON
    image = image * clear + (1 - clear) * np.where((depth > FAR)[..., None], HAZE + up * (BLUE - HAZE), HAZE)
    image = image * rng.uniform(0.8, 1.15) + 0.02 * rng.standard_normal(image.shape, np.float32)
    owner = np.where(solid, part_of[owner], -1)
    kind = np.select(
        [solid, np.isinf(depth), paint > 0.2], [np.where(labels < 0, CLUTTER, labels)[owner], SKY, LINE], GROUND
    )
    return (255 * image.clip(0, 1)).astype(np.uint8), owner, depth, kind


def observe(rng: np.random.Generator, images: bool, lidar: bool) -> dict[str, np.ndarray]:
    """Returns what the sensors measure in a scene, see CameraScenes."""
    scene, street = draw_street(rng)
    boxes = street.place(np.stack(scene.boxes))
    noise = rng.spawn(1)[0]  # for the lidar: a sweep is the same with and without images
    seen = view(rng, street, boxes, np.array(scene.labels)) if images else {}
    return {**seen, **(scan(noise, scene, boxes, street.slope) if lidar else {})}


def view(rng: np.random.Generator, street: Street, boxes: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the images of boxes in the frame of the vehicle, and what is known of them, see CameraScenes."""
    rig = Rig.mounted(rng)
    images, owner, depth, kind = render(rng, boxes, labels, street, rig)
    pixels = np.bincount(owner.ravel() + 1, minlength=len(boxes) + 1)[1:]
    centre = np.s_[:, PATCH[0] // 2 :: PATCH[0], PATCH[1] // 2 :: PATCH[1]]
    patches = kind.reshape(6, ROWS // PATCH[0], PATCH[0], COLUMNS // PATCH[1], PATCH[1])
    kind = np.where((patches == LINE).any((2, 4)), LINE, kind[centre])
    seen = boxes[np.isin(labels, VEHICLES) & (pixels >= LEAST)]
    return {
        "images": images,
        "intrinsics": rig.intrinsics.astype(np.float32),
        "poses": rig.poses.astype(np.float32),
        "depth": depth[centre].astype(np.float32),
        "kind": kind.astype(np.int32),
        "masks": masks(seen, street),
    }


class CameraScenes:
    """Source of scenes seen by six cameras.

    - `images`, uint8 `[6, ROWS, COLUMNS, 3]`, in the order of CAMERAS.
    - `intrinsics`, float32 `[6, 3, 3]`, and `poses`, float32 `[6, 4, 4]`: camera to vehicle.
    - `depth`, float32, and `kind`, int32, `[6, ROWS / 8, COLUMNS / 4]`: metres ahead at the middle of each
      patch (infinite in the sky), and the index into KINDS of what the patch shows. The kind is "line" if any
      pixel of the patch shows a lane line.
    - `masks`, bool `[GRID, GRID, 2]`: cells of cars and trucks that are seen, and cells of lane lines; rows along y.

    With `lidar`, the fields of StreetScenes are added, for a sensor above the origin. Without `images`, these are the
    only fields. Each scene depends only on the seed and its index.
    """

    def __init__(self, count: int = 1000, seed: int = 0, lidar: bool = False, images: bool = True):
        self.count, self.seed, self.lidar, self.images = count, seed, lidar, images

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        return observe(np.random.default_rng([self.seed, index]), self.images, self.lidar)
