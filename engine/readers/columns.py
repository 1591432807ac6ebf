"""Converts columns of Arrow tables to NumPy, once per block of rows; examples are then slices of the result.

Numbers become arrays, text stays Python text, a list becomes an array `[n, ...]`, or a Python list if the lists in it
differ in length, a struct becomes a dict, and a list of structs becomes a dict of arrays. A null makes only the rows
that contain it unreadable, unless a value is given for it.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from engine.base.errors import DataError
from engine.data.examples import Example, Examples
from engine.readers.column_fill import filled


class Column(Protocol):
    """The values of one column in a block of rows. All methods raise DataError for a null among the chosen rows."""

    @property
    def nbytes(self) -> int:
        """Size of the values, in bytes."""
        ...

    def row(self, index: int) -> Example:
        """Returns the value of a row; arrays are new ones."""
        ...

    def rows(self, start: int, stop: int) -> Examples:
        """Returns the values of consecutive rows, stacked. Raises DataError if their shapes differ."""
        ...

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the values of any rows, stacked. Raises DataError if their shapes differ."""
        ...

    def elements(self, start: int, stop: int) -> Example:
        """Returns the values of consecutive rows as one example: stacked, or as a list if their shapes differ."""
        ...


class RaggedError(DataError):
    """Rows whose shapes differ, so that they fit no array."""


NO_FILL: Mapping[str, Any] = {}


def make_column(array: Any, name: str, fill: Mapping[str, Any] = NO_FILL) -> Column:
    """Converts a pyarrow array.

    Args:
        array: the array.
        name: name of the column in error texts. A field of a struct is "column.field"; the elements of a list have the
            name of the list, and the values of a map that of the map.
        fill: name -> what replaces a null there; a null list becomes an empty list.

    Raises:
        DataError: the type is neither a number nor text, nor built from these; or a value of `fill` is of another type.
    """
    import pyarrow as pa

    array = plain(array)
    if name in fill:
        array = filled(array, name, fill[name])
    kind, nulls = array.type, _nulls(array)
    if isinstance(kind, pa.FixedShapeTensorType):
        return _tensors(array, name)
    if isinstance(kind, pa.BaseExtensionType):
        return make_column(array.storage, name, fill)
    if pa.types.is_map(kind):
        return _maps(array, nulls, name, fill)
    if pa.types.is_struct(kind):
        # flatten() marks the children of a null struct as null.
        children = zip(kind, array.flatten(), strict=True)
        return _Struct({field.name: make_column(child, f"{name}.{field.name}", fill) for field, child in children})
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        values = array.values.slice(array.offset * size, len(array) * size)
        return _lists(values, np.arange(len(array) + 1) * size, nulls, name, fill)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = array.offsets.to_numpy()
        first, last = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
        return _lists(array.values.slice(first, last - first), offsets - first, nulls, name, fill)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        sizes = array.value_lengths().fill_null(0).to_numpy()
        return _lists(array.flatten(), np.concatenate([[0], np.cumsum(sizes)]), nulls, name, fill)  # skips nulls
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _Text(array, np.empty(0, "U1"), nulls, name)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _Text(array, np.empty(0, "S1"), nulls, name)
    if pa.types.is_boolean(kind):
        return _Numbers(array.fill_null(False).to_numpy(zero_copy_only=False), nulls, name)
    if pa.types.is_decimal(kind):
        return _decimals(array, nulls, name)
    return _Numbers(_numbers(array, name), nulls, name)


def _tensors(array: Any, name: str) -> Column:
    """Returns a column of tensors of one shape; a null in a tensor makes its row unreadable."""
    import pyarrow as pa

    storage, size = array.storage, array.type.storage_type.list_size
    values = storage.values.slice(storage.offset * size, len(storage) * size)
    nulls = _nulls(array)
    if values.null_count or nulls is not None:  # pyarrow converts neither: it raises, or takes a null for any number
        missing = values.is_null().to_numpy(zero_copy_only=False).reshape(len(storage), size).any(axis=1)
        nulls = missing if nulls is None else nulls | missing
        filled = pa.FixedSizeListArray.from_arrays(values.fill_null(0), type=array.type.storage_type)
        array = pa.ExtensionArray.from_storage(array.type, filled)
    return _Numbers(array.to_numpy_ndarray(), nulls, name)


def _lists(values: Any, offsets: np.ndarray, nulls: np.ndarray | None, name: str, fill: Mapping[str, Any]) -> Column:
    """Returns a column of lists; numbers in lists of one length are one array."""
    column, sizes = make_column(values, name, fill), np.diff(offsets)
    if isinstance(column, _Numbers) and not values.null_count and sizes.size and (sizes == sizes[0]).all():
        return _Numbers(column.values.reshape(len(sizes), int(sizes[0]), *column.values.shape[1:]), nulls, name)
    return _Lists(column, offsets, nulls, name)


