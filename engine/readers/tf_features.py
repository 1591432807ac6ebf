"""Describes the features of `tf.train.Example` messages, and converts their values."""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import NUMERIC_KINDS
from engine.readers.decode_image import DecodeImage
from engine.readers.decoders import Decoder, decode, decoder_name
from engine.readers.tf_values import FLOAT32, FLOATS, INTEGERS, Values, header_of, only_integer

TEXT = ("bytes", "str")
IMAGE = "image"

type FeatureSpec = str | Sequence[Any] | Decoder
"""A dtype, or (dtype, shape), or (dtype, shape, default), or a function of the bytes of a single value."""


@dataclass(frozen=True)
class Feature:
    """How one feature becomes an entry of the example."""

    dtype: str
    shape: tuple[int | None, ...]
    default: Any = None
    decode: Decoder | None = None
    """What makes the entry of a single value of bytes; None for the conversion that the dtype stands for."""

    def __str__(self) -> str:
        return decoder_name(self.decode) if self.decode else str((self.dtype, self.shape, self.default))

    @functools.cached_property
    def numbers(self) -> np.dtype:
        """The dtype, of a feature that holds numbers."""
        return np.dtype(self.dtype)

    @functools.cached_property
    def is_number(self) -> bool:
        """Whether the entry is an array of numbers, which no function makes."""
        return not self.decode and self.dtype not in (*TEXT, IMAGE)

    @functools.cached_property
    def takes_floats(self) -> bool:
        """Whether the dtype holds floats."""
        return self.numbers.kind not in "iub"

    @functools.cached_property
    def limits(self) -> tuple[int, int] | None:
        """The least and the largest number that the dtype holds; None if it holds every int64, or is no integer."""
        if self.numbers.kind not in "iu" or self.numbers == np.int64:
            return None
        found = np.iinfo(self.numbers)
        return int(found.min), int(found.max)

    @functools.cached_property
    def is_ragged(self) -> bool:
        """Whether the first dimension differs between examples."""
        return self.shape[:1] == (None,)

    @functools.cached_property
    def size(self) -> int:
        """Product of the dimensions that are known."""
        return math.prod(size for size in self.shape if size is not None)

    @functools.cached_property
    def reshaped(self) -> tuple[int, ...]:
        """The shape for `reshape`, in which -1 stands for the dimension that is not known."""
        unknown = -1 if self.size else 0
        return tuple(unknown if size is None else size for size in self.shape)


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


def number_entry(feature: Feature, stored: bytes) -> np.ndarray | None:
    """Returns the value of a feature of numbers in its usual form; None for any other, which `feature_entry` takes.

    It takes a third of the time, and most features are such ones.
    """
    if not stored or not feature.is_number or not stored.startswith(header := header_of(stored[0], len(stored))):
        return None
    tag, begin = stored[0], len(header)
    data = b"" if tag == FLOATS else stored[begin:]
    if tag == FLOATS and feature.takes_floats and (len(stored) - begin) % 4 == 0:
        array = np.frombuffer(stored, FLOAT32, -1, begin)
    elif tag == INTEGERS and data.isascii():  # each byte is a number
        array = np.frombuffer(data, np.uint8)
    elif tag == INTEGERS and feature.limits is None and (value := only_integer(data)) is not None:
        array = np.array([value], np.int64)
    else:
        return None
    if feature.reshaped == (-1,):
        return array.astype(feature.numbers)
    return array.astype(feature.numbers).reshape(feature.reshaped) if array.size == feature.size else None


def feature_entry(name: str, feature: Feature, found: Values | None, names: Iterable[str] = ()) -> Any:
    """Returns the value of a feature.

    Args:
        name: its name.
        feature: its description.
        found: its values in a record; None if the record lacks it.
        names: names of the features of the record, for error texts.

    Raises:
        DataError: it is missing, or its values do not fit its dtype or shape.
    """
    if found is not None:
        kind, values = found
    elif feature.default is not None:
        return _default(name, feature)
    elif feature.is_ragged:
        kind, values = "int64" if feature.dtype not in TEXT else "bytes", []
    else:
        near = did_you_mean(name, [*names])
        raise DataError(
            f"feature {name!r} is missing. Correct the name, or give it a default: ({feature.dtype!r}, "
            f"{list(feature.shape)}, 0).{near}"
        )
    if feature.is_number:
        return _shaped(name, feature, _numbers(name, feature, kind, values))
    if feature.dtype == IMAGE or feature.decode:
        if kind != "bytes" or len(values) != 1:
            what = "an image is" if feature.dtype == IMAGE else "its function takes"
            raise DataError(f"feature {name!r} holds {len(values)} values ({kind}), {what} one value of bytes.")
        if feature.decode:
            return decode(feature.decode, values[0], f"feature {name!r}")
        return DecodeImage(tuple(size for size in feature.shape if size is not None) or None)(values[0])
    return _text(name, feature, kind, values)


def _default(name: str, feature: Feature) -> Any:
    if feature.dtype in TEXT and not feature.shape:
        return feature.default
    shape = [0 if size is None else size for size in feature.shape]
    return np.full(shape, feature.default, object if feature.dtype in TEXT else feature.dtype)


def _numbers(name: str, feature: Feature, kind: str, values: Any) -> np.ndarray:
    """Returns the values in the dtype of the feature, `[values]`."""
    dtype = feature.numbers
    if kind == "bytes":
        data = values[0] if len(values) == 1 else b"".join(values)
        if len(data) % dtype.itemsize:
            raise DataError(f"feature {name!r}: {len(data)} bytes are no array of {dtype}. Correct its dtype.")
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    array = values if isinstance(values, np.ndarray) else np.asarray(values, kind)
    if kind == "float32" and not feature.takes_floats:
        raise DataError(f"feature {name!r} holds floats, and its dtype is {dtype}. Read it as float32.")
    if array.dtype == np.int64 and feature.limits and array.size:
        least, most = feature.limits
        low = int(array.min())
        high = low if array.size == 1 else int(array.max())
        if low < least or high > most:
            value = low if low < least else high
            raise DataError(f"feature {name!r}: {value} does not fit {dtype}. Read it with a wider dtype.")
    return array.astype(dtype)


def _shaped(name: str, feature: Feature, array: np.ndarray) -> np.ndarray:
    size = feature.size
    if array.size % size if feature.is_ragged and size else array.size != size:
        raise DataError(
            f"feature {name!r} has {array.size} values, which do not fit the shape {list(feature.shape)}. Correct the "
            "shape; its first dimension may be None for a ragged feature."
        )
    return array if feature.reshaped == (-1,) else array.reshape(feature.reshaped)


def _text(name: str, feature: Feature, kind: str, values: Any) -> Any:
    if kind != "bytes":
        raise DataError(f"feature {name!r} holds {kind}, and its dtype is {feature.dtype}. Read it as {kind}.")
    if feature.dtype == "str":
        try:
            values = [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise DataError(f"feature {name!r} is not UTF-8 ({error.reason}). Read it as bytes.") from error
    if not feature.shape and len(values) == 1:
        return values[0]
    if not feature.shape:
        return _shaped(name, feature, as_objects(values))[()]
    shaped = _shaped(name, feature, as_objects(values))
    return shaped if shaped.size else shaped.astype("S" if feature.dtype == "bytes" else "U")


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """Returns text as an array of objects: NumPy's own text drops zeros at the end."""
    array = np.empty(len(values), object)
    array[:] = list(values)  # the lists of protobuf convert themselves to NumPy's text
    return array
