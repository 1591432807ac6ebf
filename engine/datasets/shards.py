"""Writes one shard of a dataset: a range of the examples of a source as an ArrayRecord file, with its lengths."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.base.errors import DataError
from engine.base.user_errors import describe
from engine.data.bad_examples import ALWAYS_ALLOWED, MAX_BAD_FRACTION
from engine.data.examples import Example
from engine.data.source import BaseSource, source_name
from engine.data.streams.cursor import StreamReadError
from engine.datasets.lineage import NameCollector, shard_names
from engine.datasets.output_lock import OutputLock
from engine.datasets.pool import ReportProgress
from engine.readers.array_record import cannot_write, write_records
from engine.readers.record import encode
from engine.readers.record_manifest import BadRecord, Shard, checksum, save_lengths

SHARD_LENGTHS = ".lengths"  # suffix of a shard's own length index, until the dataset is complete


@dataclass(frozen=True)
class ShardJob:
    """A shard to write, or to verify if it is known."""

    path: Path
    start: int
    stop: int
    known: Shard | None = None
    """What the manifest says of a shard that is finished."""

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of a source (`pool.py` runs it in several processes)."""

    source: BaseSource
    on_error: str
    complete: bool = False
    """Whether the dataset was complete, so that its length index replaces those of the shards."""
    lock: OutputLock | None = None
    """The lock of the call, which is checked before a file gets its name."""

    def __call__(self, job: ShardJob, report: ReportProgress) -> tuple[Shard, bool]:
        """Returns the finished shard, and whether it was kept: a known one whose file is as it was written.

        Raises:
            DataError: the file cannot be written; an example cannot be read or written, and `on_error` is stop; or too
                many cannot; or the call does not hold its lock any more.
        """
        self._check_lock()
        if job.known is not None and self._is_intact(job.path, job.known):
            report(job.stop - job.start)
            return job.known, True
        examples = _Examples(self.source, self.on_error, job, report)
        # A random number, not the process id, which is not unique among machines: a worker that is being killed, or
        # that is cut off, may still write to its file.
        unfinished = str(job.path.with_name(f"{job.path.name}.{secrets.randbits(64)}.unfinished"))
        count = write_records(self._while_locked(examples.records()), str(job.path), unfinished)
        try:
            save_lengths(shard_lengths(job.path), examples.lengths())
            examples.names.save(job.path)
        except OSError as error:
            raise cannot_write(job.path, error.strerror or str(error)) from error
        size = os.path.getsize(job.path)
        return Shard(job.path.name, job.start, job.stop, count, size, checksum(job.path), examples.bad), False

    def _check_lock(self) -> None:
        if self.lock is not None:
            self.lock.check()

    def _while_locked(self, records: Iterator[bytes]) -> Iterator[bytes]:
        """Yields the records, and checks the lock before the end, after which the file gets its name."""
        yield from records
        self._check_lock()

    def _is_intact(self, path: Path, known: Shard) -> bool:
        with contextlib.suppress(OSError):
            own = shard_lengths(path).exists() and shard_names(path).exists()
            return (self.complete or own) and checksum(path) == known.checksum
        return False


def shard_lengths(path: Path) -> Path:
    """Returns the path of the length index of one shard."""
    return path.with_name(path.name + SHARD_LENGTHS)


class _Examples:
    """Encodes the examples of a shard, and collects the bad ones and the lengths of the others."""

    def __init__(self, source: BaseSource, on_error: str, job: ShardJob, report: ReportProgress):
        self._source, self._on_error, self._job, self._report = source, on_error, job, report
        self._lengths: dict[str, list[int]] = {}
        self._count = 0
        self.names = NameCollector()
        self.bad: tuple[BadRecord, ...] = ()

    def records(self) -> Iterator[bytes]:
        for index in range(self._job.start, self._job.stop):
            try:
                example = self._source[index]
                record = encode(example, f"example {index} of {source_name(self._source)}")
            except StreamReadError:  # neither can the examples after it be read
                raise
            except Exception as error:
                self._skip(index, error)
            else:
                self._measure(example)
                self.names.add(example)
                yield record
            self._report(1)

    def _skip(self, index: int, error: Exception) -> None:
        where = f"Example {index} of {source_name(self._source)}"
        text = str(error) if isinstance(error, DataError) else describe(error)
        if self._on_error == "stop":
            raise DataError(
                f"{where}: {text} Repair it, or leave such examples out with data.on_error=skip."
            ) from error
        self.bad += (BadRecord(index, text),)
        if len(self.bad) > max(ALWAYS_ALLOWED, MAX_BAD_FRACTION * (self._job.stop - self._job.start)):
            raise DataError(
                f"{where}: {text} {len(self.bad)} of the examples {self._job.start} to {index} are bad, and "
                f"data.on_error=skip allows {MAX_BAD_FRACTION:.0%} of a shard. Repair the data; `convoy data check` "
                "lists every bad example."
            ) from error

    def _measure(self, example: Example) -> None:
        """Adds the first dimension of each array field; -1 for a field that an example lacks."""
        found = example if type(example) is dict else {}
        for name, value in found.items():
            if isinstance(value, np.ndarray) and value.ndim:
                lengths = self._lengths.setdefault(name, [])
                lengths += [-1] * (self._count - len(lengths))
                lengths.append(len(value))
        self._count += 1

    def lengths(self) -> dict[str, np.ndarray]:
        """Returns the first dimension of each array field, int32 `[examples]`."""
        padded = {name: lengths + [-1] * (self._count - len(lengths)) for name, lengths in self._lengths.items()}
        return {name: np.array(lengths, np.int32) for name, lengths in padded.items()}


def check_readable(source: BaseSource, on_error: str) -> None:
    """Raises DataError if the first example cannot be read or written; with "skip", if too many of the first cannot."""
    examples = _Examples(source, on_error, ShardJob(Path(), 0, len(source)), lambda count: None)
    if next(examples.records(), None) is None:
        raise all_bad(source, examples.bad[0].error)


def all_bad(source: BaseSource, first: str) -> DataError:
    """Returns the error for a source of which no example can be read or written.

    Args:
        source: the source.
        first: error text of its first example.
    """
    return DataError(f"{source_name(source)}: every example is bad. The first: {first}")


def merge_lengths(parts: Sequence[Mapping[str, np.ndarray]], counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the lengths of all examples of a dataset: those of its shards, one after the other.

    Args:
        parts: name -> lengths `[examples]`, for each shard.
        counts: number of examples of each shard.
    """
    names = sorted({name for part in parts for name in part})
    return {
        name: np.concatenate([part.get(name, np.full(n, -1, np.int32)) for part, n in zip(parts, counts, strict=True)])
        for name in names
    }
