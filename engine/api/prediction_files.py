"""Writes predictions to a file, `.npz` (NumPy) or `.parquet` (with pyarrow), while they are computed.

The file appears under its name only once it is complete. Memory holds one batch, and for parquet one row group: the
columns of an npz file are first written to temporary files in the same folder.
"""

import abc
import contextlib
import errno
import importlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np

from engine.api.predictions import Columns
from engine.base.errors import ConfigError, DataError
from engine.base.files import temporary_path
from engine.data.text import is_text

ROW_GROUP_BYTES = 32 << 20  # bytes of a row group in a parquet file; a reader reads whole groups
BLOCK = 1 << 16  # rows of text that are converted at once


class PredictionFile(abc.ABC):
    """A file that is written. A context manager: an exit with an error leaves no file under its name."""

    def __init__(self, path: Path):
        self._path = path
        self._stack = contextlib.ExitStack()
        """Closes and removes the temporary files."""

    @abc.abstractmethod
    def add(self, columns: Columns) -> None:
        """Appends the rows of a batch."""

    @abc.abstractmethod
    def _complete(self) -> None:
        """Writes what is left, and gives the file its name. May raise OSError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                try:
                    self._complete()
                except OSError as failed:
                    raise write_error(self._path, failed) from failed


def open_prediction_file(path: Path, overwrite: bool) -> PredictionFile:
    """Returns the file to write, after `check_prediction_file`. Raises DataError if the folder cannot be written to."""
    check_prediction_file(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _Parquet(path) if path.suffix == ".parquet" else _Npz(path)
    except OSError as error:
        raise write_error(path, error) from error


def check_prediction_file(path: Path, overwrite: bool) -> None:
    """Raises ConfigError for an unknown format, a missing library, or an existing file without `overwrite`."""
    if path.suffix not in (".npz", ".parquet"):
        raise ConfigError(
            f"{path}: the format {path.suffix or 'without a suffix'} is unknown. Allowed: .npz, .parquet."
        )
    check_path(path, overwrite)
    if path.suffix == ".parquet":
        _pyarrow()


def check_path(path: Path, overwrite: bool) -> None:
    """Raises ConfigError for a folder, or an existing file without `overwrite`."""
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError(f"{path}: exists already. Choose another name, or add --overwrite (overwrite=True).")


def _pyarrow() -> Any:
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        from engine.base.extras import install_command

        command = install_command("parquet")
        raise ConfigError(f"parquet files need pyarrow, which is not installed: {command}, or write .npz.") from error


def write_error(path: Path, error: OSError) -> DataError:
    """Returns the error of a file that cannot be written."""
    advice = "Free space there, or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Choose"
    return DataError(f"{path}: cannot be written ({error.strerror or error}). {advice} another path.")


class _Npz(PredictionFile):
    """An npz file: one array per column. Text becomes fixed-width text, and arrays of text JSON, bytes as Latin-1."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._folder = temporary_path(path)
        self._folder.mkdir()
        self._stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self._columns: dict[str, _Column] = {}

    def add(self, columns: Columns) -> None:
        try:
            for name, rows in columns.items():
                if name not in self._columns:
                    file = open(self._folder / f"{len(self._columns)}.spool", "w+b")  # noqa: SIM115
                    spool = self._stack.enter_context(file)
                    kind = _Text if rows.dtype == object else _Numbers
                    self._columns[name] = kind(spool, f"{self._path}: {name}")
                self._columns[name].add(rows)
        except OSError as error:
            raise write_error(self._path, error) from error

    def _complete(self) -> None:
        unfinished = self._folder / self._path.name
        with open(unfinished, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, column in self._columns.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        column.write(entry)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self._path)


class _Column(Protocol):
    """A column of an npz file in a temporary file."""

    def add(self, rows: np.ndarray) -> None: ...

    def write(self, entry: Any) -> None:
        """Writes the whole column in NumPy's format."""
        ...


