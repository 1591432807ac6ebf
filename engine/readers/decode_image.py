"""Decodes images: JPEG by simplejpeg, other formats by Pillow (extra `images`)."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from engine.base.errors import DataError
from engine.data.stages import stage
from engine.readers.extras import import_extra

JPEG = b"\xff\xd8"  # first bytes of a JPEG


class DecodeImage:
    """Function from the bytes of an encoded image to its pixels, uint8 `[height, width, 3]`, or 1 channel if gray.

    A JPEG that is much larger than `size` is decoded at a half, a quarter or an eighth of its size, which is several
    times faster, and only then resized. The orientation in the metadata of a photograph is ignored.
    """

    def __init__(self, size: Sequence[int] | None = None, fit: Literal["crop", "stretch"] = "crop", gray: bool = False):
        """Creates the function.

        Args:
            size: (height, width) of the result. Default: the size of the image.
            fit: "crop" cuts equal parts off two sides until the image has the shape of `size`; "stretch" distorts it.
            gray: whether to return one channel.

        Raises:
            DataError: an argument is invalid, or a library is missing.
        """
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise DataError(f"size = {size}: allowed are two numbers of at least 1, (height, width).")
        if fit not in ("crop", "stretch"):
            raise DataError(f"fit = {fit!r}: allowed are 'crop' and 'stretch'.")
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.fit, self.gray = fit, gray
        import_extra("simplejpeg", "images", "Images")
        import_extra("PIL.Image", "images", "Images")

    def __repr__(self) -> str:
        return f"DecodeImage(size={self.size}, fit={self.fit!r}, gray={self.gray})"

    def __call__(self, data: bytes | np.ndarray | Mapping[str, Any]) -> np.ndarray:
        """Returns the pixels of an image, given as bytes, as an array of uint8, or as a dict with `bytes`.

        Raises:
            DataError: it is damaged or of an unknown format.
        """
        encoded = bytes(data["bytes"] if isinstance(data, Mapping) else data)
        with stage("decode"):
            try:
                pixels = self._jpeg(encoded) if encoded[:2] == JPEG else self._other(encoded)
            except Exception as error:  # Pillow raises errors of many kinds, such as DecompressionBombError
                what = f"the image of {len(encoded)} bytes is damaged or of an unknown format"
                raise DataError(f"{what}: {error}") from error
            return pixels if self.size in (None, pixels.shape[:2]) else self._resized(pixels, *self.size)

    def stored_size(self, data: bytes) -> tuple[int, int]:
        """Returns the height and the width of an encoded image that can be decoded."""
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width

    def _jpeg(self, data: bytes) -> np.ndarray:
        import simplejpeg

        if simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK"):
            return self._other(data)
        height, width = self.size or (0, 0)
        space = "GRAY" if self.gray else "RGB"
        return simplejpeg.decode_jpeg(data, space, min_height=height, min_width=width)

    def _other(self, data: bytes) -> np.ndarray:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            return _channels(np.array(image.convert("L" if self.gray else "RGB")))

    def _resized(self, pixels: np.ndarray, height: int, width: int) -> np.ndarray:
        """Returns the image in another size, by triangular filters, as Pillow's BILINEAR."""
        from PIL import Image

        own_height, own_width = pixels.shape[:2]
        box = (0.0, 0.0, float(own_width), float(own_height))
        if self.fit == "crop":
            scale = min(own_height / height, own_width / width)
            x, y = (own_width - scale * width) / 2, (own_height - scale * height) / 2
            box = (x, y, x + scale * width, y + scale * height)
        image = Image.fromarray(pixels[:, :, 0] if self.gray else pixels)
        return _channels(np.array(image.resize((width, height), Image.Resampling.BILINEAR, box=box)))


def _channels(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
