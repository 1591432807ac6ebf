"""How timm, torchvision and transformers prepare photographs for a backbone: resize, cut the middle, normalise.

Pixels are resized by Pillow, as there. Transformers resizes tensors, which differs by rounding, at most by 1/255.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from engine import DataError, TaskError

from . import catalog

LARGE = ("regnety_640", "regnety_1280", "regnety_2560")
"""Names whose default checkpoint in timm has images of 384 x 384."""
CUT_MORE = (
    *("resnet18d", "resnet34d", "resnet50d", "convnext_base", "convnext_large"),
    *(f"regnetx_{size}" for size in ("002", "004", "006", "040", "064", "120")),
    *(f"regnety_{size}" for size in ("002", "006", "008")),
)
CUT_LESS = (
    *(f"regnetx_{size}" for size in ("004_tv", "008", "016", "032", "080", "160", "320")),
    *(f"regnety_{size}" for size in ("004", "008_tv", "016", "080_tv", "320")),
)
"""Names whose default checkpoint cuts 0.875, or 0.965 of the resized image."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Function from the pixels of a photograph to what a checkpoint needs.

    Attributes:
        size: rows and columns of the result.
        resize: pixels of the shorter side, from whose middle the result is cut; None: the whole image is distorted.
        interpolation: filter of Pillow; all of them average where an image becomes smaller.
        mean, deviation: of red, green and blue, in 0..1.
    """

    size: tuple[int, int] = (224, 224)
    resize: int | None = 256
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, ...] = catalog.IMAGENET[0]
    deviation: tuple[float, ...] = catalog.IMAGENET[1]

    def __post_init__(self):
        if self.resize is not None and self.resize < max(self.size):
            raise TaskError(
                f"Preprocessing: resize = {self.resize}: allowed are numbers from {max(self.size)}, or None."
            )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the normalised image, float32 `[*size, 3]`, for pixels uint8 `[rows, columns, 3]`.

        Raises:
            DataError: the image has another shape or dtype.
        """
        x = self.pixels(image).astype(np.float32) / np.float32(255)
        return (x - np.array(self.mean, np.float32)) / np.array(self.deviation, np.float32)

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Returns the resized and cut image as uint8, which `Classifier` normalises; arguments as in `__call__`."""
        from PIL import Image

        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(
                f"Preprocessing: found {image.dtype} {list(image.shape)}. Allowed: uint8 [rows, columns, 3]."
            )
        rows, columns = self.size
        if self.resize is not None:
            short = min(image.shape[:2])
            rows, columns = (self.resize if x == short else int(self.resize * x / short) for x in image.shape[:2])
        found = np.array(Image.fromarray(image).resize((columns, rows), Image.Resampling[self.interpolation.upper()]))
        top, left = (round((have - want) / 2) for have, want in zip(found.shape[:2], self.size, strict=True))
        return found[top : top + self.size[0], left : left + self.size[1]]


def of_timm(name: str, share: float | None = None) -> Preprocessing:
    """Returns how timm prepares images for a name of `catalog.NAMES`.

    Args:
        name: of the backbone.
        share: of the resized image that is cut, if the checkpoint has another `crop_pct`; ResNets and ConvNeXts have
            several. Default: that of timm's default checkpoint.
    """
    mean, deviation = catalog.mean_and_deviation(name)
    other = 518 if "dinov2" in name else 256 if name in ("resnet101d", "resnet152d") else 384 if name in LARGE else 224
    words = [] if name.startswith("regnet") else reversed(name.split("_"))
    side = next((int(word) for word in words if word.isdigit()), other)
    usual = 1.0 if "dinov2" in name or side == 384 else 0.9 if name.startswith(("vit", "deit3", "swin")) else 0.95
    share = share or (0.875 if name in CUT_MORE else 0.965 if name in CUT_LESS else usual)
    return Preprocessing((side, side), math.floor(side / share), "bicubic", mean, deviation)


TORCHVISION = Preprocessing(interpolation="bilinear")
"""Of torchvision's first weights of each model; later ones resize to another number (232 for ResNet-50)."""


def of_transformers(model: str) -> Preprocessing:
    """Returns the usual settings of a processor of transformers; preprocessor_config.json has those of a checkpoint.

    Args:
        model: vit, dinov2 or siglip.

    Raises:
        TaskError: there is no such model.
    """
    found = {
        "vit": Preprocessing((224, 224), None, "bilinear", *catalog.CENTERED),
        "dinov2": Preprocessing((224, 224), 256, "bicubic"),
        "siglip": Preprocessing((224, 224), None, "bicubic", *catalog.CENTERED),
    }
    if model not in found:
        raise TaskError(f"of_transformers: found the model {model!r}. Allowed: {', '.join(found)}.")
    return found[model]
