"""Reads ArrayRecord files as a source with random access, and writes any source to such a file.

`record.py` defines how one example is encoded as bytes. `engine/datasets/` writes a source to many files.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from engine.base.errors import DataError
from engine.base.files import temporary_path
from engine.data.examples import FINGERPRINT_EXAMPLES, Example, Examples, evenly_spaced
from engine.data.file_states import FileStates
from engine.data.source import SEPARATOR, BaseSource, Source, source_name
from engine.data.source_adapter import indexed
from engine.data.stages import stage
from engine.data.text import stack_leaves
from engine.readers.files import Pattern, file_names, find_files, patterns, sampled_files
from engine.readers.record import decode, encode
from engine.readers.record_manifest import (
    SIDECARS,
    finished_shards,
    known_shards,
    lengths_path,
    load_lengths,
    read_manifest,
)
from engine.storage.mounts import local_path
from engine.storage.object_store import is_selected

# One record per group, so that random access reads no neighbouring records. Photographs and point clouds hardly
# compress, so the compression level favours speed.
WRITER_OPTIONS = "group_size:1,zstd:1"


class ArrayRecordSource(BaseSource):
    """Source of the records in one or more files written by `convoy data write`.

    The files follow each other in the order of the list of paths. Files that match one wildcard are sorted by name. The
    leading folders of a path, or the whole path, are taken literally as far as they exist as written: in
    `lr=[0.1]/*.arrayrecord`, only `*` is a wildcard if there is a folder `lr=[0.1]`.
    """

    new_arrays = True

    def __init__(self, pattern: Pattern):
        """Opens the files that match one path or each of several paths.

        Args:
            pattern: path or list of paths; shell wildcards and bucket addresses (`storage/mounts.py`) are allowed. The
                `--out` of `convoy data write` stands for all files that it wrote.

        Raises:
            DataError: no file matches, a file is not an ArrayRecord file, or its dataset is not complete.
            RunError: a bucket cannot be mounted.
        """
        advice = "Write it with `convoy data write`, or correct the pattern."
        paths = [path for one in patterns(pattern) for path in _shard_paths(one)]
        found = [path for path in find_files(paths, "ArrayRecord", advice) if not path.endswith(SIDECARS)]
        self.paths = list(map(check_name, found))
        self.file_states = FileStates(self.paths)
        self._shards = known_shards(self.paths)
        self._starts: list[int] | None = None
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
            raise DataError(f"{self.record_name(index)}: {error}. Write the file again.") from error
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
            except (ValueError, RuntimeError, IndexError, OSError):  # training reports it when it reads this record
                records.update(b"cannot be read")
        return SEPARATOR.join([*sampled_files(self.paths), f"records {records.hexdigest()}"])

    def _decode(self, index: int, record: bytes) -> Example:
        try:
            return decode(record)
        except DataError as error:
            raise DataError(f"{self.record_name(index)}: {error}") from error

    def locate_record(self, index: int) -> tuple[str, int]:
        """Returns the file of a record and its index in that file."""
        if self._starts is None:
            files: list[Any] = [grain.sources.ArrayRecordDataSource([path]) for path in self.paths]
            self._starts = [0, *np.cumsum([len(records) for records in files]).tolist()]
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.paths[number], index - self._starts[number]

    def record_name(self, index: int) -> str:
        """Returns the file of a record and its index in that file, for error texts."""
        if not 0 <= index < len(self):
            return f"record {index} of {', '.join(self.paths[:3])}"
        path, number = self.locate_record(index)
        return f"record {number} of {path}"

    def field_lengths(self, names: Sequence[str]) -> dict[str, np.ndarray] | None:
        """Returns the first dimension of each of these fields, int32 `[examples]`, from the length index.

        None if the files have no index, or if an example lacks one of the fields.
        """
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        indexes: dict[Path, dict[str, np.ndarray]] = {}
        for path in self.paths:
            if (shard := self._shards.get(path)) is None:
                return None
            if shard.out not in indexes:
                indexes[shard.out] = load_lengths(lengths_path(shard.out), names)
            for name in names:
                lengths = indexes[shard.out].get(name, np.zeros(0, np.int32))[shard.first : shard.first + shard.count]
                if len(lengths) < shard.count or lengths.min(initial=0) < 0:
                    return None
                parts[name].append(lengths)
        return {name: np.concatenate(lengths) for name, lengths in parts.items()}

    def checksums(self) -> dict[str, str]:
        """Returns path -> the checksum of the file when it was written, for the files that have a manifest."""
        return {path: shard.checksum for path, shard in self._shards.items()}


def _shard_paths(path: str) -> list[str]:
    """Returns the paths of the shards if a path is the `--out` of `convoy data write`, else the path itself."""
    if is_selected(path):  # which finds the shards itself
        return [path]
    out = local_path(os.path.expanduser(path))
    if out.exists() or (manifest := read_manifest(out)) is None:
        return [path]
    return [str(out.with_name(shard.file)) for shard in finished_shards(out, manifest)]


def check_name(path: str) -> str:
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
    path = check_name(str(local_path(path)))

    name = source_name(indexed(source, "write_array_record: source"))

    def records() -> Iterable[bytes]:
        for index in range(len(source)):
            yield encode(source[index], f"example {index} of {name}")
            if progress is not None:
                progress(index + 1, len(source))

    for suffix in SIDECARS:  # they describe the file that is replaced
        with contextlib.suppress(OSError):
            Path(path + suffix).unlink()
    return write_records(records(), path, str(temporary_path(Path(path))))


def write_records(records: Iterable[bytes], path: str, unfinished: str) -> int:
    """Writes records to the file `unfinished`, renames it to `path`, and returns their number.

    Raises:
        DataError: the file cannot be written. Errors of the iterator are raised as they are. No file is left.
    """
    count, writer = 0, _open_writer(path, unfinished)
    try:
        for record in records:
            _call_writer(path, writer.write, record)
            count += 1
        _call_writer(path, writer.close)
        _publish(unfinished, path)
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise
    return count


def _open_writer(path: str, unfinished: str) -> Any:
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(unfinished, "wb"):
            pass
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error)) from error
    return array_record_module.ArrayRecordWriter(unfinished, WRITER_OPTIONS)


def _call_writer(path: str, call: Callable[..., Any], *args: bytes) -> None:
    try:
        call(*args)
    except RuntimeError as error:  # such as "write() failed: No space left on device; writing x; at byte 4096"
        raise cannot_write(path, str(error).removeprefix("write() failed: ").partition(";")[0]) from error


def _publish(unfinished: str, path: str) -> None:
    """Renames a complete file. Some file systems report only when it is synced that they are full."""
    try:
        descriptor = os.open(unfinished, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(unfinished, path)
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error)) from error


def cannot_write(path: str | os.PathLike[str], reason: str) -> DataError:
    """Returns the error for an output that cannot be written."""
    return DataError(f"{path}: cannot be written: {reason}. Choose another path, or free space there.")
