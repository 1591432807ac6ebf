"""`Photometric`: random brightness, contrast, saturation, hue and noise of images."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from engine.augmentation.colors import brighten, change_contrast, saturate, shift_hue
from engine.augmentation.entries import replaced
from engine.augmentation.images import count_cameras, image_of, single_images
from engine.augmentation.step import Augmentation
from engine.data.examples import Example

FACTORS = ("brightness", "contrast", "saturation")
SEEDS = 2**63
WHITE = 255
ROWS = 16  # of an image that are changed at once, so that intermediate results stay in the caches of the CPU


class PhotometricDraw(NamedTuple):
    """Parameters of `Photometric`, float64 `[draws]` each: one draw, or one for each camera."""

    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    noise: np.ndarray
    seed: int
    """Seed of the noise of the pixels."""


@dataclasses.dataclass(frozen=True)
class Photometric(Augmentation):
    """Changes the colors of images: brightness, contrast, saturation, hue and noise, in this order.

    The formulas are those of torchvision's `ColorJitter` on floating-point images (`engine/augmentation/colors.py`).
    uint8 becomes floating-point before the first change, and is rounded once, after the last one. A change whose
    setting is 0 is left out.
    """

    brightness: float = 0.2
    """Largest change of a factor: it is drawn uniformly from 1 - this to 1 + this. Likewise `contrast` and
    `saturation`."""
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    """Largest shift of the hue, in turns of the color circle; at most 0.5."""
    noise: float = 0.0
    """Largest standard deviation of normal noise of each value, where white is 1."""
    each_camera: bool = False
    """Whether each camera has its own draw. All frames of a window have the same."""

    def check(self) -> None:
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5), ("noise", 1)):
            if not 0 <= (found := getattr(self, name)) <= most:
                raise self.error(f"{name} = {found}: allowed are numbers from 0 to {most}.")

    def draw(self, rng: np.random.Generator, example: Example) -> PhotometricDraw:
        count = count_cameras(example, self.described, self.where) if self.each_camera else 1
        rows = rng.uniform(-1, 1, (count, 5)).T
        factors = {name: 1 + getattr(self, name) * row for name, row in zip(FACTORS, rows, strict=False)}
        hue, noise = rows[3] * self.hue, np.abs(rows[4]) * self.noise
        return PhotometricDraw(**factors, hue=hue, noise=noise, seed=int(rng.integers(SEEDS)))

    def apply(self, example: Example, parameters: PhotometricDraw) -> Example:
        changes: dict[str, Any] = {}
        first = 0
        noise = np.random.default_rng(parameters.seed)
        for camera in self.described.cameras:
            image = image_of(example, camera, self.where)
            changes[camera.image] = found = np.empty(image.shape, image.dtype)
            into = found.reshape(-1, *image.shape[-3:])
            for (number, single), out in zip(single_images(image, camera), into, strict=True):
                self._change(single, out, parameters, first + number if self.each_camera else 0, noise)
            first += image.shape[-4] if camera.stacked else 1
        return replaced(example, changes)

    def _change(
        self, image: np.ndarray, out: np.ndarray, draw: PhotometricDraw, number: int, noise: np.random.Generator
    ) -> None:
        """Writes the changed image `[height, width, 3]` into `out`; images one by one stay in the caches of the CPU."""
        kind = np.promote_types(np.float32, image.dtype) if image.dtype.kind == "f" else np.dtype(np.float32)
        x = np.empty((3, *image.shape[:2]), kind)  # one color after the other: less than half the time
        np.multiply(np.moveaxis(image, -1, 0), kind.type(1 / WHITE if image.dtype == np.uint8 else 1), out=x)
        if self.brightness:
            brighten(x, draw.brightness[number])
        if self.contrast:
            change_contrast(x, draw.contrast[number])
        for begin in range(0, x.shape[1], ROWS):
            rows = x[:, begin : begin + ROWS]
            if self.saturation:
                saturate(rows, draw.saturation[number])
            if self.hue:
                shift_hue(rows, draw.hue[number])
        if self.noise:
            x += noise.standard_normal(x.shape, np.float32) * np.float32(draw.noise[number])
            np.clip(x, 0, 1, out=x)
        if image.dtype == np.uint8:
            x *= np.float32(WHITE)
            np.rint(x, out=x)
        for channel in range(3):  # five times as fast as the transposed array
            out[..., channel] = x[channel]
