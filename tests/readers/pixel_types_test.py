"""Every kind of pixels keeps its values, as Pillow gives them or as they were written, or is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from engine.base.errors import DataError
from engine.readers import DecodeImage
from tests.readers.image_files import encoded, picture

WIDE = np.array([[0, 255, 256, 65535], [1, 2, 40000, 513]], np.uint16)
DEPTH, PNG16 = 65536, b"\x89PNG\r\n\x1a\n"


def saved(image: Image.Image, form: str, **settings) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **settings)
    return out.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    """Returns a PNG of 16 bits per channel, which Pillow cannot write in color."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return PNG16 + b"".join(parts)


def tiff(pixels: np.ndarray, bits: int, sample_format: int) -> bytes:
    """Returns an uncompressed gray TIFF of any type of samples."""
    height, width = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    entries += [(279, len(data)), (339, sample_format)]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    directory = struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


BASE = Image.fromarray(picture(8, 8))
EIGHT = [("1", "PNG"), ("1", "TIFF"), ("L", "PNG"), ("L", "TIFF"), ("LA", "PNG"), ("LA", "TIFF"), ("P", "PNG")]
EIGHT += [("P", "TIFF"), ("P", "GIF"), ("PA", "TIFF"), ("RGB", "PNG"), ("RGB", "TIFF"), ("RGBA", "PNG")]
EIGHT += [("RGBA", "TIFF"), ("CMYK", "TIFF"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("RGB", "BMP"), ("L", "PPM")]


@pytest.mark.parametrize(("mode", "form"), EIGHT)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_images_of_eight_bits_equal_those_of_pillow(mode, form, dtype):
    image = BASE.convert("P").convert(mode) if mode == "PA" else BASE.convert(mode)
    data = saved(image, form)
    for gray in (False, True):
        found = DecodeImage(gray=gray, dtype=dtype)(data)
        expected = np.array(Image.open(io.BytesIO(data)).convert("L" if gray else "RGB")).reshape(8, 8, -1)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_equals_simplejpeg_and_pillow(mode, subsampling):
    noise = np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8)
    settings = {"subsampling": subsampling} if mode == "RGB" else {}
    data = saved(Image.fromarray(noise).convert(mode), "JPEG", quality=80, **settings)
    for gray, space in ((False, "RGB"), (True, "GRAY")):
        found = DecodeImage(gray=gray)(data)
        np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(data, space))
        image = Image.open(io.BytesIO(data))
        if gray:
            image.draft("L", image.size)  # the stored luma; convert("L") would compute it from clipped colors
        np.testing.assert_array_equal(found, np.array(image.convert("L" if gray else "RGB")).reshape(found.shape))


WRITTEN = {
    "png": (WIDE, "uint16", saved(Image.fromarray(WIDE), "PNG")),
    "tiff": (WIDE, "uint16", saved(Image.fromarray(WIDE), "TIFF")),
    "tiff, big-endian": (WIDE, "uint16", saved(Image.fromarray(WIDE.astype(">u2")), "TIFF")),
    "tiff lzw": (WIDE, "uint16", saved(Image.fromarray(WIDE), "TIFF", compression="tiff_lzw")),
    "pgm": (WIDE, "uint16", saved(Image.fromarray(WIDE), "PPM")),
    "jpeg 2000": (WIDE, "uint16", saved(Image.fromarray(WIDE), "JPEG2000", irreversible=False)),
    "int16": (np.array([[-5, 7], [-(2**15), 9]], np.int16), "int32", None),
    "int32": (np.array([[-5, 2**31 - 1], [2**24 + 1, 9]], np.int32), "int32", None),
    "uint32": (np.array([[5, 2**32 - 1], [2**31, 9]], np.uint32), "uint32", None),
    "float32": (np.array([[0.1, np.nan], [-1e9, 3e38]], np.float32), "float32", None),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_wide_gray_images_keep_the_values_that_were_written(kind):
    pixels, dtype, data = WRITTEN[kind]
    if data is None:
        data = tiff(pixels, pixels.itemsize * 8, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind])
    with pytest.raises(DataError, match=rf"bytes: its pixels are {pixels.dtype}, .*DecodeImage\(dtype='{dtype}', gray"):
        DecodeImage()(data)
    for gray in (False, True):
        found = DecodeImage(gray=gray, dtype=dtype)(data)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.broadcast_to(pixels[:, :, None], (*pixels.shape, 1 if gray else 3)))
    if pixels.dtype == np.uint16:
        np.testing.assert_array_equal(DecodeImage(dtype="float32", gray=True)(data)[:, :, 0], pixels)


