"""The reader: batches made ahead, in order, by Grain's threads or worker processes.

Owns: the Grain pipeline over batch numbers. Does not own: what is in a batch (`batches.py`), the worker processes
(`workers.py`), or the position of a run, which is the number of its next batch and needs no state of Grain's.

A *block* is one Grain element: a whole batch, or several where one costs less than Grain does per element (25 us, and
a wait of up to 200 us while a thread holds Python's lock).
"""

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import grain

from engine.config.errors import DataError
from engine.data.source import Batch
from engine.data.workers import Workers


class Numbered(Protocol):
    """Batches by number; those that are read several at once have `block(first, count) -> list of batches`, too."""

    def __getitem__(self, n: int, /) -> Batch: ...


class Reader:
    """Batches one after the other: an iterator, made by `read`."""

    def __init__(self, blocks: Any):
        """Takes what makes the blocks: Grain's iterator or `Workers`."""
        self._blocks = blocks
        self._here: deque[Batch | DataError] = deque()
        self.wait_s = 0.0
        """Seconds that blocks were waited for; to hand over a batch that is here takes no waiting."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._here:
            begin = time.perf_counter()
            self._here.extend(next(self._blocks))
            self.wait_s += time.perf_counter() - begin
        batch = self._here.popleft()
        if isinstance(batch, DataError):
            raise batch
        return batch

    def close(self) -> None:
        """Ends its threads and processes; a thread ends as soon as the block that it is making is done."""
        self._blocks.close()


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
    """
    size = at_once if threads and not workers else 1
    blocks = grain.MapDataset.range(start, max(start, stop), size).map(_Blocks(batches, stop, size).read)
    if workers:
        return Reader(Workers(blocks, workers, max(1, prefetch // workers)))
    ahead = max(-(-prefetch // size), threads) if threads else 0
    reader = iter(blocks.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))
    reader.start_prefetch()
    return Reader(reader)


class _Blocks:
    """The elements that Grain's threads or processes make."""

    def __init__(self, batches: Numbered, stop: int, size: int):
        self._batches, self._stop, self._size = batches, stop, size

    def read(self, first: int) -> list[Batch | DataError]:
        """Returns the block from a batch on; of several batches, an error stands in the place of the one that has it.

        Raises:
            DataError: the block's only batch cannot be made.
        """
        first = int(first)
        count = min(self._size, self._stop - first)
        if count == 1:
            return [self._batches[first]]
        try:
            return self._batches.block(first, count)  # pyright: ignore[reportAttributeAccessIssue]
        except DataError:
            return [self._read_one(n) for n in range(first, first + count)]

    def _read_one(self, n: int) -> Batch | DataError:
        try:
            return self._batches[n]
        except DataError as error:
            return error
