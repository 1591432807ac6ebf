"""Random access to the rows of tables: Parquet, Arrow and Feather files, read by pyarrow.

The smallest read of a file is a *block*: a row group of Parquet, a record batch of Arrow. An example is one row, the
consecutive rows with one value of a column, or all rows of a file.
"""

import bisect
import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.data.examples import Example, Examples
from engine.data.file_states import FileStates
from engine.data.source import SEPARATOR, SPEC_TRIES, BaseSource
from engine.data.text import stack_leaves
from engine.readers.blocks import BlockCache
from engine.readers.column_fill import check_fill, fill_by_name
from engine.readers.columns import Column, RaggedError, make_column, plain, whole
from engine.readers.decoders import Decoder, decode, decoder_name, find_decoder
from engine.readers.files import file_names, sampled_files
from engine.readers.fingerprints import digest
from engine.storage.mounts import shown

CACHE_BYTES = 512 << 20  # default bound on the blocks that a source keeps
OPENERS = 8  # threads that read the metadata of files

type Block = dict[str, Column]


class TableFormat(Protocol):
    """A file format. Methods raise pyarrow's errors."""

    name: str

    def schema(self, path: str) -> Any:
        """Returns the pyarrow schema of a file."""
        ...

    def block_rows(self, path: str) -> list[int]:
        """Returns how many rows each block of a file has."""
        ...

    def read(self, path: str, block: int | None, columns: list[str]) -> Any:
        """Returns a block as a pyarrow table, or the whole file if `block` is None."""
        ...


class Grouping(NamedTuple):
    """Which rows make an example; by default each row is one. `Parquet` describes the fields."""

    group_by: str | None = None
    one_per_file: bool = False
    constant: Sequence[str] = ()


class _Address(NamedTuple):
    """A block, and the number of its first row in its file."""

    path: str
    block: int
    first: int


