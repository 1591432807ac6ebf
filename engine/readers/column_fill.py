"""Replaces nulls of Arrow arrays by the values that a reader was given.

A field of a struct is named "column.field"; the elements of a list have the name of the list, and the values of a map
that of the map. A null list or map becomes an empty one.
"""

from collections.abc import Mapping
from typing import Any

from engine.base.errors import DataError, did_you_mean


def fill_by_name(columns: Mapping[str, Any], parent: str = "") -> dict[str, Any]:
    """Returns name -> value from the argument `columns` of a reader, in which structs are nested dicts."""
    found: dict[str, Any] = {}
    for key, value in columns.items():
        name = f"{parent}{key}"
        found |= fill_by_name(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return {name: value for name, value in found.items() if value is not None}


def check_fill(fill: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Raises DataError for a name that no column has; `types` is column -> type of pyarrow."""
    known = [found for name, kind in types.items() for found in _names(kind, name)]
    for name in fill:
        if name not in known:
            raise DataError(
                f"columns has a value for {name}, which is no column or field.{did_you_mean(name, known)} Allowed: "
                f"{', '.join(known)}."
            )


def filled(array: Any, name: str, value: Any) -> Any:
    """Returns an array without nulls. Raises DataError if the value is not of its type."""
    import pyarrow as pa

    kind = array.type
    if pa.types.is_struct(kind) or isinstance(kind, pa.BaseExtensionType):
        return array  # the fields of a struct have names of their own
    if pa.types.is_nested(kind):
        if pa.types.is_fixed_size_list(kind) or not array.null_count:
            return array
        return array.fill_null(pa.scalar([], kind))
    try:
        found = pa.scalar(value, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"columns: {name} is {kind}, found {value!r}. Give a value of its type.") from error
    return array.fill_null(found) if array.null_count else array


def _names(kind: Any, name: str) -> list[str]:
    """Returns the names in a column whose nulls can be replaced."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return [found for field in kind for found in _names(field.type, f"{name}.{field.name}")]
    if pa.types.is_map(kind):
        inside = _names(kind.item_type, name)
    elif pa.types.is_nested(kind) and hasattr(kind, "value_type"):
        inside = _names(kind.value_type, name)
    else:
        inside = []
    return list(dict.fromkeys([name, *inside]))
