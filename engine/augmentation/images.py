"""What augmentations of images share: the checked image of a camera, and one draw for all cameras or one for each."""

from collections.abc import Iterator

import numpy as np

from engine.augmentation.entries import described, entry
from engine.augmentation.scene import Camera, Scene
from engine.base.errors import DataError
from engine.data.examples import Example


def image_of(example: Example, camera: Camera, where: str) -> np.ndarray:
    """Returns the image of a camera, `[..., height, width, 3]`; with `stacked`, `[..., cameras, height, width, 3]`.

    Raises:
        DataError: it is missing, or has another shape or dtype than uint8 and floating-point numbers.
    """
    found = entry(example, camera.image, where)
    least = 4 if camera.stacked else 3
    if (
        not isinstance(found, np.ndarray)
        or found.ndim < least
        or found.shape[-1] != 3
        or not (found.dtype == np.uint8 or found.dtype.kind == "f")
    ):
        shape = "[..., cameras, height, width, 3]" if camera.stacked else "[..., height, width, 3]"
        raise DataError(
            f"{where}: {camera.image} is {described(found)}, allowed is {shape}, uint8 or floating-point from 0 to 1."
        )
    return found


def count_cameras(example: Example, scene: Scene, where: str) -> int:
    """Returns the number of cameras of a scene, each of stacked ones for itself."""
    images = [image_of(example, camera, where) for camera in scene.cameras]
    return sum(image.shape[-4] if camera.stacked else 1 for image, camera in zip(images, scene.cameras, strict=True))


def single_images(image: np.ndarray, camera: Camera) -> Iterator[tuple[int, np.ndarray]]:
    """Yields views `[height, width, 3]` of the images of a camera, each with the number of its camera from 0."""
    flat = image.reshape(-1, *image.shape[-3:])
    cameras = image.shape[-4] if camera.stacked else 1
    for number, single in enumerate(flat):
        yield number % cameras, single
