"""`Crop`: a random part of each image, optionally resized, with the intrinsics of its camera."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from engine.augmentation.entries import array, described, entry, replaced
from engine.augmentation.images import image_of
from engine.augmentation.scene import Camera
from engine.augmentation.step import Augmentation
from engine.data.examples import Example

LEAST_ZOOM, MOST_ZOOM = 0.25, 8.0


class CropDraw(NamedTuple):
    """Parameters of `Crop`: where the part begins, from 0 for the first to 1 for the last place, and the zoom."""

    top: float
    left: float
    zoom: float


class Part(NamedTuple):
    """A part of an image in pixels, measured from its upper and left edges."""

    top: float
    left: float
    height: float
    width: float


@dataclasses.dataclass(frozen=True)
class Crop(Augmentation):
    """Cuts a random part out of each image, resizes it by `zoom`, and corrects the intrinsics.

    The images of all cameras get one draw. Without a zoom, pixels are copied and the part begins at a whole pixel. With
    one, pixels are interpolated bilinearly between the centers of pixels, and entries in `Camera.aligned` take the
    value of the nearest pixel. Intrinsics are exact in both conventions of `Camera.pixels`.
    """

    height: int
    """Height and `width` of the images afterwards, in pixels."""
    width: int
    top: tuple[float, float] = (0.0, 1.0)
    """Range of the place of the part: 0 for the top of the image, 1 for its bottom; likewise `left`."""
    left: tuple[float, float] = (0.0, 1.0)
    zoom: tuple[float, float] = (1.0, 1.0)
    """Range of the factor by which the part is enlarged."""

    def check(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) < 1:
                raise self.error(f"{name} = {getattr(self, name)}: allowed are 1 and more pixels.")
        self.range("top", 0, 1)
        self.range("left", 0, 1)
        self.range("zoom", LEAST_ZOOM, MOST_ZOOM)

    def draw(self, rng: np.random.Generator, example: Example) -> CropDraw:
        return CropDraw(*(float(rng.uniform(*self.range(name))) for name in ("top", "left", "zoom")))

    def apply(self, example: Example, parameters: CropDraw) -> Example:
        changes: dict[str, Any] = {}
        for camera in self.described.cameras:
            image = image_of(example, camera, self.where)
            part = self.part(image.shape[-3], image.shape[-2], camera, parameters)
            changes[camera.image] = _resized(image, part, self.height, self.width)
            for path in camera.aligned:
                changes[path] = self._aligned(example, path, image.shape[:-1], part)
            if camera.intrinsics:
                old = array(example, camera.intrinsics, self.where, "[..., 3, 3]", (3, 3))
                changes[camera.intrinsics] = cropped_intrinsics(old, part, parameters.zoom, camera.pixels)
        return replaced(example, changes)

    def part(self, height: int, width: int, camera: Camera, parameters: CropDraw) -> Part:
        """Returns the part of an image of this size. Raises DataError if the image is too small for the least zoom."""
        least = self.range("zoom")[0]
        if self.height > height * least or self.width > width * least:
            raise self.error(
                f"{camera.image} has {height} x {width} pixels, but {self.height} x {self.width} with a zoom of "
                f"{least} need {self.height / least:.0f} x {self.width / least:.0f}. Crop less."
            )
        part_height, part_width = self.height / parameters.zoom, self.width / parameters.zoom
        top, left = parameters.top * (height - part_height), parameters.left * (width - part_width)
        if parameters.zoom == 1:
            top, left = round(top), round(left)
        return Part(top, left, part_height, part_width)

    def _aligned(self, example: Example, path: str, shape: tuple[int, ...], part: Part) -> np.ndarray:
        found = entry(example, path, self.where)
        if not isinstance(found, np.ndarray) or found.shape[-2:] != shape[-2:]:
            raise self.error(f"{path} is {described(found)}, but its image has {shape[-2]} x {shape[-1]} pixels.")
        rows = _nearest(part.top, part.height, self.height)
        return found[..., rows[:, None], _nearest(part.left, part.width, self.width)]


def cropped_intrinsics(intrinsics: np.ndarray, part: Part, zoom: float, pixels: str) -> np.ndarray:
    """Returns the intrinsics `[..., 3, 3]` of a part of an image that is enlarged by `zoom`.

    From the edges of the image, a pixel coordinate u becomes zoom * (u - left). The coordinate of the center of a pixel
    is less by 0.5 if whole numbers are centers.
    """
    half = 0.5 if pixels == "centers" else 0.0
    found = intrinsics.astype(np.float64)
    found[..., :2, :] *= zoom
    found[..., 0, 2] = (intrinsics[..., 0, 2] + half - part.left) * zoom - half
    found[..., 1, 2] = (intrinsics[..., 1, 2] + half - part.top) * zoom - half
    return found.astype(intrinsics.dtype)


def _resized(image: np.ndarray, part: Part, height: int, width: int) -> np.ndarray:
    """Returns a part of images `[..., height, width, 3]` in another size; a view if the size stays."""
    if part.height == height and part.width == width:
        top, left = int(part.top), int(part.left)
        return image[..., top : top + height, left : left + width, :]
    above, below, weight = _neighbours(part.top, part.height, height, image.shape[-3])
    before, after, share = _neighbours(part.left, part.width, width, image.shape[-2])
    found = np.empty((*image.shape[:-3], height, width, 3), image.dtype)
    kind = np.promote_types(np.float32, image.dtype) if image.dtype.kind == "f" else np.dtype(np.float32)
    weight, share = weight.astype(kind)[:, None, None], share.astype(kind)[:, None]
    flat, into = image.reshape(-1, *image.shape[-3:]), found.reshape(-1, height, width, 3)
    for single, out in zip(flat, into, strict=True):
        first, second = single[above].astype(kind), single[below].astype(kind)
        first += (second - first) * weight
        columns = first[:, before] + (first[:, after] - first[:, before]) * share
        out[...] = np.rint(columns) if image.dtype == np.uint8 else columns
    return found


def _positions(begin: float, size: float, count: int) -> np.ndarray:
    """Returns the centers of so many pixels, which fill a part of an axis, from its edge."""
    return begin + (np.arange(count) + 0.5) * (size / count)


def _neighbours(begin: float, size: float, count: int, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the two pixels whose centers are next to each position, and the weight of the second."""
    at = np.clip(_positions(begin, size, count) - 0.5, 0, total - 1)
    first = np.minimum(at.astype(np.int64), max(0, total - 2))
    return first, np.minimum(first + 1, total - 1), at - first


def _nearest(begin: float, size: float, count: int) -> np.ndarray:
    return _positions(begin, size, count).astype(np.int64)
