"""Decodes the members of a WebDataset sample by their suffix, as the webdataset library names them.

Pickles and PyTorch files are not decoded, since loading them runs code of the file.
"""

import functools
import gzip
import io
import json
import zlib
from typing import Any

import numpy as np

from engine.config.errors import DataError
from engine.readers.decode_image import DecodeImage
from engine.readers.decoders import Decoder


def default_decoder(suffix: str) -> Decoder:
    """Returns the decoder of a suffix; that of `left.json.gz` decompresses and decodes JSON. Unknown ones keep bytes.

    Raises:
        DataError: members with this suffix can hold code, or are images and the library of images is not installed.
    """
    *others, last = suffix.rsplit(".", 1)
    if last == "gz":
        return functools.partial(_decode_gzip, default_decoder(others[0]) if others else bytes)
    if last in _CODE:
        raise DataError(
            f"members .{suffix} hold objects whose loading runs code of the file. Leave them out with `fields`, write "
            "arrays as .npy, or name a decoder that you trust: decoders={...}."
        )
    return DecodeImage() if last in _IMAGES else _DECODERS.get(last, bytes)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"text is not UTF-8 ({error.reason}).") from error


def _integer(data: bytes) -> np.ndarray:
    try:
        return np.array(int(data), np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"found {data[:30]!r}, allowed is an integer.") from error


def _json(data: bytes) -> Any:
    try:
        return _arrays(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON: {error}.") from error


def _arrays(value: Any) -> Any:
    """Returns JSON with arrays instead of numbers and of rectangular lists of numbers or of text."""
    if isinstance(value, dict):
        return {key: _arrays(child) for key, child in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(child, str) for child in value):
            return np.array(value, object)
        children = [_arrays(child) for child in value]
        if all(isinstance(child, np.ndarray) and child.dtype.kind != "O" for child in children):
            shapes = {child.shape for child in children}
            if len(shapes) <= 1:
                return np.stack(children) if children else np.zeros(0, np.float32)
        return children
    if isinstance(value, bool | float) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return np.asarray(value)
    return value


def _array(data: bytes) -> np.ndarray:
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds, such as TokenError for a damaged header
        raise DataError(f"is no array of NumPy: {error}.") from error


def _named_arrays(data: bytes) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:
        raise DataError(f"holds no arrays of NumPy: {error}.") from error


def _decode_gzip(decoder: Decoder, data: bytes) -> Any:
    try:
        decompressed = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"is no gzip file: {error}.") from error
    return decoder(decompressed)


_IMAGES = ("bmp", "gif", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp")
_CODE = ("pyd", "pickle", "pkl", "pth", "pt")
_DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(("txt", "text", "transcript"), _text),
    **dict.fromkeys(("cls", "cls2", "class", "count", "index", "inx", "id"), _integer),
    **dict.fromkeys(("json", "jsn"), _json),
    "npy": _array,
    "npz": _named_arrays,
}
