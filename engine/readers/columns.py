"""Converts columns of Arrow tables to NumPy, once per block of rows; examples are then slices of the result.

Numbers become arrays, text stays Python text, a list becomes an array `[n, ...]`, a struct becomes a dict, and a list
of structs becomes a dict of arrays. A null makes only the rows that contain it unreadable.
"""

from typing import Any, Protocol

import jax
import numpy as np

from engine.base.errors import DataError
from engine.data.examples import Example, Examples


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


def make_column(array: Any, name: str) -> Column:
    """Converts a pyarrow array; `name` is the name of the column in error texts.

    Raises:
        DataError: the type is neither a number nor text, nor built from these.
    """
    import pyarrow as pa

    array = plain(array)
    kind, nulls = array.type, _nulls(array)
    if isinstance(kind, pa.FixedShapeTensorType):
        return _tensors(array, name)
    if isinstance(kind, pa.BaseExtensionType):
        return make_column(array.storage, name)
    if pa.types.is_struct(kind):
        # flatten() marks the children of a null struct as null.
        children = zip(kind, array.flatten(), strict=True)
        return _Struct({field.name: make_column(child, f"{name}.{field.name}") for field, child in children})
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        values = array.values.slice(array.offset * size, len(array) * size)
        return _lists(values, np.arange(len(array) + 1) * size, nulls, name)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = array.offsets.to_numpy()
        first, last = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
        return _lists(array.values.slice(first, last - first), offsets - first, nulls, name)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        sizes = array.value_lengths().fill_null(0).to_numpy()
        return _lists(array.flatten(), np.concatenate([[0], np.cumsum(sizes)]), nulls, name)  # flatten skips nulls
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _Text(array, np.empty(0, "U1"), nulls, name)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _Text(array, np.empty(0, "S1"), nulls, name)
    if pa.types.is_boolean(kind):
        return _Numbers(array.fill_null(False).to_numpy(zero_copy_only=False), nulls, name)
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


def _lists(values: Any, offsets: np.ndarray, nulls: np.ndarray | None, name: str) -> Column:
    """Returns a column of lists; numbers in lists of one length are one array."""
    column, sizes = make_column(values, name), np.diff(offsets)
    if isinstance(column, _Numbers) and not values.null_count and sizes.size and (sizes == sizes[0]).all():
        return _Numbers(column.values.reshape(len(sizes), int(sizes[0]), *column.values.shape[1:]), nulls, name)
    return _Lists(column, offsets, nulls, name)


def plain(array: Any) -> Any:
    """Returns a pyarrow array in a type that all functions of pyarrow take: without a dictionary, and without views."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        return pa.DictionaryArray.from_arrays(array.indices, plain(array.dictionary)).dictionary_decode()
    if pa.types.is_string_view(array.type):
        return array.cast(pa.large_string())
    return array.cast(pa.large_binary()) if pa.types.is_binary_view(array.type) else array


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
            f"Column {name} has type {kind}: allowed are numbers, text, times, lists and structs. Leave it out by "
            "`columns`, or convert it."
        )
    values = array.buffers()[1]
    if values is None:
        return np.zeros(0, dtype)
    return np.frombuffer(values, dtype, len(array), array.offset * dtype.itemsize)


def _nulls(array: Any) -> np.ndarray | None:
    return array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None


class _Checked:
    """A column whose rows may be null."""

    def __init__(self, nulls: np.ndarray | None, name: str):
        self._nulls, self.name = nulls, name

    def _check(self, rows: int | slice | np.ndarray) -> None:
        if self._nulls is not None and np.any(self._nulls[rows]):
            raise DataError(f"column {self.name} is null. Fill it or remove the row.")


class _Numbers(_Checked):
    def __init__(self, values: np.ndarray, nulls: np.ndarray | None, name: str):
        super().__init__(nulls, name)
        self.values = values

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def row(self, index: int) -> Example:
        self._check(index)
        return self.values[index].copy()

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
        return self._values.rows(*self._offsets[index : index + 2].tolist())

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
            raise DataError(
                f"column {self.name} has lists of {least} and of {most} elements, which fit no array. Bring "
                "them to one length, or pad the examples with engine.Padded."
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


def _split(values: Examples, count: int, size: int) -> Examples:
    """Returns arrays `[count * size, ...]` as `[count, size, ...]`."""
    return jax.tree.map(lambda array: array.reshape(count, size, *array.shape[1:]), values)
