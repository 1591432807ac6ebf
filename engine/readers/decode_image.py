"""Decodes images: JPEG by simplejpeg, other formats by Pillow (extra `images`)."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from engine.base.errors import DataError
from engine.data.stages import stage
from engine.readers.extras import import_extra
from engine.readers.pixel_types import DTYPES, as_stored, check_dtype, stored_dtype, stored_pixels, stored_size

JPEG = b"\xff\xd8"  # first bytes of a JPEG


class DecodeImage:
    """Function from the bytes of an encoded image to its pixels, `[height, width, 3]`, or 1 channel if gray.

    Colors become RGB: a palette is replaced by its colors, CMYK and YCbCr are converted, and alpha is left out. Values
    are never scaled, except that fewer than 8 bits become 0 to 255. An image whose values do not fit `dtype`, such as
    a depth image of 16 bits, is an error that names a `dtype` that keeps them. The orientation in the metadata of a
    photograph is ignored. Of several frames, the first is read.

    A JPEG that is much larger than `size` is decoded at a half, a quarter or an eighth of its size, which is several
    times faster, and only then resized. Only the part in `crop` is resized. `python -m benchmarks.reading` measures
    both.
    """

    def __init__(
        self,
        size: Sequence[int] | None = None,
        fit: Literal["crop", "stretch"] = "crop",
        gray: bool = False,
        dtype: Literal["uint8", "uint16", "int32", "uint32", "float32"] = "uint8",
        crop: Sequence[int] | None = None,
    ):
        """Creates the function.

        Args:
            size: (height, width) of the result. Default: the size of the image.
            fit: "crop" cuts equal parts off two sides until the image has the shape of `size`; "stretch" distorts it.
            gray: whether to return one channel.
            dtype: dtype of the result. It must hold all values of the pixels of a file: uint16 also those of uint8,
                int32 and float32 also those of uint16.
            crop: (top, left, height, width) of the part of the resized image that is returned, in its pixels. It is
                what cutting the whole one gives, and takes less time. Default: the whole image.

        Raises:
            DataError: an argument is invalid, or a library is missing.
        """
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise DataError(f"size = {size}: allowed are two numbers of at least 1, (height, width).")
        if fit not in ("crop", "stretch"):
            raise DataError(f"fit = {fit!r}: allowed are 'crop' and 'stretch'.")
        if dtype not in DTYPES:
            raise DataError(f"dtype = {dtype!r}: allowed are {', '.join(DTYPES)}.")
        if size is not None and dtype == "uint32":
            raise DataError("size: Pillow resizes no pixels of uint32. Leave out the size, or use another dtype.")
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.fit, self.gray, self.dtype = fit, gray, dtype
        self.crop = None if crop is None else _checked_crop(crop, self.size)
        import_extra("simplejpeg", "images", "Images")
        import_extra("PIL.Image", "images", "Images")

    def __repr__(self) -> str:
        dtype = "" if self.dtype == "uint8" else f", dtype={self.dtype!r}"  # as before there was a dtype
        crop = "" if self.crop is None else f", crop={self.crop}"
        return f"DecodeImage(size={self.size}, fit={self.fit!r}, gray={self.gray}{dtype}{crop})"

    def __call__(self, data: bytes | np.ndarray | Mapping[str, Any]) -> np.ndarray:
        """Returns the pixels of an image, given as bytes, as an array of uint8, or as a dict with `bytes`.

        Raises:
            DataError: it is damaged or of an unknown format, or its pixels do not fit `dtype`.
        """
        encoded = bytes(data["bytes"] if isinstance(data, Mapping) else data)
        with stage("decode"):
            try:
                pixels = self._jpeg(encoded) if encoded[:2] == JPEG else self._other(encoded)
            except DataError as error:
                raise DataError(f"the image of {len(encoded)} bytes: {error}") from error
            except Exception as error:  # Pillow raises errors of many kinds, such as DecompressionBombError
                what = f"the image of {len(encoded)} bytes is damaged or of an unknown format"
                raise DataError(f"{what}: {error}") from error
            pixels = pixels.astype(self.dtype, copy=False)
            if self.size not in (None, pixels.shape[:2]):
                return self._resized(pixels, *self.size)
            return pixels if self.crop is None else _cut(pixels, self.crop)

    def stored_size(self, data: bytes) -> tuple[int, int]:
        """Returns the height and the width of an encoded image that can be decoded."""
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            return stored_size(image)

    def _jpeg(self, data: bytes) -> np.ndarray:
        import simplejpeg

        if simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK"):
            return self._other(data)
        height, width = self.size or (0, 0)
        space = "GRAY" if self.gray else "RGB"
        return simplejpeg.decode_jpeg(data, space, min_height=height, min_width=width)

    def _other(self, data: bytes) -> np.ndarray:
        """Returns the pixels of an image that Pillow reads. Raises DataError if they do not fit the dtype."""
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            stored = stored_dtype(image, data)
            check_dtype(stored, self.dtype, image.mode)
            if stored == "uint8":
                return _channels(np.array(as_stored(image).convert("L" if self.gray else "RGB")))
            pixels = _channels(stored_pixels(image, data, stored))
        if self.gray and pixels.shape[2] == 3:
            raise DataError("gray: a color image of 16 bits per channel has no gray form. Leave `gray` out.")
        return pixels if self.gray or pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)

    def _resized(self, pixels: np.ndarray, height: int, width: int) -> np.ndarray:
        """Returns the image, or its part, in another size, by triangular filters, as Pillow's BILINEAR."""
        from PIL import Image

        own_height, own_width = pixels.shape[:2]
        box = (0.0, 0.0, float(own_width), float(own_height))
        if self.fit == "crop":
            scale = min(own_height / height, own_width / width)
            x, y = (own_width - scale * width) / 2, (own_height - scale * height) / 2
            box = (x, y, x + scale * width, y + scale * height)
        if self.crop is not None:  # the filters also read the pixels around this box
            x, y, across, down = box[0], box[1], (box[2] - box[0]) / width, (box[3] - box[1]) / height
            top, left, height, width = self.crop
            box = (x + left * across, y + top * down, x + (left + width) * across, y + (top + height) * down)
            box = (box[0], box[1], min(box[2], own_width), min(box[3], own_height))  # rounded

        def resized(values: np.ndarray) -> np.ndarray:
            image = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR, box=box)
            return _channels(np.array(image))

        if self.dtype == "uint8":
            return resized(pixels[:, :, 0] if self.gray else pixels)
        wide = pixels if self.dtype == "int32" else pixels.astype(np.float32)  # the modes of Pillow of one channel
        found = np.concatenate([resized(wide[:, :, channel]) for channel in range(wide.shape[2])], axis=2)
        return found if self.dtype in ("int32", "float32") else np.rint(found).astype(self.dtype)


def _checked_crop(crop: Sequence[int], size: tuple[int, int] | None) -> tuple[int, int, int, int]:
    """Returns the crop. Raises DataError if it is no part of an image of this size."""
    top, left, height, width = crop if len(crop) == 4 else (-1, -1, 0, 0)
    whole = size or (math.inf, math.inf)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > whole[0] or left + width > whole[1]:
        inside = "" if size is None else f" inside of size = {size}"
        raise DataError(f"crop = {tuple(crop)}: allowed is (top, left, height, width) of a part{inside}.")
    return int(top), int(left), int(height), int(width)


def _cut(pixels: np.ndarray, crop: tuple[int, int, int, int]) -> np.ndarray:
    """Returns a part of an image that was not resized. Raises DataError if the image is too small."""
    top, left, height, width = crop
    part = pixels[top : top + height, left : left + width]
    if part.shape[:2] != (height, width):
        raise DataError(f"crop = {crop} is no part of an image of {pixels.shape[0]} x {pixels.shape[1]} pixels.")
    return part.copy()


def _channels(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
