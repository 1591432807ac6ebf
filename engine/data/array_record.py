"""ArrayRecord files: examples on disk with random access.

Owns: reading such files as a source, and writing any source to one. Does not own: how an example becomes bytes
(`record.py`).
"""

import contextlib
import glob
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from engine.config.errors import DataError
from engine.data.record import decode, encode
from engine.data.source import PART, SAMPLED, Example, Examples, Source, name_of, spread
from engine.mounts import local_path

NAMED = 32  # files that a fingerprint names and samples
WINDOWS, WINDOW = 16, 4096  # of a file that are read for that, and bytes of each
# One record a group: random access reads no neighbours. Photographs and points hardly shrink, so speed comes first.
WRITER_OPTIONS = "group_size:1,zstd:1"


class ArrayRecordSource:
    """The records of one or several files written with `write_array_record`.

    Their order is that of the paths in a list, and of the names where a path has wildcards.
    """

    def __init__(self, pattern: str | Sequence[str]):
        """Opens the files that match a path, which may hold the wildcards of a shell, or each of several paths.

        Paths may be addresses in a bucket (`engine/mounts.py`).

        Raises:
            DataError: no file matches, or one of them is no ArrayRecord file.
            RunError: a bucket cannot be mounted.
        """
        self.paths: list[str] = []
        for one in [pattern] if isinstance(pattern, str) else pattern:
            found = sorted(glob.glob(os.path.expanduser(local_path(one))))
            if not found:
                raise DataError(f"{one}: no such file. Write it with `convoy data write`, or mend the pattern.")
            self.paths += found
        if not self.paths:
            raise DataError("an empty list of paths: no file. Name at least one.")
        try:
            self._records: Any = grain.sources.ArrayRecordDataSource(self.paths)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{pattern}: no ArrayRecord file: {error}. Write it with `convoy data write`.") from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Returns one example; its arrays may be written to."""
        try:
            record = self._records[index]
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError(f"{self._called(index)}: {error}. Write the file again.") from error
        return jax.tree.map(np.copy, self._decode(index, record))

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the examples at `indices` `[batch]`, stacked; the files are read in parallel."""
        numbers = indices.tolist()
        examples = [self._decode(*pair) for pair in zip(numbers, self._records.__getitems__(numbers), strict=True)]
        return jax.tree.map(lambda *rows: np.stack(rows), *examples)

    def fingerprint(self) -> str:
        """Names, sizes and samples of the files in their order, and a hash of some of the records.

        Their folders and times say nothing about the content. Of many files the first ones are named and sampled.
        """
        files = [f"{os.path.basename(path)} {os.path.getsize(path)} bytes" for path in self.paths]
        samples = [f"{name} {_sample(path)}" for name, path in zip(files[:NAMED], self.paths, strict=False)]
        records = hashlib.blake2b(PART.join(files).encode(), digest_size=16)
        for index in spread(len(self), SAMPLED):
            try:
                records.update(self._records[index])
            except (ValueError, RuntimeError, IndexError):  # told when it is needed
                records.update(b"cannot be read")
        more = [f"{len(files) - NAMED} more files"] if len(files) > NAMED else []
        return PART.join([*samples, *more, f"records {records.hexdigest()}"])

    def _decode(self, index: int, record: bytes) -> Example:
        try:
            return decode(record)
        except DataError as error:
            raise DataError(f"{self._called(index)}: {error}") from error

    def _called(self, index: int) -> str:
        """The record in its own file, for errors."""
        first = 0
        for path in self.paths:
            records: Any = grain.sources.ArrayRecordDataSource([path])
            count = len(records)
            if index < first + count:
                return f"record {index - first} of {path}"
            first += count
        return f"record {index} of {', '.join(self.paths[:3])}"


def _sample(path: str) -> str:
    """A hash of some windows of a file, from its first to its last bytes."""
    found, last = hashlib.blake2b(digest_size=6), max(0, os.path.getsize(path) - WINDOW)
    with open(path, "rb") as file:
        for start in spread(last + 1, WINDOWS):
            file.seek(start)
            found.update(file.read(WINDOW))
    return found.hexdigest()


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
    path = str(local_path(path))
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
