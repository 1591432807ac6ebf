"""Reads ArrayRecord files as a source with random access, and writes any source to such a file.

`record.py` defines how one example is encoded as bytes.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from engine.config.errors import DataError
from engine.data.files import file_names, find_files, sampled_files
from engine.data.record import decode, encode
from engine.data.source import FINGERPRINT_EXAMPLES, SEPARATOR, Example, Examples, Source, evenly_spaced, source_name
from engine.data.stages import stage
from engine.data.text import stack_leaves
from engine.mounts import local_path

# One record per group, so that random access reads no neighbouring records. Photographs and point clouds hardly
# compress, so the compression level favours speed.
WRITER_OPTIONS = "group_size:1,zstd:1"


class ArrayRecordSource:
    """Source of the records in one or more files written by `write_array_record`.

    The files follow each other in the order of the list of paths. Files that match one wildcard are sorted by name. The
    leading folders of a path, or the whole path, are taken literally as far as they exist as written: in
    `lr=[0.1]/*.arrayrecord`, only `*` is a wildcard if there is a folder `lr=[0.1]`.
    """

    def __init__(self, pattern: str | Sequence[str]):
        """Opens the files that match one path or each of several paths.

        Args:
            pattern: path or list of paths; shell wildcards and bucket addresses (`engine/mounts.py`) are allowed.

        Raises:
            DataError: no file matches, or a file is not an ArrayRecord file.
            RunError: a bucket cannot be mounted.
        """
        advice = "Write it with `convoy data write`, or correct the pattern."
        self.paths = list(map(_check_name, find_files(pattern, "ArrayRecord", advice)))
        try:
            self._records: Any = grain.sources.ArrayRecordDataSource(self.paths)
        except (RuntimeError, ValueError) as error:
            raise DataError(
                f"{pattern}: not an ArrayRecord file: {error}. Write it with `convoy data write`."
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Returns one example as new arrays, which the caller may modify."""
        try:
            record = self._records[index]
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError(f"{self._record_name(index)}: {error}. Write the file again.") from error
        with stage("decode"):
            return jax.tree.map(
                lambda leaf: leaf if isinstance(leaf, str | bytes) else np.copy(leaf), self._decode(index, record)
            )

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the examples at `indices` `[batch]` as arrays `[batch, ...]`; the records are read in parallel."""
        numbers = indices.tolist()
        records = self._records.__getitems__(numbers)
        with stage("decode"):
            examples = [self._decode(*pair) for pair in zip(numbers, records, strict=True)]
        with stage("collate"):
            return jax.tree.map(stack_leaves, *examples)

    def fingerprint(self) -> str:
        """Returns the names, sizes and hashed samples of the first files, and a hash of some of the records.

        Folders and modification times are left out, since a copy of the files has the same content.
        """
        records = hashlib.blake2b(SEPARATOR.join(file_names(self.paths)).encode(), digest_size=16)
        for index in evenly_spaced(len(self), FINGERPRINT_EXAMPLES):
            try:
                records.update(self._records[index])
            except (ValueError, RuntimeError, IndexError):  # training reports the error when it reads this record
                records.update(b"cannot be read")
        return SEPARATOR.join([*sampled_files(self.paths), f"records {records.hexdigest()}"])

    def _decode(self, index: int, record: bytes) -> Example:
        try:
            return decode(record)
        except DataError as error:
            raise DataError(f"{self._record_name(index)}: {error}") from error

    def _record_name(self, index: int) -> str:
        """Returns the file of a record and its index in that file, for error texts."""
        first = 0
        for path in self.paths:
            records: Any = grain.sources.ArrayRecordDataSource([path])
            count = len(records)
            if index < first + count:
                return f"record {index - first} of {path}"
            first += count
        return f"record {index} of {', '.join(self.paths[:3])}"


def _check_name(path: str) -> str:
    """Returns the path of a file.

    Raises:
        DataError: the ArrayRecord library cannot open it.
    """
    is_text = os.fsencode(path).decode(errors="ignore") == path
    if not is_text or re.search(r"\[\d+:\d+\]$", path):
        raise DataError(
            f"{path!r}: an ArrayRecord file must have a path in UTF-8 that does not end like [0:9], which the library "
            "reads as a range of records. Rename it."
        )
    return path


def write_array_record(source: Source, path: str, progress: Callable[[int, int], None] | None = None) -> int:
    """Writes every example of a source to one file and returns their number.

    The file appears under its name only once it is complete.

    Args:
        source: source whose examples are dicts, lists and tuples of arrays, numbers and text.
        path: path of the file, usually `name.arrayrecord`; an existing file is replaced.
        progress: called with (examples written, examples in total) after each example.

    Raises:
        DataError: an example cannot be encoded, or the folder cannot be written to.
    """
    path = _check_name(str(local_path(path)))
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
            writer.write(encode(source[index], f"example {index} of {source_name(source)}"))
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
