"""Finds the number of worker processes while a run reads (`data.workers=auto`).

The run starts with threads. While the loop waits for data and cores are idle, more workers take over, and the fastest
number stays. The order of the batches does not depend on the number: a change opens another iterator at a later batch,
which starts its workers while the present one makes the batches before it.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from engine.base.errors import ConvoyError, DataError
from engine.base.host import free_share, idle_seconds, usable_cores
from engine.cluster.shutdown import RunThread
from engine.data.stages import NO_TIMES, Times

WINDOW_S, WINDOW_BLOCKS = 3.0, 10  # a decision needs so much time and so many blocks with one number of workers
PAUSE_S, PAUSE_BLOCKS = 1.0, 5  # a longer gap between two blocks, in mean gaps, is an evaluation or a save
WAIT = 0.05  # share of waiting below which reading is fast enough
IDLE_CORES = 0.25  # fewer idle cores do not help another worker
FASTER = 1.05  # more workers stay if they are so much faster
GROW_MEMORY, SHRINK_MEMORY = 0.2, 0.06  # free shares of the host's memory
NO_CORE, NO_WORKERS = "no core is idle", "more workers cannot start"
START_S = 4.0  # estimate of the time in which a worker starts


@dataclass(frozen=True)
class Window:
    """How reading went for a few seconds with one number of workers."""

    batches_per_s: float
    wait: float
    """Share of the time in which the loop waited."""
    idle_cores: float
    free_memory: float
    """Share of the host's memory."""


@dataclass
class Choice:
    """Decides on the number of workers, one window after the other."""

    most: int
    """Largest number of workers."""
    rates: dict[int, float] = field(default_factory=dict)
    """Batches per second by number of workers, as far as tried."""
    settled: str = ""
    """Why the number stays as it is; "" while others are tried."""

    def next(self, workers: int, window: Window) -> int:
        """Returns the number of workers to use after a window with `workers`."""
        if workers and window.free_memory < SHRINK_MEMORY:
            self.settled = "the memory of the host is short"
            self.most = workers // 2
            return self.most
        if self.settled == NO_CORE:  # a core may be idle now
            self.settled = ""
        if self.settled:
            return workers
        if window.wait < WAIT:
            return workers
        self.rates[workers] = window.batches_per_s
        more = min(self.most, max(2, 2 * workers))
        if more > workers and more not in self.rates:
            slower = [rate for number, rate in self.rates.items() if number < workers]
            if not slower or window.batches_per_s >= FASTER * max(slower):
                if window.idle_cores < IDLE_CORES:
                    self.settled = NO_CORE
                elif window.free_memory < GROW_MEMORY:
                    self.settled = "more workers may not fit into memory"
                else:
                    return more
        self.settled = self.settled or "the fastest number that was tried"
        return self.fastest()

    def fastest(self) -> int:
        """Returns the smallest number that is about as fast as the fastest."""
        best = max(self.rates.values())
        return min(number for number, rate in self.rates.items() if FASTER * rate >= best)


class BlockIterator[T](Protocol):
    """Iterator over blocks and the time by stage that it took to make each: Grain's iterator or `Workers`."""

    def __next__(self) -> tuple[list[T | DataError], Times]: ...

    def close(self) -> None: ...