def _maps(array: Any, nulls: np.ndarray | None, name: str, fill: Mapping[str, Any]) -> Column:
    """Returns a column of maps: those with text as keys are dicts, others lists of `key` and `value`."""
    import pyarrow as pa

    offsets = array.offsets.to_numpy()
    first, last = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
    keys, items = (part.slice(first, last - first) for part in (array.keys, array.items))
    if not (pa.types.is_string(keys.type) or pa.types.is_large_string(keys.type)):
        columns = {"key": make_column(keys, name, fill), "value": make_column(items, name, fill)}
        return _Lists(_Struct(columns), offsets - first, nulls, name)
    return _Maps(keys.to_pylist(), make_column(items, name, fill), offsets - first, nulls, name)


def _decimals(array: Any, nulls: np.ndarray | None, name: str) -> Column:
    """Returns a column of decimals: int64 without digits after the point, else the nearest float64.

    A value with more digits than its type here can hold makes its row unreadable.
    """
    import pyarrow as pa

    digits, scale = array.type.precision, array.type.scale
    dtype = np.dtype(np.int64 if scale <= 0 and digits - scale <= 18 else np.float64)
    if digits <= 15 and pa.types.is_decimal128(array.type) and array.buffers()[1] is not None:
        # The lower half of 128 bits holds all digits, and the division of exact numbers is rounded once.
        halves = np.frombuffer(array.buffers()[1], "<i8", 2 * len(array), 16 * array.offset)[::2]
        whole = halves if nulls is None else np.where(nulls, 0, halves)
        return _Numbers(whole * 10**-scale if dtype.kind == "i" else whole / 10.0**scale, nulls, name)
    values, inexact = np.zeros(len(array), dtype), np.zeros(len(array), bool)
    for row, value in enumerate(array.to_pylist()):
        if value is not None:
            values[row] = dtype.type(value)
            # float64 gives back at most 17 digits of a decimal.
            inexact[row] = type(value)(repr(values[row].item())) != value
    missing = inexact if nulls is None else nulls | inexact
    problem = f"is null, or has more digits than {dtype} holds" if inexact.any() else "is null"
    return _Numbers(values, missing if missing.any() else None, name, problem)


