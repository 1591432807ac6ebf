"""Converts JSON values to arrays, so that a field has one dtype in all examples of a dataset."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import Example

KINDS = "biuf"  # kinds of dtypes that `dtypes` may name: booleans, integers and floats
MOST_FIELDS = 1000  # fields of an object whose descriptions are kept: its keys may be any text


class JsonValues:
    """Function of a JSON value that returns it with arrays for numbers and for rectangular lists of numbers.

    Since a log may write 1.0 as `1`, the numbers of a field have the dtype of the first examples: float64 if one of
    them holds a float, else int64. A list of text becomes an array of objects. Other values, such as null and integers
    of more than 64 bits, remain as they are.
    """

    def __init__(self, name: str = "", first: Iterable[Any] = (), dtypes: Mapping[str, str] | None = None):
        """Determines the dtypes.

        Args:
            name: name of the value in the example, the first part of the names of its fields; "" for the whole example.
            first: values of the first examples.
            dtypes: field, such as "pose.speed" -> dtype, instead of the dtype of the first examples. The elements of a
                list have the name of the list.

        Raises:
            DataError: `dtypes` names no numeric dtype.
        """
        self._name, self.fields = name, set[str]()
        self._first: dict[str, np.dtype[Any]] = {}
        self._with_text = set[str]()  # fields with text in the first examples
        for value in first:
            _convert(value, name, self._record)
        self._given = {field: _dtype(field, dtype) for field, dtype in (dtypes or {}).items()}
        self._field = self._described(name)

    def __call__(self, value: Any) -> Example:
        """Returns the value with arrays.

        Raises:
            DataError: a field of integers holds a float, or a field of numbers something else, such as null.
        """
        return self._converted(value, self._field)

    def __repr__(self) -> str:
        dtypes = {**self._first, **self._given}
        return f"JsonValues({ {field: str(dtypes[field]) for field in sorted(dtypes)} })"

    def _record(self, value: Any, field: str) -> Any:
        self.fields.add(field)
        if isinstance(value, str) or (isinstance(value, np.ndarray) and value.dtype.kind == "O"):
            self._with_text.add(field)
        elif isinstance(value, np.ndarray) and value.size and value.dtype.kind in "if":
            self._first[field] = np.result_type(value.dtype, self._first.get(field, value.dtype))
        return value

    def _described(self, name: str) -> "_Field":
        dtype = self._given.get(name) or self._first.get(name)
        return _Field(name, dtype, name in self._given, name in self._with_text)

    def _child(self, field: "_Field", key: str) -> "_Field":
        """Returns a field of an object; of the first ones, the description is made once."""
        if (child := field.children.get(key)) is None:
            child = self._described(f"{field.name}.{key}" if field.name else key)
            if len(field.children) < MOST_FIELDS:
                field.children[key] = child
        return child

    def _converted(self, value: Any, field: "_Field") -> Any:
        kind = type(value)
        if kind in field.as_is:
            return np.asarray(value) if kind is not int or -(2**63) <= value < 2**63 else self._cast(value, field)
        if kind is str and field.dtype is None:
            return value
        if kind is dict:
            children = field.children
            return {
                key: self._converted(child, children.get(key) or self._child(field, key))
                for key, child in value.items()
            }
        if kind is list:
            found = _array(value)
            if found is None:
                return [self._converted(child, field) for child in value]
            return self._cast(found, field)
        return self._cast(_number(value), field)

    def _cast(self, value: Any, field: "_Field") -> Any:
        dtype = field.dtype
        if dtype is None:
            return value
        if not isinstance(value, np.ndarray) or value.dtype.kind == "O":
            if field.has_text and value is not None:
                return value
            found = str(value)[:60] if value is not None else "null"
            raise DataError(
                f"field {field.name} has numbers in the first examples, but holds {found}. Correct the example."
            )
        if value.dtype == dtype or (value.dtype.kind == "b" and not field.is_given):
            return value
        if value.dtype.kind == "i" and dtype == np.float64:  # a list of 1.0 that was written as 1
            return value.astype(dtype)
        with np.errstate(all="ignore"):
            converted = value.astype(dtype)
        if dtype.kind != "f" and not np.array_equal(converted, value):
            reason = f"is {dtype} by `dtypes`" if field.is_given else "is an integer in the first examples"
            raise DataError(
                f"field {field.name} {reason}, but holds {str(value.tolist())[:60]}. Set its dtype: "
                f'dtypes={{"{field.name}": "float32"}}.'
            )
        return converted


class _Field:
    """What is known of a field.

    Args:
        name: its name.
        dtype: dtype of its numbers; None if it has none in the first examples.
        is_given: whether the dtype is one of `dtypes`.
        has_text: whether it holds text in the first examples.
    """

    def __init__(self, name: str, dtype: "np.dtype[Any] | None", is_given: bool, has_text: bool):
        self.name, self.dtype, self.is_given, self.has_text = name, dtype, is_given, has_text
        self.children: dict[str, _Field] = {}
        """The fields of an object, by key."""
        kinds = {float: np.dtype(np.float64), int: np.dtype(np.int64)}
        self.as_is = {kind for kind, own in kinds.items() if dtype is None or dtype == own}
        """Types of the numbers that have this dtype as they are."""


def find_json_values(
    names: Iterable[str], first: Callable[[str], Iterable[Any]], dtypes: Mapping[str, str] | None
) -> dict[str, JsonValues]:
    """Returns the function for the JSON value of each name, such as a member of a sample.

    Args:
        names: names of the values in the example.
        first: returns the values of a name in the first examples.
        dtypes: the argument of the reader.

    Raises:
        DataError: `dtypes` names an unknown field, or no numeric dtype.
    """
    given = dtypes or {}
    found = {}
    for name in names:
        own = {field: dtype for field, dtype in given.items() if not name or f"{field}.".startswith(f"{name}.")}
        found[name] = JsonValues(name, first(name), own)
    fields = sorted(field for values in found.values() for field in values.fields)
    for field in given:
        # A null or an empty list may hold any fields in other examples.
        if not any(f"{field}.".startswith(f"{known}.") for known in fields):
            raise DataError(
                f"dtypes: the first examples have no field {field!r} in JSON.{did_you_mean(field, fields)} Found: "
                f"{', '.join(fields[:20]) or 'none'}."
            )
    return found


def _dtype(field: str, name: str) -> "np.dtype[Any]":
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in KINDS:
        raise DataError(f"dtypes: field {field}: found {name!r}, allowed are names such as 'float32' and 'int32'.")
    return dtype


def _convert(value: Any, field: str, leaf: Callable[[Any, str], Any]) -> Any:
    """Returns a JSON value in which `leaf` replaces each array and each value that is none."""
    if isinstance(value, dict):
        return {key: _convert(child, f"{field}.{key}" if field else key, leaf) for key, child in value.items()}
    if isinstance(value, list):
        array = _array(value)
        return [_convert(child, field, leaf) for child in value] if array is None else leaf(array, field)
    return leaf(_number(value), field)


def _number(value: Any) -> Any:
    """Returns a number that fits 64 bits as an array, and any other value as it is."""
    if isinstance(value, bool | float) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return np.asarray(value)
    return value


def _array(value: list[Any]) -> np.ndarray | None:
    """Returns a list of text, or nested lists of numbers, as one array; None for other lists."""
    first = value[0] if value else None
    if isinstance(first, dict):
        return None
    if isinstance(first, str) and all(isinstance(child, str) for child in value):
        return np.array(value, object)
    try:
        array = np.array(value)
    except (ValueError, OverflowError):  # lists of different lengths
        return None
    return array if array.dtype.kind in "bif" else None
