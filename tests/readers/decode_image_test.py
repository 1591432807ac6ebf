import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from engine.base.errors import DataError
from engine.readers import DecodeImage
from tests.readers.image_files import encoded, picture


def test_png_is_decoded_exactly_and_jpeg_nearly():
    pixels = picture(40, 60)
    assert DecodeImage()(encoded(pixels, "PNG")).tolist() == pixels.tolist()
    jpeg = DecodeImage()(encoded(pixels, "JPEG", quality=95, subsampling=0))
    assert jpeg.shape == pixels.shape
    assert np.abs(jpeg.astype(int) - pixels).max() <= 8
    assert DecodeImage()({"bytes": encoded(pixels, "PNG"), "path": None}).shape == pixels.shape


def weights(inside: int, begin: float, length: float, outside: int) -> np.ndarray:
    """Returns the matrix of a triangular filter that resizes pixels begin, ..., begin + length of a line."""
    scale = length / outside
    centers = begin + (np.arange(outside) + 0.5) * scale
    found = np.maximum(0, 1 - np.abs(np.arange(inside) + 0.5 - centers[:, None]) / max(scale, 1))
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(16, 16), (20, 60), (64, 64)])
def test_resized_image_equals_that_of_a_triangular_filter(fit, size):
    pixels, (height, width) = picture(40, 60), size
    scale = min(40 / height, 60 / width)
    top, left = ((40 - height * scale) / 2, (60 - width * scale) / 2) if fit == "crop" else (0, 0)
    rows, columns = weights(40, top, 40 - 2 * top, height), weights(60, left, 60 - 2 * left, width)
    expected = np.einsum("yh,xw,hwc->yxc", rows, columns, pixels)
    found = DecodeImage(size, fit)(encoded(pixels, "PNG"))
    assert np.abs(found - expected).max() <= 1.1  # rounded twice


def test_large_jpeg_is_scaled_down_and_equals_the_resized_png():
    pixels = picture(400, 600)
    jpeg = DecodeImage((50, 75))(encoded(pixels, "JPEG", quality=95))
    png = DecodeImage((50, 75))(encoded(pixels, "PNG"))
    assert jpeg.shape == (50, 75, 3)
    assert np.abs(jpeg.astype(int) - png).mean() < 2


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("crop", [(4, 0, 16, 40), (0, 3, 20, 37), (7, 11, 5, 6)])
def test_part_is_that_of_the_whole_resized_image(fit, form, crop):
    data = encoded(picture(100, 150), form)
    top, left, height, width = crop
    whole = DecodeImage((20, 40), fit)(data).astype(int)
    found = DecodeImage((20, 40), fit, crop=crop)(data)
    assert found.shape == (height, width, 3)
    assert np.abs(found - whole[top : top + height, left : left + width]).max() <= 1  # rounded to 1/255


def test_part_of_an_image_of_its_own_size_is_cut_exactly():
    pixels = picture(40, 60)
    data = encoded(pixels, "PNG")
    for size in (None, (40, 60)):
        found = DecodeImage(size, crop=(10, 20, 30, 40))(data)
        assert found.tolist() == pixels[10:, 20:].tolist()
    with pytest.raises(DataError, match="no part of an image of 40 x 60 pixels"):
        DecodeImage(crop=(11, 20, 30, 40))(data)


def test_crop_is_shown_and_wrong_ones_are_refused():
    assert repr(DecodeImage((4, 6), crop=[1, 2, 3, 4])).endswith("gray=False, crop=(1, 2, 3, 4))")
    for crop in ((0, 0, 5, 6), (-1, 0, 2, 2), (0, 0, 0, 2), (0, 0, 2)):
        with pytest.raises(DataError, match=r"allowed is \(top, left, height, width\) of a part inside of size"):
            DecodeImage((4, 6), crop=crop)


def test_gray_palette_alpha_and_cmyk_images_become_rgb_or_gray():
    pixels = picture(8, 8)
    image = Image.fromarray(pixels)
    for mode, form in (("L", "JPEG"), ("L", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP")):
        out = io.BytesIO()
        image.convert(mode).save(out, form)
        assert DecodeImage()(out.getvalue()).shape == (8, 8, 3)
        assert DecodeImage(gray=True)(out.getvalue()).shape == (8, 8, 1)
        assert DecodeImage((4, 4), gray=True)(out.getvalue()).shape == (4, 4, 1)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_truncated_image_is_refused(form):
    whole = encoded(picture(64, 64), form)
    for size in (0, 1, 30, len(whole) // 2):
        with pytest.raises(DataError, match=r"the image of .* bytes is damaged or of an unknown format"):
            DecodeImage()(whole[:size])


def test_settings_are_shown_and_pickled():
    decode = pickle.loads(pickle.dumps(DecodeImage((4, 6), "stretch", gray=True)))
    assert repr(decode) == "DecodeImage(size=(4, 6), fit='stretch', gray=True)"


def test_wrong_settings_and_missing_library_are_named(monkeypatch):
    with pytest.raises(DataError, match=r"size = \[4\]: allowed are two numbers"):
        DecodeImage([4])
    with pytest.raises(DataError, match=r"fit = 'pad': allowed are 'crop' and 'stretch'"):
        DecodeImage((4, 4), "pad")  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # its import fails
    with pytest.raises(DataError, match=r"Images need simplejpeg.*: pip install .*\[images\]'"):
        DecodeImage()


def test_too_large_image_is_a_data_error(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"the image of \d+ bytes is damaged or of an unknown format: Image size"):
        DecodeImage()(encoded(picture(8, 8), "PNG"))