def plain(array: Any) -> Any:
    """Returns a pyarrow array in a type that all functions of pyarrow take: without a dictionary, and without views."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        return pa.DictionaryArray.from_arrays(array.indices, plain(array.dictionary)).dictionary_decode()
    if pa.types.is_string_view(array.type):
        return array.cast(pa.large_string())
    return array.cast(pa.large_binary()) if pa.types.is_binary_view(array.type) else array


def whole(chunks: Any) -> Any:
    """Returns a pyarrow column as one array."""
    import pyarrow as pa

    if chunks.num_chunks == 1:
        return chunks.chunk(0)
    if pa.types.is_string(chunks.type) or pa.types.is_binary(chunks.type):  # an array of these holds 2 GiB at most
        chunks = chunks.cast(pa.large_string() if pa.types.is_string(chunks.type) else pa.large_binary())
    return chunks.unify_dictionaries().combine_chunks()


def _numbers(array: Any, name: str) -> np.ndarray:
    """Returns a view of integers, floats, or times and durations as integers in their own unit."""
    import pyarrow as pa

    kind = array.type
    if pa.types.is_integer(kind):
        dtype = np.dtype(f"{'int' if pa.types.is_signed_integer(kind) else 'uint'}{kind.bit_width}")
    elif pa.types.is_floating(kind):
        dtype = np.dtype(f"float{kind.bit_width}")
    elif pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        dtype = np.dtype(f"int{kind.bit_width}")
    else:
        raise DataError(
            f"Column {name} has type {kind}: allowed are numbers, text, times, lists, maps and structs. Leave it out "
            "by `columns`, or convert it."
        )
    values = array.buffers()[1]
    if values is None:
        return np.zeros(0, dtype)
    return np.frombuffer(values, dtype, len(array), array.offset * dtype.itemsize)


def _nulls(array: Any) -> np.ndarray | None:
    return array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None


class _Checked:
    """A column whose rows may be null."""

    def __init__(self, nulls: np.ndarray | None, name: str, problem: str = "is null"):
        self._nulls, self.name, self._problem = nulls, name, problem

    def _check(self, rows: int | slice | np.ndarray) -> None:
        if self._nulls is not None and np.any(self._nulls[rows]):
            raise DataError(
                f"column {self.name} {self._problem}. Fill it or remove the row, or give a value for nulls in "
                "`columns`."
            )

    def row(self, index: int) -> Example:
        raise NotImplementedError

    def rows(self, start: int, stop: int) -> Examples:
        raise NotImplementedError

    def elements(self, start: int, stop: int) -> Example:
        try:
            return self.rows(start, stop)
        except RaggedError:
            return [self.row(index) for index in range(start, stop)]


class _Numbers(_Checked):
    def __init__(self, values: np.ndarray, nulls: np.ndarray | None, name: str, problem: str = "is null"):
        super().__init__(nulls, name, problem)
        self.values = values

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def row(self, index: int) -> Example:
        self._check(index)
        found = self.values[index]
        return found if self.values.ndim == 1 else found.copy()  # a number is no view

    def rows(self, start: int, stop: int) -> Examples:
        self._check(slice(start, stop))
        return self.values[start:stop].copy()

    def take(self, indices: np.ndarray) -> Examples:
        self._check(indices)
        return self.values[indices]


class _Text(_Checked):
    def __init__(self, array: Any, empty: np.ndarray, nulls: np.ndarray | None, name: str):
        super().__init__(nulls, name)
        self._array, self._empty = array, empty

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    def row(self, index: int) -> Example:
        self._check(index)
        return self._array[index].as_py()

    def rows(self, start: int, stop: int) -> Examples:
        self._check(slice(start, stop))
        return self._objects(self._array.slice(start, stop - start).to_pylist())

    def take(self, indices: np.ndarray) -> Examples:
        self._check(indices)
        return self._objects(self._array.take(indices).to_pylist())

    def _objects(self, values: list[str] | list[bytes]) -> np.ndarray:
        return np.array(values, object) if values else self._empty


class _Lists(_Checked):
    def __init__(self, values: Column, offsets: np.ndarray, nulls: np.ndarray | None, name: str):
        super().__init__(nulls, name)
        self._values, self._offsets = values, offsets

    @property
    def nbytes(self) -> int:
        return self._values.nbytes + self._offsets.nbytes

    def row(self, index: int) -> Example:
        self._check(index)
        return self._values.elements(*self._offsets[index : index + 2].tolist())

    def rows(self, start: int, stop: int) -> Examples:
        self._check(slice(start, stop))
        size = self._common_size(self._offsets[start:stop], self._offsets[start + 1 : stop + 1])
        return _split(self._values.rows(*self._offsets[[start, stop]].tolist()), stop - start, size)

    def take(self, indices: np.ndarray) -> Examples:
        self._check(indices)
        starts = self._offsets[indices]
        size = self._common_size(starts, self._offsets[indices + 1])
        return _split(self._values.take((starts[:, None] + np.arange(size)).reshape(-1)), len(indices), size)

    def _common_size(self, starts: np.ndarray, stops: np.ndarray) -> int:
        sizes = stops - starts
        if not sizes.size:
            return 0
        least, most = int(sizes.min()), int(sizes.max())
        if least < most:
            raise RaggedError(
                f"column {self.name} has lists of {least} and of {most} elements, which fit no array. Bring them to "
                "one length."
            )
        return most


class _Struct:
    def __init__(self, columns: dict[str, Column]):
        self._columns = columns

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self._columns.values())

    def row(self, index: int) -> Example:
        return {name: column.row(index) for name, column in self._columns.items()}

    def rows(self, start: int, stop: int) -> Examples:
        return {name: column.rows(start, stop) for name, column in self._columns.items()}

    def take(self, indices: np.ndarray) -> Examples:
        return {name: column.take(indices) for name, column in self._columns.items()}

    def elements(self, start: int, stop: int) -> Example:
        return {name: column.elements(start, stop) for name, column in self._columns.items()}


class _Maps(_Checked):
    """Maps with text as keys. Rows are stacked if they have the same keys."""

    def __init__(self, keys: list[str], values: Column, offsets: np.ndarray, nulls: np.ndarray | None, name: str):
        super().__init__(nulls, name)
        self._keys, self._values, self._offsets = keys, values, offsets

    @property
    def nbytes(self) -> int:
        return self._values.nbytes + self._offsets.nbytes + sum(map(len, self._keys))

    def row(self, index: int) -> Example:
        self._check(index)
        return {key: self._values.row(place) for key, place in self._places(index).items()}

    def rows(self, start: int, stop: int) -> Examples:
        return self.take(np.arange(start, stop))

    def take(self, indices: np.ndarray) -> Examples:
        self._check(indices)
        places = [self._places(index) for index in indices.tolist()]
        for found in places[1:]:
            if found.keys() != places[0].keys():
                raise RaggedError(
                    f"column {self.name} has maps with the keys {sorted(places[0])} and {sorted(found)}. Bring them "
                    "to the same keys."
                )
        keys = places[0] if places else {}
        return {key: self._values.take(np.array([found[key] for found in places])) for key in keys}

    def _places(self, index: int) -> dict[str, int]:
        """Returns key -> its value's row. Raises DataError if a key occurs twice."""
        start, stop = self._offsets[index : index + 2].tolist()
        places = dict(zip(self._keys[start:stop], range(start, stop), strict=True))
        if len(places) < stop - start:
            raise DataError(f"column {self.name} has a map with a key twice. Correct the file.")
        return places


def _split(values: Examples, count: int, size: int) -> Examples:
    """Returns arrays `[count * size, ...]` as `[count, size, ...]`."""
    return jax.tree.map(lambda array: array.reshape(count, size, *array.shape[1:]), values)
