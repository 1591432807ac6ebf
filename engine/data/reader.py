"""Prefetches batches, in order, with Grain's threads or with worker processes.

One Grain element is a block of one or more batches, since an element costs Grain 25 us and a wait of up to 200 us while
another thread holds the GIL. Batching is not a Grain transform, since Grain reads and stacks one example at a time: a
shuffled batch of 64 small examples takes 1,300 us and a mixture of two sources 1,700 us, against 10 and 40 us read by
rows, and 5 and 15 us in blocks.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import grain

from engine.base.errors import DataError
from engine.data.source_adapter import exits_reported
from engine.data.stages import NO_TIMES, Times, added, recorded

if TYPE_CHECKING:
    from engine.data.auto_workers import BlockIterator


class Numbered[T](Protocol):
    """Batches by number. A class that can read several in one call also has `block(first, count) -> list[T]`."""

    def __getitem__(self, n: int, /) -> T: ...


class Reader[T]:
    """Iterator over batches in order; created by `read`.

    Args:
        blocks: the blocks of batches.
        parallel: returns the number of threads or workers that read now.
    """

    def __init__(self, blocks: "BlockIterator[T]", parallel: Callable[[], int]):
        self._blocks, self._parallel = blocks, parallel
        self.made_s = 0.0
        """Seconds in which the threads or workers, working in parallel, have made the blocks that were returned."""
        self._ready: deque[T | DataError] = deque()
        self.wait_s = 0.0
        """Seconds spent waiting for blocks."""
        self.times = NO_TIMES
        """Seconds by stage, added up over the threads or workers, that the blocks that were returned have taken."""

    @property
    def parallel(self) -> int:
        """Number of threads or workers that read."""
        return self._parallel()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._ready:
            begin = time.perf_counter()
            block, times = next(self._blocks)
            self.wait_s += time.perf_counter() - begin
            self.times = added(self.times, times)
            self.made_s += sum(times) / self.parallel
            self._ready.extend(block)
        batch = self._ready.popleft()
        if isinstance(batch, DataError):
            raise batch
        return batch

    def close(self) -> None:
        """Stops the threads and processes; each thread first finishes its present block."""
        self._blocks.close()


def read[T](
    batches: Numbered[T],
    numbers: range,
    *,
    threads: int,
    workers: int | str,
    prefetch: int,
    block: int = 1,
    on_message: Callable[[str], None] = lambda text: None,
) -> Reader[T]:
    """Returns a reader of consecutive batches, which starts prefetching at once.

    Args:
        batches: batches by number; pickled to the workers.
        numbers: numbers of the batches.
        threads: number of reader threads; 0 makes each batch when it is requested.
        workers: number of worker processes, used instead of threads; 0 for none; "auto" finds it (`auto_workers.py`).
        prefetch: batches to prefetch, at least one for each thread or worker; no more than there are.
        block: batches that a thread reads in one call.
        on_message: called with a sentence about the number of workers that "auto" has found.
    """
    start, stop = numbers.start, numbers.stop
    prefetch = min(prefetch, len(numbers))

    def open_blocks(first: int, workers: int) -> "BlockIterator[T]":
        size = block if threads and not workers else 1
        read_block = _Blocks(batches, stop, size).read
        blocks = grain.MapDataset.range(first, max(first, stop), size).map(read_block)
        if workers:
            from engine.data.workers import Workers

            return Workers(blocks, workers, max(1, prefetch // workers))
        ahead = max(-(-prefetch // size), threads) if threads else 0
        reader = iter(blocks.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)))
        reader.start_prefetch()
        return reader

    if isinstance(workers, int):
        return Reader(open_blocks(start, workers), lambda: workers or max(1, threads))
    from engine.data.auto_workers import AutoBlocks

    blocks = AutoBlocks(open_blocks, start, stop, threads=threads, prefetch=prefetch, on_message=on_message)
    return Reader(blocks, lambda: blocks.parallel)


class _Blocks[T]:
    """Function that makes a block; it runs in Grain's threads or in worker processes."""

    def __init__(self, batches: Numbered[T], stop: int, size: int):
        self._batches, self._stop, self._size = batches, stop, size

    def read(self, first: int) -> "tuple[list[T | DataError], Times]":
        """Returns the block that starts at batch `first`, and the time by stage that it took.

        In a block of several batches, an error replaces a failed batch.

        Raises:
            DataError: the only batch of the block cannot be made.
        """
        with recorded() as recording:
            block = self._read(int(first))
        return block, recording.times

    def _read(self, first: int) -> "list[T | DataError]":
        count = min(self._size, self._stop - first)
        with exits_reported():
            if count == 1:
                return [self._batches[first]]
            try:
                return self._batches.block(first, count)  # pyright: ignore[reportAttributeAccessIssue]
            except DataError:
                return [self._read_one(n) for n in range(first, first + count)]

    def _read_one(self, n: int) -> T | DataError:
        try:
            return self._batches[n]
        except DataError as error:
            return error