class _Numbers:
    """A column of numbers: its temporary file holds the values of the array."""

    def __init__(self, spool: BinaryIO, where: str):
        self._spool, self._rows = spool, 0

    def add(self, rows: np.ndarray) -> None:
        self._spool.write(np.ascontiguousarray(rows).tobytes())
        self._rows += len(rows)
        self._shape, self._dtype = rows.shape[1:], rows.dtype

    def write(self, entry: Any) -> None:
        _header(entry, self._dtype, (self._rows, *self._shape))
        self._spool.seek(0)
        shutil.copyfileobj(self._spool, entry)


class _Text:
    """A column of text: its temporary file holds one JSON line per row; bytes are Latin-1 there."""

    def __init__(self, spool: BinaryIO, where: str):
        self._spool, self._where, self._rows, self._width, self._bytes = spool, where, 0, 1, False

    def add(self, rows: np.ndarray) -> None:
        for value in rows:
            if isinstance(value, bytes):
                if value.endswith(b"\0"):
                    raise DataError(f"{self._where} ends with a zero byte, which NumPy drops. Write .parquet instead.")
                self._bytes, value = True, value.decode("latin-1")
            elif is_text(value) and not isinstance(value, str):
                value = json.dumps(value.tolist(), default=lambda item: item.decode("latin-1"))
            self._width = max(self._width, len(value))
            self._spool.write(f"{json.dumps(value)}\n".encode())
        self._rows += len(rows)

    def write(self, entry: Any) -> None:
        dtype = np.dtype(f"{'S' if self._bytes else 'U'}{self._width}")
        _header(entry, dtype, (self._rows,))
        self._spool.seek(0)
        for block in self._blocks():
            values = [text.encode("latin-1") for text in block] if self._bytes else block
            entry.write(np.array(values, dtype).tobytes())

    def _blocks(self) -> Iterator[list[str]]:
        block: list[str] = []
        for line in self._spool:
            block.append(json.loads(line))
            if len(block) == BLOCK:
                yield block
                block = []
        if block:
            yield block


def _header(entry: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(entry, header)


class _Parquet(PredictionFile):
    """A parquet file: one column per name; rows of arrays are nested lists of fixed size."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._unfinished = temporary_path(path)
        self._pa = _pyarrow()
        self._writer: Any = None
        self._waiting: list[Any] = []
        self._stack.callback(self._unfinished.unlink, missing_ok=True)
        self._file = self._stack.enter_context(open(self._unfinished, "wb"))  # noqa: SIM115

    def add(self, columns: Columns) -> None:
        if not len(next(iter(columns.values()))):  # a batch of which every example was skipped: text has no type
            return
        arrays = {name: self._array(name, rows) for name, rows in columns.items()}
        self._waiting.append(self._pa.table(arrays))
        if sum(table.nbytes for table in self._waiting) >= ROW_GROUP_BYTES:
            self._flush()

    def _array(self, name: str, rows: np.ndarray) -> Any:
        pa = self._pa
        if rows.dtype == object:
            values = [value.tolist() if isinstance(value, np.ndarray) else value for value in rows]
            return pa.array(values, self._text_type(rows[0]))
        try:
            array = pa.array(np.ascontiguousarray(rows).reshape(-1))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise DataError(
                f"{self._path}: {name} has dtype {rows.dtype}, which parquet cannot hold. Write .npz instead."
            ) from error
        for size in reversed(rows.shape[1:]):
            array = pa.FixedSizeListArray.from_arrays(array, size)
        return array

    def _text_type(self, value: Any) -> Any:
        """Returns the type of a column of text; pyarrow cannot infer it from arrays that are empty."""
        pa = self._pa
        array = np.asarray(value)
        is_bytes = array.dtype.kind == "S" or any(isinstance(item, bytes) for item in array.flat)
        found = pa.binary() if is_bytes else pa.string()
        for _ in array.shape:
            found = pa.list_(found)
        return found

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = self._pa.concat_tables(self._waiting)
        self._waiting = []
        try:
            if self._writer is None:
                self._writer = self._pa.parquet.ParquetWriter(self._file, table.schema)
            self._writer.write_table(table)
        except OSError as error:
            raise write_error(self._path, error) from error

    def _complete(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._unfinished, self._path)
