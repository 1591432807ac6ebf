"""ArrayRecord files: examples on disk with random access.

Owns: reading such files as a source, and writing any source to one. Does not own: how an example becomes bytes
(`record.py`).
"""

import contextlib
import glob
import hashlib
import os
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from engine.config.errors import DataError
from engine.data.record import decode, encode
from engine.data.source import Batch, Example, Source, name_of

# One record a group: random access reads no neighbours. Photographs and points hardly shrink, so speed comes first.
WRITER_OPTIONS = "group_size:1,zstd:1"


class ArrayRecordSource:
    """The records of one or several files written with `write_array_record`, in the order of their names."""

    def __init__(self, pattern: str):
        """Opens the files that match a path, which may hold the wildcards of a shell.

        Raises:
            DataError: no file matches, or one of them is no ArrayRecord file.
        """
        self.paths = sorted(glob.glob(os.path.expanduser(pattern)))
        if not self.paths:
            raise DataError(f"{pattern}: no such file. Write it with `convoy data write`, or mend the pattern.")
        try:
            self._records: Any = grain.sources.ArrayRecordDataSource(self.paths)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{pattern}: no ArrayRecord file: {error}. Write it with `convoy data write`.") from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Returns one example; its arrays may be written to."""
        return jax.tree.map(np.copy, self._decode(index, self._records[index]))

    def take(self, indices: np.ndarray) -> Batch:
        """Returns the examples at `indices` `[batch]`, stacked; the files are read in parallel."""
        numbers = indices.tolist()
        examples = [self._decode(*pair) for pair in zip(numbers, self._records.__getitems__(numbers), strict=True)]
        return jax.tree.map(lambda *rows: np.stack(rows), *examples)

    def fingerprint(self) -> str:
        """Hashes the names and sizes of the files, and a few of the records."""
        found = hashlib.blake2b(digest_size=16)
        for path in self.paths:
            found.update(f"{os.path.basename(path)} {os.path.getsize(path)}\n".encode())
        for index in np.unique(np.linspace(0, len(self) - 1, 16).astype(np.int64)).tolist() if len(self) else []:
            found.update(self._records[index])
        return found.hexdigest()

    def _decode(self, index: int, record: bytes) -> Example:
        try:
            return decode(record)
        except DataError as error:
            raise DataError(f"record {index} of {', '.join(self.paths[:3])}: {error}") from error


def write_array_record(source: Source, path: str, progress: Callable[[int, int], None] | None = None) -> int:
    """Writes every example of a source to one file and returns their number.

    The file appears under its name only when it is whole.

    Args:
        source: examples that are dicts, lists and tuples of arrays and numbers.
        path: of the file, by custom `name.arrayrecord`; an older file there is replaced.
        progress: called with (written, all) after each example.

    Raises:
        DataError: an example cannot be written, or the folder cannot.
    """
    unfinished = f"{path}.unfinished"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(unfinished, "wb"):
            pass
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}. Choose another path.") from error
    writer = array_record_module.ArrayRecordWriter(unfinished, WRITER_OPTIONS)
    try:
        for index in range(len(source)):
            writer.write(encode(source[index], f"example {index} of {name_of(source)}"))
            if progress is not None:
                progress(index + 1, len(source))
        writer.close()
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        os.unlink(unfinished)
        raise
    os.replace(unfinished, path)
    return len(source)