class Changeable[T]:
    """Iterator over blocks whose number of workers can change.

    Args:
        open_blocks: `open_blocks(first, workers)` returns an iterator over the blocks from batch `first` on.
        start: number of the first batch.
        stop: number after the last batch.
    """

    def __init__(self, open_blocks: Callable[[int, int], BlockIterator[T]], start: int, stop: int):
        self._open, self._stop = open_blocks, stop
        self.next_batch, self.workers = start, 0
        """Number of the next batch, and the number of workers that makes it."""
        self.failed = False
        """Whether workers could not start, so that the former ones, or threads, continue."""
        self._blocks = open_blocks(start, 0)
        self._later: tuple[int, int, BlockIterator[T]] | None = None  # (its first batch, number of workers, iterator)
        self._rest: list[T | DataError] = []  # batches after its first one, which the present iterator has made
        self._closing: list[threading.Thread] = []

    @property
    def changing(self) -> bool:
        """Whether another number of workers takes over at a later batch."""
        return self._later is not None

    def change(self, workers: int, at: int) -> bool:
        """Lets another number of workers make the batches from `at` on.

        The new workers start at once. Returns False if they cannot start, or if the run ends earlier.
        """
        if self._later is not None or not self.next_batch <= at < self._stop:
            return False
        try:
            self._later = (at, workers, self._open(at, workers))
        except Exception as error:
            self._cannot_start(error)
            return False
        return True

    def __next__(self) -> tuple[list[T | DataError], Times]:
        if self._later is not None and self._later[0] == self.next_batch:
            found = self._take_over()
        else:
            found = next(self._blocks)
        block, times = found
        if self._later is not None:
            own = self._later[0] - self.next_batch
            block, self._rest = block[:own], block[own:]
        self.next_batch += len(block)
        return block, times

    def _take_over(self) -> tuple[list[T | DataError], Times]:
        """Returns the first block of the iterator that takes over.

        If its workers cannot start, the present iterator continues.

        Raises:
            ConvoyError: the first block itself failed.
        """
        assert self._later is not None
        _, workers, later = self._later
        rest, self._later, self._rest = self._rest, None, []
        try:
            found = next(later)
        except Exception as error:
            self._close(later)
            self._cannot_start(error)
            return (rest, NO_TIMES) if rest else next(self._blocks)
        self._close(self._blocks)
        self._blocks, self.workers = later, workers
        return found

    def _cannot_start(self, error: Exception) -> None:
        """Logs why workers cannot start, once. Raises an error that is not about their start."""
        if isinstance(error, ConvoyError | StopIteration):
            raise error
        if not self.failed:
            logging.getLogger("convoy").warning("data.workers=auto: workers cannot start: %s", error)
        self.failed = True

    def _close(self, blocks: BlockIterator[T]) -> None:
        """Stops readers in a thread: it takes up to seconds, and the loop must not wait."""
        thread = RunThread(blocks.close, "close-workers", daemon=False, otherwise="The former readers may still run.")
        thread.start()
        self._closing.append(thread)

    def close(self) -> None:
        """Stops all threads and worker processes."""
        if self._later is not None:
            self._close(self._later[2])
            self._later = None
        self._blocks.close()
        for thread in self._closing:
            thread.join()


class AutoBlocks[T](Changeable[T]):
    """Iterator over blocks that finds the number of workers itself.

    Args:
        open_blocks, start, stop: as for `Changeable`.
        threads: number of threads where there is no worker.
        prefetch: batches that are made ahead.
        on_message: called with a sentence about the number that was found, once for each.
    """

    def __init__(
        self,
        open_blocks: Callable[[int, int], BlockIterator[T]],
        start: int,
        stop: int,
        *,
        threads: int,
        prefetch: int,
        on_message: Callable[[str], None],
    ):
        super().__init__(open_blocks, start, stop)
        self._threads, self._prefetch, self._say = threads, prefetch, on_message
        self._choice = Choice(most=usable_cores() if usable_cores() > 1 else 0)
        self._reported: int | None = None  # number of workers of the latest message
        self._restart(time.monotonic())

    @property
    def parallel(self) -> int:
        """Number of threads or workers that read now."""
        return self.workers or self._threads

    def _restart(self, now: float) -> None:
        """Starts another window."""
        self._begin = self._last = now
        self._wait_s, self._blocks_read, self._first = 0.0, 0, self.next_batch
        self._idle_s = idle_seconds()

    def __next__(self) -> tuple[list[T | DataError], Times]:
        begin = time.monotonic()
        gap, mean = begin - self._last, (begin - self._begin) / max(1, self._blocks_read)
        if gap > PAUSE_S and gap > PAUSE_BLOCKS * mean:
            self._restart(begin)
        workers = self.workers
        found = super().__next__()
        self._last = now = time.monotonic()
        if self.failed:  # further ones would fail, too
            self._choice.settled = NO_WORKERS
        if workers != self.workers:
            self._restart(now)
            return found
        self._wait_s += now - begin
        self._blocks_read += 1
        if now - self._begin >= WINDOW_S and self._blocks_read >= WINDOW_BLOCKS and not self.changing:
            self._decide(now)
        return found

    def _decide(self, now: float) -> None:
        seconds = now - self._begin
        idle_s, before = idle_seconds(), self._idle_s
        window = Window(
            batches_per_s=(self.next_batch - self._first) / seconds,
            wait=self._wait_s / seconds,
            idle_cores=0.0 if idle_s is None or before is None else (idle_s - before) / seconds,
            free_memory=free_share(),
        )
        workers = self._choice.next(self.workers, window)
        if workers != self.workers:
            ahead = 2 * self._prefetch + int(START_S * window.batches_per_s)
            self.change(workers, self.next_batch + ahead)
        elif self._choice.settled:
            self._report()
        self._restart(now)

    def _report(self) -> None:
        if self.workers != self._reported:
            self._reported = self.workers
            count = self.parallel
            text = f"{count} worker" if self.workers else f"no workers, {count} thread"
            self._say(f"data.workers=auto: {text}{'s' * (count != 1)} ({self._choice.settled})")
