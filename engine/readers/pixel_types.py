"""Finds the type of the pixels in an image file, since Pillow reduces some types to eight bits without a word.

Pillow opens a color image of 16 bits per channel in the mode RGB, signed bytes as unsigned ones, and some grays scaled.
"""

import io
from typing import Any

import numpy as np

from engine.base.errors import DataError

DTYPES = ("uint8", "uint16", "int32", "uint32", "float32")
"""Types of pixels that `DecodeImage` returns. The first that holds the pixels of a file is proposed."""
_BITS, _SAMPLE_FORMAT, _ORIENTATION, _WIDTH, _HEIGHT = 258, 339, 274, 256, 257  # tags of TIFF
_KINDS = {1: "uint", 2: "int", 3: "float"}  # by SampleFormat of TIFF
# Pillow turns a TIFF upright when it loads it; these undo what an orientation has done.
_UNDO = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Image.Transpose


def stored_dtype(image: Any, data: bytes) -> str:
    """Returns the type of the pixels of a file, such as "uint16"; of fewer than eight bits, "uint8".

    Args:
        image: the image as Pillow has opened it, not loaded yet.
        data: the bytes of the file.

    Raises:
        DataError: Pillow would scale the values.
    """
    if image.format == "PNG":
        return "uint16" if data[24] == 16 else "uint8"  # in the first chunk
    if image.format == "TIFF":
        tags = image.tag_v2
        bits, kind = max(tags.get(_BITS, (1,))), _KINDS.get(tags.get(_SAMPLE_FORMAT, (1,))[0], "uint")
        return f"{kind}{next((size for size in (8, 16, 32) if bits <= size), 64)}"
    args = image.tile[0][3] if image.tile else ""
    if image.format == "PPM" and isinstance(args, tuple) and image.mode == "I":
        if args[1] != 65535:
            raise DataError(f"its largest value is declared as {args[1]}, and Pillow would scale the values to 65535")
        return "uint16"
    if image.mode == "F":
        return "float32"
    rawmode = str(args[0] if isinstance(args, tuple) and args else args)
    if image.mode.startswith("I;16") or ";16" in rawmode or _high_depth(image.format, data):
        return "uint16" if not rawmode.startswith("BGR") else "uint8"  # 16 bits for all channels of a BMP
    return "int32" if image.mode == "I" else "uint8"


def _high_depth(form: str | None, data: bytes) -> bool:
    """Whether a JPEG 2000 file has more than eight bits per channel."""
    size = data.find(b"\xff\x4f\xff\x51") if form == "JPEG2000" else -1  # the markers SOC and SIZ
    return size >= 0 and (data[size + 42] & 0x7F) + 1 > 8  # the depth of the first component


def check_dtype(stored: str, dtype: str, mode: str) -> None:
    """Raises DataError, which names the choice, if pixels of one type do not keep their values in another."""
    if stored == "int8":
        raise DataError("its pixels are int8, which Pillow reads as uint8. Convert the file to another type.")
    if np.can_cast(stored, dtype, "safe"):
        return
    holds = [name for name in DTYPES if np.can_cast(stored, name, "safe")]
    if not holds:
        raise DataError(f"its pixels are {stored}, allowed are {', '.join(DTYPES)}. Convert the file.")
    gray = "" if mode in ("RGB", "RGBA") else ", gray=True"
    raise DataError(
        f"its pixels are {stored}, which do not fit {dtype}. Keep their values: DecodeImage(dtype={holds[0]!r}{gray})."
    )


def stored_pixels(image: Any, data: bytes, stored: str) -> np.ndarray:
    """Returns the pixels of an image of more than eight bits in their own type, `[height, width]` or with 3 channels.

    Raises:
        DataError: Pillow cannot read all bits.
    """
    if image.mode in ("RGB", "RGBA"):
        return _wide_color(image, data)
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        raise DataError(f"Pillow reads {stored} pixels of this kind as {image.mode}, of 8 bits. Convert the file.")
    pixels = np.array(as_stored(image))
    return pixels.view(np.uint32) if stored == "uint32" else pixels.astype(stored)


def _wide_color(image: Any, data: bytes) -> np.ndarray:
    """Returns the pixels of a color PNG of 16 bits: Pillow gives one byte of each value, the first or the second."""
    from PIL import Image

    rawmode = image.tile[0][3] if image.tile else ""
    if image.format != "PNG" or rawmode not in ("RGB;16B", "RGBA;16B"):
        raise DataError(
            "Pillow reads 16 bits per channel of gray images and of PNG files in color without loss, and not of "
            f"this {image.format} file. Convert it."
        )
    halves = []
    for last in "BL":
        with Image.open(io.BytesIO(data)) as part:
            part.tile = [tile._replace(args=rawmode[:-1] + last) for tile in part.tile]
            halves.append(np.array(part)[:, :, :3].astype(np.uint16))
    return halves[0] << 8 | halves[1]


def as_stored(image: Any) -> Any:
    """Loads an image and returns it as its pixels are stored: Pillow applies the orientation of a TIFF, of no other."""
    orientation = image.getexif().get(_ORIENTATION) if image.format == "TIFF" else None
    image.load()
    return image.transpose(_UNDO[orientation]) if orientation in _UNDO else image


def stored_size(image: Any) -> tuple[int, int]:
    """Returns the height and the width of an image as its pixels are stored."""
    if image.format == "TIFF":
        return int(image.tag_v2[_HEIGHT]), int(image.tag_v2[_WIDTH])
    return image.height, image.width