@pytest.mark.parametrize("channels", [3, 4])
def test_color_png_of_16_bits_keeps_its_values(channels):
    pixels = np.random.default_rng(0).integers(0, DEPTH, (5, 7, channels)).astype(np.uint16)
    data = png16(pixels)
    np.testing.assert_array_equal(DecodeImage(dtype="uint16")(data), pixels[:, :, :3])
    with pytest.raises(DataError, match=r"its pixels are uint16, .*: DecodeImage\(dtype='uint16'\)\."):
        DecodeImage()(data)
    with pytest.raises(DataError, match="a color image of 16 bits per channel has no gray form"):
        DecodeImage(gray=True, dtype="uint16")(data)


def test_pixels_that_pillow_would_change_are_refused():
    with pytest.raises(DataError, match="not of this PNG file"):
        DecodeImage(dtype="uint16")(png16(np.zeros((2, 2, 2), np.uint16)))
    with pytest.raises(DataError, match=r"its pixels are int8, which Pillow reads as uint8"):
        DecodeImage(dtype="int32")(tiff(np.array([[-1, 1]], np.int8), 8, 2))
    with pytest.raises(DataError, match=r"largest value is declared as 1000"):
        DecodeImage(dtype="uint16")(b"P5 2 1 1000\n" + np.array([1000, 500], ">u2").tobytes())
    with pytest.raises(DataError, match="cannot identify"):
        DecodeImage(dtype="float32")(tiff(np.array([[0.1]], np.float64), 64, 3))
    with pytest.raises(DataError, match=r"its pixels are int32, which do not fit float32.*dtype='int32'"):
        DecodeImage(dtype="float32")(tiff(np.array([[1]], np.int32), 32, 2))


@pytest.mark.parametrize("form", ["TIFF", "PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored_in_every_format(form, orientation):
    exif, pixels = Image.Exif(), picture(8, 16)
    exif[274] = orientation
    settings = {"lossless": True} if form == "WEBP" else {}
    plain, turned = (saved(Image.fromarray(pixels), form, **settings, **more) for more in ({}, {"exif": exif}))
    np.testing.assert_array_equal(DecodeImage()(turned), DecodeImage()(plain))
    assert DecodeImage().stored_size(turned) == (8, 16)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_wide_images_are_resized_by_the_same_filter(dtype):
    small = DecodeImage((4, 6))(encoded(picture(40, 60), "PNG")).astype(float)
    wide = DecodeImage((4, 6), dtype=dtype)(encoded(picture(40, 60), "PNG"))
    assert wide.dtype == dtype and np.abs(wide - small).max() <= 1.1
    ramp = Image.fromarray((np.arange(16, dtype=np.uint16) * 4000).reshape(4, 4))
    found = DecodeImage((2, 2), "stretch", gray=True, dtype=dtype)(saved(ramp, "PNG"))
    assert np.abs(found).min() > 0 and np.abs(found).max() > 40000  # nothing is clipped at 255 or 32767


def test_wrong_dtypes_are_named():
    with pytest.raises(DataError, match="dtype = 'float64': allowed are uint8, uint16"):
        DecodeImage(dtype="float64")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="Pillow resizes no pixels of uint32"):
        DecodeImage((4, 4), dtype="uint32")
    assert repr(DecodeImage(dtype="uint16")) == "DecodeImage(size=None, fit='crop', gray=False, dtype='uint16')"
