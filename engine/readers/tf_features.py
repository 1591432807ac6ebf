"""Describes the features of `tf.train.Example` messages, and converts their values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import NUMERIC_KINDS
from engine.readers.decode_image import DecodeImage
from engine.readers.decoders import Decoder, decode, decoder_name

TEXT = ("bytes", "str")
IMAGE = "image"

type FeatureSpec = str | Sequence[Any] | Decoder
"""A dtype, or (dtype, shape), or (dtype, shape, default), or a function of the bytes of a single value."""


class Feature(NamedTuple):
    """How one feature becomes an entry of the example."""

    dtype: str
    shape: tuple[int | None, ...]
    default: Any = None
    decode: Decoder | None = None
    """What makes the entry of a single value of bytes; None for the conversion that the dtype stands for."""

    def __str__(self) -> str:
        return decoder_name(self.decode) if self.decode else str((self.dtype, self.shape, self.default))


def parse_feature(name: str, spec: FeatureSpec) -> Feature:
    """Returns the description of a feature. Raises DataError if it is invalid."""
    if callable(spec):
        return Feature("bytes", (), None, spec)
    parts: list[Any] = [spec] if isinstance(spec, str) else list(spec) if isinstance(spec, Sequence) else []
    allowed = "Allowed: a dtype, (dtype, shape) or (dtype, shape, default), such as ('float32', [None, 3])."
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], str):
        raise DataError(f"feature {name!r}: found {spec!r}. {allowed}")
    shape = tuple(parts[1]) if len(parts) > 1 and isinstance(parts[1], Sequence) else ()
    sizes = [size for i, size in enumerate(shape) if i or size is not None]
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 0 for size in sizes):
        raise DataError(f"feature {name!r}: shape {list(shape)}. Allowed are integers; the first may be None.")
    if len(parts) > 1 and not isinstance(parts[1], Sequence):
        raise DataError(f"feature {name!r}: found {spec!r}. {allowed}")
    try:
        known = parts[0] in (*TEXT, IMAGE) or np.dtype(parts[0]).kind in NUMERIC_KINDS
    except TypeError:
        known = False
    if not known:
        raise DataError(
            f"feature {name!r}: unknown dtype {parts[0]!r}. Allowed: float32, int64 ..., bytes, str, image."
        )
    if parts[0] == IMAGE:
        if shape[:1] == (None,) or (len(parts) > 2 and parts[2] is not None):
            raise DataError(f"feature {name!r}: found {spec!r}. An image has no default, and no None in its size.")
        DecodeImage(shape or None)  # checks the size, and that the libraries are installed
    return Feature(parts[0], shape, parts[2] if len(parts) > 2 else None)


def feature_entry(name: str, feature: Feature, found: Mapping[str, tuple[str, Sequence[Any]]]) -> Any:
    """Returns the value of a feature.

    Args:
        name: its name.
        feature: its description.
        found: name -> (kind, values) of the features of a record.

    Raises:
        DataError: it is missing, or its values do not fit its dtype or shape.
    """
    if name in found:
        kind, values = found[name]
    elif feature.default is not None:
        return _default(name, feature)
    elif feature.shape[:1] == (None,):
        kind, values = "int64" if feature.dtype not in TEXT else "bytes", []
    else:
        near = did_you_mean(name, found)
        raise DataError(
            f"feature {name!r} is missing. Correct the name, or give it a default: ({feature.dtype!r}, "
            f"{list(feature.shape)}, 0).{near}"
        )
    if feature.dtype == IMAGE or feature.decode:
        if kind != "bytes" or len(values) != 1:
            what = "an image is" if feature.dtype == IMAGE else "its function takes"
            raise DataError(f"feature {name!r} holds {len(values)} values ({kind}), {what} one value of bytes.")
        if feature.decode:
            return decode(feature.decode, values[0], f"feature {name!r}")
        return DecodeImage(tuple(size for size in feature.shape if size is not None) or None)(values[0])
    if feature.dtype in TEXT:
        return _text(name, feature, kind, values)
    return _shaped(name, feature, _numbers(name, feature, kind, values))


def _default(name: str, feature: Feature) -> Any:
    if feature.dtype in TEXT and not feature.shape:
        return feature.default
    shape = [0 if size is None else size for size in feature.shape]
    return np.full(shape, feature.default, object if feature.dtype in TEXT else feature.dtype)


def _numbers(name: str, feature: Feature, kind: str, values: Any) -> np.ndarray:
    """Returns the values in the dtype of the feature, `[values]`."""
    dtype = np.dtype(feature.dtype)
    if kind == "bytes":
        data = b"".join(values)
        if len(data) % dtype.itemsize:
            raise DataError(f"feature {name!r}: {len(data)} bytes are no array of {dtype}. Correct its dtype.")
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    array = np.asarray(values, kind)
    if kind == "float32" and dtype.kind in "iub":
        raise DataError(f"feature {name!r} holds floats, and its dtype is {dtype}. Read it as float32.")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            value = low if low < limits.min else high
            raise DataError(f"feature {name!r}: {value} does not fit {dtype}. Read it with a wider dtype.")
    return array.astype(dtype)


def _shaped(name: str, feature: Feature, array: np.ndarray) -> np.ndarray:
    rest = math.prod(size for size in feature.shape if size is not None)
    ragged = feature.shape[:1] == (None,)
    if array.size % rest if ragged and rest else array.size != rest:
        raise DataError(
            f"feature {name!r} has {array.size} values, which do not fit the shape {list(feature.shape)}. Correct the "
            "shape; its first dimension may be None for a ragged feature."
        )
    if ragged and not rest:
        return array.reshape([0 if size is None else size for size in feature.shape])
    return array.reshape([-1 if size is None else size for size in feature.shape])


def _text(name: str, feature: Feature, kind: str, values: Any) -> Any:
    if kind != "bytes":
        raise DataError(f"feature {name!r} holds {kind}, and its dtype is {feature.dtype}. Read it as {kind}.")
    if feature.dtype == "str":
        try:
            values = [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise DataError(f"feature {name!r} is not UTF-8 ({error.reason}). Read it as bytes.") from error
    if not feature.shape:
        return _shaped(name, feature, as_objects(values))[()]
    shaped = _shaped(name, feature, as_objects(values))
    return shaped if shaped.size else shaped.astype("S" if feature.dtype == "bytes" else "U")


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """Returns text as an array of objects: NumPy's own text drops zeros at the end."""
    array = np.empty(len(values), object)
    array[:] = list(values)  # the lists of protobuf convert themselves to NumPy's text
    return array
