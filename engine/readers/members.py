"""Decodes the members of a WebDataset sample by their suffix, as the webdataset library names them.

Pickles and PyTorch files are not decoded, since loading them runs code of the file.
"""

import functools
import gzip
import io
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from engine.base.errors import DataError
from engine.readers.decode_image import DecodeImage
from engine.readers.decoders import Decoder
from engine.readers.json_values import JsonValues


def default_decoder(suffix: str, json_values: Callable[[Any], Any] | None = None) -> Decoder:
    """Returns the decoder of a suffix; that of `left.json.gz` decompresses and decodes JSON. Unknown ones keep bytes.

    Args:
        suffix: suffix of the name of a member.
        json_values: what makes the example of a JSON value. Default: `JsonValues()`.

    Raises:
        DataError: members with this suffix can hold code, or are images and the library of images is not installed.
    """
    *others, last = suffix.rsplit(".", 1)
    if last == "gz":
        return functools.partial(_decode_gzip, default_decoder(others[0], json_values) if others else bytes)
    if last in _JSON:
        return functools.partial(_json, json_values or JsonValues())
    if last in _CODE:
        raise DataError(
            f"members .{suffix} hold objects whose loading runs code of the file. Leave them out with `fields`, write "
            "arrays as .npy, or name a decoder that you trust: decoders={...}."
        )
    return DecodeImage() if last in _IMAGES else _DECODERS.get(last, bytes)


def is_json(suffix: str) -> bool:
    """Whether the usual decoder of a suffix decodes JSON."""
    return suffix.removesuffix(".gz").rsplit(".", 1)[-1] in _JSON


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


def _json(values: Callable[[Any], Any], data: bytes) -> Any:
    try:
        return values(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON: {error}.") from error


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
_JSON = ("json", "jsn")
_DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(("txt", "text", "transcript"), _text),
    **dict.fromkeys(("cls", "cls2", "class", "count", "index", "inx", "id"), _integer),
    "npy": _array,
    "npz": _named_arrays,
}