class Tables(BaseSource):
    """Source of the rows of table files; the base of `Parquet` and `Arrow`, which describe the arguments."""

    def __init__(
        self,
        paths: Sequence[str],
        file_format: TableFormat,
        grouping: Grouping,
        *,
        columns: Sequence[str] | Mapping[str, Any] | None = None,
        decode: Mapping[str, str | Decoder] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.paths, self.file_states, self._format = list(paths), FileStates(paths), file_format
        self._fill = fill_by_name(columns) if isinstance(columns, Mapping) else {}
        group_by, one_per_file, constant = self._group_by, self._one_per_file, _ = grouping
        self._decode = {name: find_decoder(one, f"decode.{name}") for name, one in (decode or {}).items()}
        self._cache = BlockCache(cache_bytes, self._read_block)
        grouped = one_per_file or group_by is not None
        if one_per_file and group_by is not None:
            raise DataError("group_by and one_per_file exclude each other. Leave one of them out.")
        if constant and not grouped:
            raise DataError("constant needs examples of several rows. Give group_by or one_per_file as well.")
        self._schema = self._first_schema()
        self.columns = list(self._schema.names if columns is None else columns)
        """Names of the columns that an example holds."""
        self._single = {*constant, *([] if group_by is None else [group_by])}  # columns with one value per example
        by_group = [] if group_by is None else [group_by]
        self._check_columns(
            {"columns": self.columns, "group_by": by_group, "constant": constant, "decode": self._decode}
        )
        check_fill(self._fill, {name: self._schema.field(name).type for name in self.columns})
        self._addresses: list[_Address] = []
        self._begins = np.zeros(1, np.int64)  # index of the first row of each block, and the number of rows
        self._first_rows = [0]  # the same numbers as a list
        self._groups = np.zeros(1, np.int64)  # index of the first row of each example, and the number of rows
        if not one_per_file:
            self._index_blocks()
        if group_by is not None:
            self._groups = self._index_groups(group_by)
        if grouped:
            self.lengths = self._lengths

    def __len__(self) -> int:
        if self._one_per_file:
            return len(self.paths)
        return self._first_rows[-1] if self._group_by is None else len(self._groups) - 1

    def __getitem__(self, index: int) -> Example:
        """Returns one example by column, as new arrays and text."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not below {len(self)}, the number of examples")
        if self._one_per_file:
            path = self.paths[index]
            return self._example(lambda: shown(path), lambda: self._join_rows([self._file(path)]))
        if self._group_by is None:
            block, row = self._locate_row(index)
            return self._example(lambda: self._row_name(index), lambda: self._row(self._block(block), row))
        start, stop = self._groups[index : index + 2].tolist()
        return self._example(
            lambda: f"{self._row_name(start)} and the {stop - start - 1} rows after it",
            lambda: self._join_rows([(self._block(n), a, b) for n, a, b in self._parts(start, stop)]),
        )

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the examples at `indices` `[batch]` as arrays `[batch, ...]`; each block is decoded once."""
        order = np.argsort(indices, kind="stable")
        if self._group_by is None and not self._one_per_file and not self._decode:
            blocks, rows = self._locate(indices[order])
            try:
                return self._take_from_blocks(blocks, rows, np.argsort(order))
            except DataError:  # the loop below names the example
                pass
        examples: list[Example] = [None] * len(indices)
        for position in order.tolist():
            examples[position] = self[int(indices[position])]
        return jax.tree.map(stack_leaves, *examples)

    def fingerprint(self) -> str:
        """Returns the names, sizes and hashed samples of the first files, a hash of the names of all, and the columns.

        Folders and modification times are left out, since a copy of the files has the same content.
        """
        names = digest(file_names(self.paths))
        how = f"grouped by {self._group_by}" if self._group_by is not None else "one example per row"
        how = "one example per file" if self._one_per_file else how
        decoders = [f"{name} by {decoder_name(decoder)}" for name, decoder in self._decode.items()]
        fill = [f"null {name} is {value!r}" for name, value in self._fill.items()]
        parts = [f"names {names}", f"columns {', '.join(self.columns)}", f"{len(self)} {how}", *decoders, *fill]
        return SEPARATOR.join([*sampled_files(self.paths), *(part.replace(SEPARATOR, " ") for part in parts)])

    def _lengths(self) -> np.ndarray:
        """Returns the number of rows of each example, int64 `[examples]`; 0 for a file that cannot be read."""
        if not self._one_per_file:
            return np.diff(self._groups)

        def rows(path: str) -> int:
            try:
                return sum(self._open(path, self._format.block_rows))
            except DataError:  # training reports the file when it reads it
                return 0

        with ThreadPoolExecutor(OPENERS) as threads:
            return np.fromiter(threads.map(rows, self.paths), np.int64, len(self.paths))

    def _example(self, where: Callable[[], str], read: Callable[[], dict[str, Example]]) -> Example:
        """Returns an example, decoded. Raises DataError, which names the example."""
        try:
            example = read()
        except DataError as error:
            raise DataError(f"{where()}: {error}") from error
        for name, decoder in self._decode.items():
            example[name] = decode(decoder, example[name], lambda name=name: f"{where()}: column {name}")
        return example

    def _row(self, block: Block, row: int) -> dict[str, Example]:
        return {name: column.row(row) for name, column in block.items()}

    def _join_rows(self, parts: Sequence[tuple[Block, int, int]]) -> dict[str, Example]:
        """Returns the rows of parts of blocks, each (block, start, stop), as arrays `[rows, ...]` by column."""
        example = {}
        for name in self.columns:
            try:
                rows = [block[name].rows(start, stop) for block, start, stop in parts]
                joined = rows[0] if len(rows) == 1 else _concatenated(rows, name)
            except RaggedError:
                joined = [block[name].row(index) for block, start, stop in parts for index in range(start, stop)]
            example[name] = _only_value(joined, name) if name in self._single else joined
        return example

    def _take_from_blocks(self, blocks: np.ndarray, rows: np.ndarray, order: np.ndarray) -> Examples:
        """Returns rows of blocks, which are sorted, in another order."""
        numbers, firsts = np.unique(blocks, return_index=True)
        parts = []
        for number, chosen in zip(numbers.tolist(), np.split(rows, firsts[1:]), strict=True):
            parts.append({name: column.take(chosen) for name, column in self._block(number).items()})
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[order], *parts)

    def _block(self, number: int) -> Block:
        address = self._addresses[number]
        return self._cache.get(address.path, address.block)

    def _read_block(self, path: str, block: int) -> tuple[Block, int]:
        """Returns a block and its size in bytes: most columns are views of the table, but some are larger copies."""
        table = self._table(path, block)
        columns = self._columns(table)
        return columns, max(table.get_total_buffer_size(), sum(column.nbytes for column in columns.values()))

    def _file(self, path: str) -> tuple[Block, int, int]:
        """Returns all rows of a file as one block, and the first of them and the end."""
        table = self._table(path, None)
        return self._columns(table), 0, table.num_rows

    def _columns(self, table: Any) -> Block:
        return {name: make_column(whole(table.column(name)), name, self._fill) for name in table.column_names}

    def _table(self, path: str, block: int | None) -> Any:
        """Returns the chosen columns of a block, or of a whole file.

        Raises:
            DataError: it cannot be read.
            FileChangedError: the file has changed since the source was made.
        """
        self.file_states.check(path)
        where = "" if block is None else f"block {block}: "
        try:
            table = self._format.read(path, block, self.columns)
            table.validate(full=True)  # pyarrow aborts the process at damaged offsets and text
            _with_valid_names(table.schema)
        except Exception as error:
            raise DataError(f"{where}cannot be read: {error}. Write the file again.") from error
        if missing := [name for name in self.columns if name not in table.column_names]:
            raise DataError(f"{where}no column {', '.join(missing)}. Found: {', '.join(table.column_names)}.")
        return table.select(self.columns)

    def _locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the number of the block of each row, and the row in this block."""
        blocks = np.searchsorted(self._begins, indices, side="right") - 1
        return blocks, indices - self._begins[blocks]

    def _locate_row(self, index: int) -> tuple[int, int]:
        """Returns as `_locate` for one row: NumPy takes ten times as long for one number."""
        block = bisect.bisect_right(self._first_rows, index) - 1
        return block, index - self._first_rows[block]

    def _row_name(self, index: int) -> str:
        block, row = self._locate_row(index)
        return f"row {self._addresses[block].first + row} of {shown(self._addresses[block].path)}"

    def _parts(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Returns the parts of blocks that hold rows start, ..., stop - 1: (number of the block, start, stop)."""
        first, last = self._locate(np.array([start, stop - 1]))[0].tolist()
        begins = self._begins[first : last + 2].tolist()
        return [
            (first + n, max(start - begin, 0), min(stop, end) - begin)
            for n, (begin, end) in enumerate(itertools.pairwise(begins))
            if end > begin
        ]

    def _open[T](self, path: str, read: Callable[[str], T]) -> T:
        """Reads the metadata of a file. Raises DataError if it is damaged or of another format."""
        try:
            return read(path)
        except Exception as error:
            raise DataError(
                f"{shown(path)}: not a complete {self._format.name} file: {error}. Write it again."
            ) from error

    def _schema_of(self, path: str) -> Any:
        return _with_valid_names(self._format.schema(path))

    def _first_schema(self) -> Any:
        """Returns the schema of the first file; with one example per file, of the first that can be read."""
        for path in self.paths[: SPEC_TRIES - 1] if self._one_per_file else []:
            with contextlib.suppress(DataError):
                return self._open(path, self._schema_of)
        return self._open(self.paths[0], self._schema_of)

    def _check_columns(self, groups: Mapping[str, Iterable[str]]) -> None:
        """Raises DataError for the name of a column that does not exist, or a column of an unsuitable type."""
        import pyarrow as pa

        names = self._schema.names
        for argument, columns in groups.items():
            allowed = names if argument in ("columns", "group_by") else self.columns
            for name in columns:
                if allowed.count(name) != 1:
                    raise DataError(
                        f"{shown(self.paths[0])}: {argument} names the column {name}, which it has "
                        f"{allowed.count(name)} times.{did_you_mean(name, allowed)} Columns: {', '.join(allowed)}."
                    )
        if self._group_by is not None:
            kind = self._schema.field(self._group_by).type
            stored = kind.value_type if pa.types.is_dictionary(kind) else kind
            if pa.types.is_nested(stored) or isinstance(stored, pa.BaseExtensionType):
                raise DataError(
                    f"{shown(self.paths[0])}: group_by names the column {self._group_by} of type {kind}. Allowed are "
                    "columns of numbers, text or times."
                )
        for name in self.columns:
            try:
                make_column(pa.nulls(0, self._schema.field(name).type), name, self._fill)
            except DataError as error:
                raise DataError(f"{shown(self.paths[0])}: {error}") from error

    def _index_blocks(self) -> None:
        """Reads the number of rows of each block, and compares the columns of the files."""

        def rows(path: str) -> list[int]:
            found, first = self._open(path, self._schema_of), self._schema
            for name in self.columns:
                kind = found.field(name).type if found.names.count(name) == 1 else "missing"
                if kind != first.field(name).type:
                    raise DataError(
                        f"{shown(path)}: column {name} is {kind}, but {first.field(name).type} in "
                        f"{shown(self.paths[0])}. Bring the files to one schema, or leave this column out by `columns`."
                    )
            return self._open(path, self._format.block_rows)

        with ThreadPoolExecutor(OPENERS) as threads:
            counts = list(threads.map(rows, self.paths))
        for path, blocks in zip(self.paths, counts, strict=True):
            firsts = np.cumsum([0, *blocks]).tolist()
            self._addresses += [_Address(path, number, first) for number, first in enumerate(firsts[:-1])]
        self._begins = np.cumsum([0, *(rows for blocks in counts for rows in blocks)], dtype=np.int64)
        self._first_rows = self._begins.tolist()

    def _index_groups(self, name: str) -> np.ndarray:
        """Returns the index of the first row of each group, and the number of rows."""
        import pyarrow.compute as pc

        def runs(address: _Address) -> tuple[np.ndarray, list[Any]]:
            array = plain(whole(self._format.read(address.path, address.block, [name]).column(name)))
            found = pc.call_function("run_end_encode", [array])
            return found.run_ends.to_numpy(), found.values.to_pylist()

        firsts, known, last = [], set(), None
        with ThreadPoolExecutor(OPENERS) as threads:
            found = threads.map(lambda address: self._open(address.path, lambda _: runs(address)), self._addresses)
            for begin, address, (ends, values) in zip(self._begins.tolist(), self._addresses, found, strict=False):
                for value, first in zip(values, [0, *ends.tolist()], strict=False):
                    if firsts and value == last:
                        continue
                    if value in known:
                        raise DataError(
                            f"{shown(address.path)}: the rows with {name} = {value!r} are not consecutive. Sort the "
                            "files by this column."
                        )
                    known.add(value)
                    firsts.append(begin + first)
                    last = value
        return np.array([*firsts, self._begins[-1]], np.int64)


def _with_valid_names(schema: Any) -> Any:
    """Returns a schema. Raises UnicodeDecodeError if the name of a column or of a field in it is no text."""

    def read_names(fields: Iterable[Any]) -> list[Any]:
        return [(field.name, read_names(map(field.type.field, range(field.type.num_fields)))) for field in fields]

    read_names(schema)
    return schema


def _concatenated(parts: Sequence[Examples], name: str) -> Examples:
    """Returns the rows of several blocks as one. Raises DataError if their shapes differ."""
    try:
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    except ValueError as error:
        raise RaggedError(f"column {name} has lists of different lengths, which fit no array.") from error


def _only_value(rows: Examples, name: str) -> Example:
    """Returns the value that all rows have. Raises DataError if there are several, or no rows."""

    def only(array: np.ndarray) -> Any:
        if not len(array):
            raise DataError(f"there are no rows, and so no value of column {name}. Remove the file.")
        if not np.all(array == array[0]):
            raise DataError(f"column {name} differs between the rows of the example. Leave it out of `constant`.")
        return array[0]

    return jax.tree.map(only, rows)
