"""`SensorDropout`: takes away whole sensors at random, so that a model learns to do without each of them."""

import dataclasses
from typing import Any

import numpy as np

from engine.augmentation.entries import array, mask, replaced
from engine.augmentation.images import image_of
from engine.augmentation.step import Augmentation
from engine.data.examples import Example


@dataclasses.dataclass(frozen=True)
class SensorDropout(Augmentation):
    """Takes away sensors: the points of each `Points`, and the image of each camera, each of stacked ones for itself.

    The image of a camera that is taken away is black. Points with a mask `valid` are no longer valid and become zeros;
    others become an empty array, which needs padding around the source (`engine.Padded`).

    Its parameters are bools `[sensors]`, True for one that is taken away: first the points, then the cameras, in the
    order of the scene. A window of frames loses a sensor in all of its frames.
    """

    points: float = 0.1
    """Probability with which the points of a sensor are taken away; likewise `cameras` for each camera."""
    cameras: float = 0.1
    keep_one: bool = True
    """Whether one sensor, drawn at random, stays if all would be taken away."""
    present: str = ""
    """Name of a new entry, bool `[sensors]`: True for a sensor that was not taken away. An example that the
    augmentation does not apply to, by its `probability`, has no such entry, so this needs probability 1."""

    def check(self) -> None:
        for name, found in (("points", self.points), ("cameras", self.cameras)):
            if not 0 <= found <= 1:
                raise self.error(f"{name} = {found}: allowed are probabilities from 0 to 1.")
        if self.present and self.probability < 1:
            raise self.error("present needs probability = 1. Lower `points` and `cameras` instead.")

    def draw(self, rng: np.random.Generator, example: Example) -> np.ndarray:
        limits = np.repeat([self.points, self.cameras], [len(self.described.points), sum(self._counts(example))])
        dropped = rng.random(len(limits)) < limits
        kept = rng.random()
        if self.keep_one and len(dropped) and dropped.all():
            dropped[int(kept * len(dropped))] = False
        return dropped

    def _counts(self, example: Example) -> list[int]:
        """Returns the number of cameras of each `Camera`."""
        images = [image_of(example, camera, self.where) for camera in self.described.cameras]
        pairs = zip(images, self.described.cameras, strict=True)
        return [image.shape[-4] if camera.stacked else 1 for image, camera in pairs]

    def apply(self, example: Example, parameters: np.ndarray) -> Example:
        changes: dict[str, Any] = {}
        number = len(self.described.points)
        for points, dropped in zip(self.described.points, parameters[:number].tolist(), strict=True):
            if dropped:
                old = array(example, points.entry, self.where, "[..., points, columns]", (-1,), least=2)
                if points.valid:
                    valid = mask(example, points.valid, self.where, old.shape[:-1])
                    changes |= {points.entry: np.zeros_like(old), points.valid: np.zeros_like(valid)}
                else:
                    changes[points.entry] = old[..., :0, :]
        for camera, count in zip(self.described.cameras, self._counts(example), strict=True):
            dropped = parameters[number : number + count]
            number += count
            if dropped.any():
                image = image_of(example, camera, self.where).copy()
                image[(..., dropped, *(slice(None),) * 3) if camera.stacked else ...] = 0
                changes[camera.image] = image
        if self.present:
            changes[self.present] = ~parameters
        return replaced(example, changes)
