"""Checks a dataset: reads every example once, in several processes, and reports what training would run into."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from engine.base.errors import DataError
from engine.base.user_errors import describe
from engine.data.collate import stack_examples
from engine.data.context import Context, call
from engine.data.examples import Example
from engine.data.sampling.shuffle import random_generators
from engine.data.source import BaseSource, source_name
from engine.data.stages import recorded, stage
from engine.data.streams.cursor import StreamReadError
from engine.datasets.given import Given, given_source, is_stream_source, sample_indices, with_inner
from engine.datasets.pool import Pool, ReportProgress, as_pool, in_order
from engine.datasets.report import DatasetReport, make_report
from engine.datasets.statistics import BadExample, Statistics, Structure, structure, structure_text
from engine.readers.record_manifest import checksum

REFERENCE = 16  # examples whose structure the others are compared with
MIN_JOB, MAX_JOB, JOBS = 16, 4096, 256  # examples of a job, and about how many jobs there are
BATCH = 32  # examples that are stacked, to measure the collation
NO_NUMBERS = ("object", "datetime", "timedelta", "void")  # beginnings of the names of dtypes; void: structured arrays
SHORT_S = 5.0  # a check that takes one process no longer starts no others


def check_dataset(
    data: Given,
    *,
    processes: int | Pool | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetReport:
    """Reads every example of a dataset once, and returns a report.

    It names the bad examples, and has the shapes, ranges and sizes of the fields, the balance of the classes, values
    that are not finite, constant fields, duplicates, and the throughput of each stage. Files that `convoy data write`
    wrote are compared with their checksums. The report is the same for any number of processes, except the throughput.

    Args:
        data: a source, a stream, or a config section such as {"target": "package.module.Name", "split": "train"}.
        processes: number of processes. None: one per core, or one if that takes a few seconds only, or for a stream,
            of which each process reads all. The source is pickled to them. Or a pool whose workers are elsewhere, such
            as `engine.ray.pool.RayPool`.
        on_progress: called with the number of finished examples and of all examples.

    Raises:
        ConfigError: an argument is invalid.
        DataError: this is not a source, or it is empty, or a stream cannot be read on.
        ProcessError: a process was killed.
    """
    source, _ = given_source(data)
    if not len(source):
        raise DataError(f"{source_name(source)}: no examples. Check its files and arguments.")
    reference, seconds = _reference(source)
    files = checksums(source)
    size = max(MIN_JOB, min(MAX_JOB, len(source) // JOBS))
    jobs: list[Any] = [_File(path, expected) for path, expected in files.items()]
    jobs += [_Range(start, min(start + size, len(source))) for start in range(0, len(source), size)]
    is_short = is_stream_source(source) or seconds * len(source) < SHORT_S
    pool, done = as_pool(processes), 0
    count = pool.count(len(jobs), 1 if is_short else None)

    def report(examples: int) -> None:
        nonlocal done
        done += examples
        on_progress(done, len(source))

    begin = time.perf_counter()
    total, damaged = Statistics(), []
    for result in in_order(pool.run(Checker(source, reference), jobs, count, report)):
        if isinstance(result, Statistics):
            total.merge(result)
        elif result:
            damaged.append(result)
    elapsed = time.perf_counter() - begin
    return make_report(source, total, len(files), damaged, elapsed, count)


def _reference(source: BaseSource) -> tuple[Structure | None, float]:
    """Returns the most frequent structure of some examples, and the seconds that it took to read one of them."""
    found: Counter[Structure] = Counter()
    begin, indices = time.perf_counter(), sample_indices(source, REFERENCE)
    for index in indices:
        try:
            found[structure(source[index])] += 1
        except Exception:  # the check itself reports it
            continue
    reference = found.most_common(1)[0][0] if found else None
    return reference, (time.perf_counter() - begin) / len(indices)


def checksums(source: BaseSource) -> dict[str, str]:
    """Returns path -> the checksum that a file should have, for the files of a source and of those that it reads."""
    found: dict[str, str] = {}
    for one in with_inner(source):
        found |= one.checksums()
    return found


@dataclass(frozen=True)
class _Range:
    """Examples to check: `start` to `stop - 1`."""

    start: int
    stop: int

    def __str__(self) -> str:
        return f"examples {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class _File:
    """A file to compare with its checksum."""

    path: str
    expected: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Checker:
    """Checks ranges of examples, and files (`pool.py` runs it in several processes)."""

    source: BaseSource
    reference: Structure | None

    def __call__(self, job: "_Range | _File", report: ReportProgress) -> Statistics | str:
        """Returns the statistics of a range; of a file, its path if it is damaged, else an empty text."""
        if isinstance(job, _File):
            try:
                return "" if checksum(job.path) == job.expected else job.path
            except OSError:
                return job.path
        found, hashes, batch = Statistics(), [], []
        for index in range(job.start, job.stop):
            try:
                example = self._read(index, found)
                hashes.append((index, found.add(index, example)))
                batch.append(self._transformed(index, example, found))
            except DataError as error:
                found.add_bad(BadExample(index, _file(self.source, index), str(error)))
            if len(batch) == BATCH or index == job.stop - 1:
                _collate(batch, found)
                batch = []
            found.examples += 1
            report(1)
        if hashes:
            found.hashes.append(np.array(hashes, np.uint64))
        return found

    def _read(self, index: int, found: Statistics) -> Example:
        """Returns an example. Raises DataError if it cannot be read or has another structure."""
        computing, begin = time.thread_time(), time.perf_counter()
        try:
            with recorded() as clock:
                example = self.source[index]
        except StreamReadError:  # neither can the examples after it be read
            raise
        except Exception as error:
            raise DataError(_text(error)) from error
        found.waiting += time.perf_counter() - begin - (time.thread_time() - computing)
        found.count_times(clock.times)
        own = structure(example)
        if self.reference is not None and own != self.reference:
            raise DataError(f"It has {structure_text(own)}; other examples have {structure_text(self.reference)}.")
        if strange := [path for path, dtype, _ in own if dtype.startswith(NO_NUMBERS)]:
            raise DataError(f"{strange[0]} holds neither numbers nor text.")
        return example

    def _transformed(self, index: int, example: Example, found: Statistics) -> Example:
        """Returns an example after the transform of the source, if it has one. Raises DataError if that fails."""
        if not self.source.has_transform:
            return example
        row = jax.tree.map(lambda leaf: leaf[0], stack_examples([example], str))
        (rng,) = random_generators(0, np.array([index]))
        try:
            with recorded() as clock, stage("transform"):
                result = call(self.source.transform, row, rng, context=Context(0, 0.0, 0, rng))
        except Exception as error:
            raise DataError(f"Its transform failed: {_text(error)}") from error
        found.count_times(clock.times)
        return result


def _collate(batch: list[Example], found: Statistics) -> None:
    """Measures how long it takes to stack examples; examples of different shapes are not stacked."""
    if not batch:  # all examples since the last batch are bad
        return
    try:
        with recorded() as clock, stage("collate"):
            stack_examples(batch, str)
    except (DataError, ValueError, IndexError):
        return
    found.count_times(clock.times)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, DataError) else describe(error)


def _file(source: BaseSource, index: int) -> str:
    """Returns the file of an example and the record in it, if the source knows them."""
    return source.record_name(index)
