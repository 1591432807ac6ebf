"""Decodes `tf.train.Example` messages, without TensorFlow.

The message maps the name of each feature to a list of bytes, of floats (float32) or of integers (int64).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import NUMERIC_KINDS, Example
from engine.readers.decode_image import DecodeImage
from engine.readers.protobuf_types import RecordType

# A map is a list of entries on the wire; of two entries of a name, the last counts.
_EXAMPLE = RecordType(
    "tensorflow.Example",
    {
        "BytesList": "repeated bytes value = 1",
        "FloatList": "repeated float value = 1",
        "Int64List": "repeated int64 value = 1",
        "Feature": "oneof BytesList bytes_list = 1; oneof FloatList float_list = 2; oneof Int64List int64_list = 3",
        "FeatureEntry": "string key = 1; Feature value = 2",
        "Features": "repeated FeatureEntry feature = 1",
        "Example": "Features features = 1",
    },
)
_KINDS = {"bytes_list": "bytes", "float_list": "float32", "int64_list": "int64"}
_TEXT = ("bytes", "str")
_IMAGE = "image"

type FeatureSpec = str | Sequence[Any]
"""A dtype, or (dtype, shape), or (dtype, shape, default)."""


class _Feature(NamedTuple):
    """How one feature becomes an entry of the example."""

    dtype: str
    shape: tuple[int | None, ...]
    default: Any = None


class TFExample:
    """Decoder of `tf.train.Example` messages into dicts of arrays.

    Args:
        features: for each feature to read, its dtype (a single value), or `(dtype, shape)`, or `(dtype, shape,
            default)` with the value of a feature that a record lacks. The first dimension of a shape may be None, for a
            ragged feature; if a record lacks it, it has no elements. Dtypes are the numbers of NumPy, "bytes", "str"
            (UTF-8) and "image". A feature of bytes with a numeric dtype is the raw little-endian values of an array.
            "image" is an encoded image, and `("image", [height, width])` resizes it (`DecodeImage`). None reads all
            features of a sample of the records: a feature with one value in each of them is a single value, any other
            is an array `[values]`.

    ```python
    TFExample({"label": "int32", "image": ("uint8", [28, 28]), "points": ("float32", [None, 3])})
    ```

    Raises:
        DataError: the description of a feature is invalid.
    """

    def __init__(self, features: Mapping[str, FeatureSpec] | None = None):
        self.features = None if features is None else {name: _parse(name, spec) for name, spec in features.items()}
        if self.features == {}:
            raise DataError("features is empty. Name at least one feature, or omit it to read all.")

    def __repr__(self) -> str:
        found = self.features and {name: tuple(feature) for name, feature in sorted(self.features.items())}
        return f"TFExample({found})"

    def inferred(self, records: Iterable[bytes]) -> "TFExample":
        """Returns the decoder of all features that some records have; this decoder if `features` was given.

        Raises:
            DataError: a record is damaged, or a feature has different kinds of values in two records.
        """
        if self.features is not None:
            return self
        kinds: dict[str, str] = {}
        counts: dict[str, list[int]] = {}
        total = 0
        for total, record in enumerate(records, start=1):  # noqa: B007, used after the loop
            for name, (kind, values) in _lists(record).items():
                if kinds.setdefault(name, kind) != kind:
                    raise DataError(
                        f"feature {name!r} is {kinds[name]} in one record and {kind} in another. Correct the files, or "
                        "name the features to read: TFExample(features={...})."
                    )
                counts.setdefault(name, []).append(len(values))
        features = {}
        for name in sorted(kinds):
            single = len(counts[name]) == total and set(counts[name]) == {1}
            features[name] = kinds[name] if single else (kinds[name], [None])
        if not features:
            raise DataError("the records hold no features: they are no tf.train.Example. Name a decoder.")
        return TFExample(features)

    def __call__(self, record: bytes) -> Example:
        """Returns the features of a record.

        Raises:
            DataError: the record is damaged, a feature is missing, or its values do not fit its dtype or shape.
        """
        found = _lists(record)
        if self.features is None:
            return self.inferred([record])(record)
        return {name: _entry(name, feature, found) for name, feature in self.features.items()}


def _parse(name: str, spec: FeatureSpec) -> _Feature:
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
        known = parts[0] in (*_TEXT, _IMAGE) or np.dtype(parts[0]).kind in NUMERIC_KINDS
    except TypeError:
        known = False
    if not known:
        raise DataError(
            f"feature {name!r}: unknown dtype {parts[0]!r}. Allowed: float32, int64 ..., bytes, str, image."
        )
    if parts[0] == _IMAGE:
        if shape[:1] == (None,) or (len(parts) > 2 and parts[2] is not None):
            raise DataError(f"feature {name!r}: found {spec!r}. An image has no default, and no None in its size.")
        DecodeImage(shape or None)  # checks the size, and that the libraries are installed
    return _Feature(parts[0], shape, parts[2] if len(parts) > 2 else None)


def _lists(record: bytes) -> dict[str, tuple[str, Sequence[Any]]]:
    """Returns name -> (kind, values) of each feature that has a list of values."""
    features = {entry.key: entry.value for entry in _EXAMPLE.parse(record).features.feature}
    lists = {name: (feature.WhichOneof("kind"), feature) for name, feature in features.items()}
    return {name: (_KINDS[kind], getattr(feature, kind).value) for name, (kind, feature) in lists.items() if kind}


def _entry(name: str, feature: _Feature, found: Mapping[str, tuple[str, Sequence[Any]]]) -> Any:
    if name in found:
        kind, values = found[name]
    elif feature.default is not None:
        return _default(name, feature)
    elif feature.shape[:1] == (None,):
        kind, values = "int64" if feature.dtype not in _TEXT else "bytes", []
    else:
        near = did_you_mean(name, found)
        raise DataError(
            f"feature {name!r} is missing. Correct the name, or give it a default: ({feature.dtype!r}, "
            f"{list(feature.shape)}, 0).{near}"
        )
    if feature.dtype == _IMAGE:
        if kind != "bytes" or len(values) != 1:
            raise DataError(f"feature {name!r} holds {len(values)} values ({kind}), an image is one value of bytes.")
        return DecodeImage(tuple(size for size in feature.shape if size is not None) or None)(values[0])
    if feature.dtype in _TEXT:
        return _text(name, feature, kind, values)
    return _shaped(name, feature, _numbers(name, feature, kind, values))


def _default(name: str, feature: _Feature) -> Any:
    if feature.dtype in _TEXT and not feature.shape:
        return feature.default
    shape = [0 if size is None else size for size in feature.shape]
    return np.full(shape, feature.default, object if feature.dtype in _TEXT else feature.dtype)


def _numbers(name: str, feature: _Feature, kind: str, values: Any) -> np.ndarray:
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


def _shaped(name: str, feature: _Feature, array: np.ndarray) -> np.ndarray:
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


def _text(name: str, feature: _Feature, kind: str, values: Any) -> Any:
    if kind != "bytes":
        raise DataError(f"feature {name!r} holds {kind}, and its dtype is {feature.dtype}. Read it as {kind}.")
    if feature.dtype == "str":
        try:
            values = [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise DataError(f"feature {name!r} is not UTF-8 ({error.reason}). Read it as bytes.") from error
    if not feature.shape:
        return _shaped(name, feature, _objects(values))[()]
    shaped = _shaped(name, feature, _objects(values))
    return shaped if shaped.size else shaped.astype("S" if feature.dtype == "bytes" else "U")


def _objects(values: Sequence[Any]) -> np.ndarray:
    """Returns text as an array of objects: NumPy's own text drops zeros at the end."""
    array = np.empty(len(values), object)
    array[:] = list(values)  # the lists of protobuf convert themselves to NumPy's text
    return array
