"""The reader: batches made ahead, in order, by Grain's threads or worker processes.

Owns: the Grain pipeline over batch numbers. Does not own: what is in a batch (`batches.py`), the worker processes
(`workers.py`), or the position of a run, which is the number of its next batch and needs no state of Grain's.

A whole batch is one Grain element, so that Grain's own cost per element (25 us, and a wait of up to 200 us while a
thread holds Python's lock) is paid once a batch. Where a batch costs less than that, an element is a *block* of them.
"""

from collections import deque
from typing import Protocol

import grain

from engine.config.errors import DataError
from engine.data.source import Batch
from engine.data.workers import Workers


class Numbered(Protocol):
    """Batches by number; those that are read several at once have `block(first, count) -> list of batches`, too."""

    def __getitem__(self, n: int, /) -> Batch: ...


class Reader(Protocol):
    """Batches one after the other; `close` ends its threads and processes."""

    def __iter__(self) -> "Reader": ...

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


def read(
    batches: Numbered, start: int, stop: int, *, threads: int, workers: int, prefetch: int, at_once: int = 1
) -> Reader:
    """Returns batches start, ..., stop - 1; making them begins at once.

    Args:
        batches: pickled to the workers, where there are any.
        start: number of the first batch.
        stop: number after the last batch.
        threads: that make batches; 0 makes each when it is asked for.
        workers: processes that make batches, in place of threads.
        prefetch: batches that are made ahead, at least one for each thread or worker.
        at_once: batches that a thread reads in one go.

    After `close`, a thread ends as soon as the batch that it is making is done.
    """
    dataset = grain.MapDataset.range(start, max(start, stop)).map(batches.__getitem__)
    if workers:
        return Workers(dataset, workers, max(1, prefetch // workers))
    if threads and at_once > 1:
        return _Blocks(batches, start, stop, threads, prefetch, at_once)
    return _threads(dataset, threads, prefetch)


def _threads(dataset: grain.MapDataset, threads: int, prefetch: int) -> Reader:
    """The elements of a dataset, made by threads which begin at once."""
    ahead = max(prefetch, threads) if threads else 0
    reader = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))
    reader.start_prefetch()
    return reader


class _Blocks:
    """A reader of several batches at a time."""

    def __init__(self, batches: Numbered, start: int, stop: int, threads: int, prefetch: int, at_once: int):
        self._batches, self._stop, self._at_once = batches, stop, at_once
        self._block: deque[Batch | DataError] = deque()
        dataset = grain.MapDataset.range(start, max(start, stop), at_once).map(self._read)
        self._reader = _threads(dataset, threads, -(-prefetch // at_once))

    def _read(self, first: int) -> list[Batch | DataError]:
        """The batches of a block; an error stands in the place of the batch that has it."""
        count = min(self._at_once, self._stop - int(first))
        try:
            return self._batches.block(int(first), count)  # pyright: ignore[reportAttributeAccessIssue]
        except DataError:
            return [self._read_one(n) for n in range(int(first), int(first) + count)]

    def _read_one(self, n: int) -> Batch | DataError:
        try:
            return self._batches[n]
        except DataError as error:
            return error

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> Batch:
        if not self._block:
            self._block.extend(next(self._reader))
        batch = self._block.popleft()
        if isinstance(batch, DataError):
            raise batch
        return batch

    def close(self) -> None:
        self._reader.close()
