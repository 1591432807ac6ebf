"""Batches made ahead by worker processes, which are watched: a killed or frozen one ends the run, and none is left.

A *heartbeat* is a count that a thread of each worker increments on the *board*, a piece of shared memory. A worker that
is stopped, or that holds Python's lock in one call, sends none; after FROZEN_S it counts as frozen. A source that is
merely slow is bounded by the watchdog (`resilience/`).

A thread draws all batches, one ahead of the caller, so that no wait for Grain is without a bound. The kernel kills a
worker with the thread that started it (`cluster/parent.py`), and that is a thread of Grain's, which ends first when a
reader is closed. What a worker is writing into shared memory at that moment would stay there, so the board asks the
worker to live on until Grain has ended it. What killed workers leave is removed when the main process ends, by Python's
resource tracker, a process of its own.
"""

import contextlib
import errno
import functools
import gc
import logging
import multiprocessing
import os
import queue
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import grain
from absl import flags
from grain import DatasetIterator

from engine.cluster import parent
from engine.cluster.exit_status import ExitStatus
from engine.config.errors import ConvoyError, RunError

HEARTBEAT_S = 0.05
CHECK_S = 1.0  # between two checks of the heartbeats, while a batch is waited for
FROZEN_S = 10.0
SLOW_S = 10.0  # after which a wait is reported
CLOSE_S, START_S = 3.0, 60.0  # for the batches that are being made at the end, and for the first one
HEARD_S = 1.0  # for all workers to see that the reader is closing: 20 heartbeats
BURIED_S = 2.0  # for the end of a process to be known
_SLOT = struct.Struct("@qq")  # of the board
_HEARD = -1  # in the place of heartbeats
_SHARED = "shared memory (/dev/shm), through which data workers hand over batches"
_PERHAPS = {
    signal.SIGKILL: ", perhaps for want of memory",
    signal.SIGBUS: f", perhaps for want of {_SHARED}",
}
_END = object()


class DataWorkerError(ConvoyError):
    """A worker process was killed or is frozen; the run can be started again."""

    exit_code = ExitStatus.RETRY


class Workers:
    """The elements of a dataset in order, made by processes.

    Args:
        dataset: pickled to the workers.
        count: of the workers.
        buffer: elements that each makes ahead.

    Raises:
        RunError: shared memory is full.
        DataWorkerError: when a batch is drawn, a worker was killed from outside, or is frozen.
    """

    def __init__(self, dataset: grain.MapDataset, count: int, buffer: int):
        _parse_flags()
        _start_tracker()
        self._count = count
        try:
            self._board = _Board(1 + count)
        except OSError as error:
            _raise_full(error)
            raise
        options = grain.MultiprocessingOptions(count, per_worker_buffer_size=buffer)
        elements = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        start = functools.partial(_start_worker, self._board.name, os.getpid())
        self._reader: DatasetIterator | None = iter(elements.mp_prefetch(options, worker_init_fn=start))
        self._seen: dict[int, tuple[int, float]] = {}  # index -> its heartbeats, and when they were new
        self._started = False
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        # A daemon: where Grain does not return, it must not hold up the end of the process.
        self._thread = threading.Thread(target=self._answer, name="data-workers", daemon=True)
        self._thread.start()
        self._processes: list[BaseProcess] = []  # Grain's, as far as it has started them
        before = multiprocessing.active_children()
        threading.Thread(target=self._find_processes, args=(before,), name="find-workers", daemon=True).start()
        self._ahead = self._ask(self._draw)

    def _find_processes(self, before: list[BaseProcess]) -> None:
        """The thread that finds Grain's processes while it starts them: one that has ended is no longer listed."""
        end = time.monotonic() + START_S
        while len(self._processes) < self._count and self._reader is not None and time.monotonic() < end:
            known = [*before, *self._processes]
            self._processes += [child for child in multiprocessing.active_children() if child not in known]
            time.sleep(0.002)

    def _ask(self, what: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._asked.put((what, future))
        return future

    def _answer(self) -> None:
        """The thread."""
        while (asked := self._asked.get()) is not None:
            what, future = asked
            try:
                future.set_result(what())
            except BaseException as error:  # every kind reaches the caller: this thread has no one else to tell
                future.set_exception(error)

    def _draw(self) -> Any:
        assert self._reader is not None
        return next(self._reader, _END)

    def __iter__(self) -> "Workers":
        return self

    def __next__(self) -> Any:
        begin = time.monotonic()
        tell_at = begin + SLOW_S
        while not wait([self._ahead], CHECK_S).done:
            self._check_alive(begin)
            if self._started and time.monotonic() > tell_at:
                logging.getLogger("convoy").warning("waiting for data: no batch for %g s", time.monotonic() - begin)
                tell_at += 10 * SLOW_S
        try:
            element = self._ahead.result()
        except RuntimeError as error:  # Grain's, where a process has ended
            if (killed := self._killed()) is not None:
                raise killed from error
            raise
        except OSError as error:
            _raise_full(error)
            raise
        if element is _END:
            raise StopIteration
        self._started = True
        self._ahead = self._ask(self._draw)
        return element

    def close(self) -> None:
        """Ends the workers; those that do not come to their end in time are killed. A second call does nothing."""
        if self._reader is None:
            return
        if not wait([self._ahead], CLOSE_S if self._started else START_S).done:
            self._kill()
        self._let_go()
        closed = self._ask(self._reader.close)
        self._asked.put(None)
        if not wait([closed], CLOSE_S).done:
            self._kill()
        self._thread.join(BURIED_S)
        self._ahead = Future()  # a batch that nobody took holds shared memory
        self._board.remove()
        # Grain's objects refer to each other. Left to chance, their semaphores would be collected in the middle of a
        # call of Python's resource tracker, which then warns and leaks them. (What an error on its way holds stays.)
        self._reader = None
        gc.collect()
        if closed.done():
            closed.result()  # raises what went wrong

    def _known(self) -> Iterator[tuple[int, BaseProcess]]:
        """Yields (index, process) of the workers that have sent a heartbeat."""
        processes = {process.pid: process for process in self._processes}
        for index in range(self._count):
            pid, _ = self._board.read(1 + index)
            if pid in processes:
                yield index, processes[pid]

    def _check_alive(self, begin: float) -> None:
        """Checks the heartbeats; `begin` is since when a batch is waited for."""
        now = time.monotonic()
        for index, process in self._known():
            if not process.is_alive():  # it has made its last batch, or Grain reports what has ended it
                continue
            _, beats = self._board.read(1 + index)
            if self._seen.get(index, (0, 0.0))[0] != beats:
                self._seen[index] = beats, now
            if now - max(begin, self._seen[index][1]) > FROZEN_S:
                self._kill()
                raise DataWorkerError(
                    f"data worker {index} (pid {process.pid}) has shown no life for {FROZEN_S:g} s: it is stopped, or "
                    "one call of the data source does not return. The same command goes on from the newest checkpoint."
                )

    def _killed(self) -> "DataWorkerError | None":
        """Returns the error for a worker that a signal has ended; None where no worker had ended before this call."""
        end, dead = time.monotonic() + BURIED_S, connection.wait([p.sentinel for p in self._processes], 0)
        while dead and time.monotonic() < end:
            for process in (process for process in self._processes if process.sentinel in dead):
                if (code := process.exitcode) is not None and code < 0:
                    by = signal.Signals(-code)
                    index = next((index for index, known in self._known() if known is process), None)
                    name = "a data worker that was starting" if index is None else f"data worker {index}"
                    return DataWorkerError(
                        f"{name} (pid {process.pid}) was killed by {by.name}{_PERHAPS.get(by, '')}. The same command "
                        "goes on from the newest checkpoint; fewer data.workers need less memory."
                    )
            time.sleep(0.01)  # a thread of Grain's asks for the same end, and only one of the two gets an answer
        return None

    def _let_go(self) -> None:
        """Has the workers outlive the threads that started them, until Grain ends them."""
        self._board.write(0, True, 0)
        end = time.monotonic() + HEARD_S
        while time.monotonic() < end:
            if all(self._board.read(1 + i)[1] == _HEARD or not p.is_alive() for i, p in self._known()):
                break
            time.sleep(HEARTBEAT_S / 10)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()


class _Board:
    """Slots of two numbers in shared memory: of this process, or opened by the name of another one's.

    The first slot says whether the reader is closing. One slot for each worker holds its pid and its heartbeats: 0 and
    0 before the first one, and _HEARD in place of the heartbeats once the worker has seen the closing.
    """

    def __init__(self, slots: int = 0, name: str | None = None):
        size = slots * _SLOT.size
        self._memory = SharedMemory(name, create=name is None, size=size)
        self.name = self._memory.name
        if name is None:
            try:
                _reserve(self.name, size)
            except OSError:
                self.remove()
                raise

    def read(self, slot: int) -> tuple[int, int]:
        assert self._memory.buf is not None
        return _SLOT.unpack_from(self._memory.buf, slot * _SLOT.size)

    def write(self, slot: int, first: int, second: int) -> None:
        assert self._memory.buf is not None
        _SLOT.pack_into(self._memory.buf, slot * _SLOT.size, first, second)

    def remove(self) -> None:
        self._memory.close()
        self._memory.unlink()


def _reserve(name: str, size: int) -> None:
    """Takes up a piece of shared memory now, by its file: Linux sends SIGBUS to the first user of one with no room."""
    with contextlib.suppress(FileNotFoundError), open(f"/dev/shm/{name}", "r+b") as file:
        file.write(bytes(size))


def _raise_full(error: OSError) -> None:
    """Raises for full shared memory, in words."""
    if error.errno == errno.ENOSPC:
        raise RunError(
            f"{_SHARED}, is full. Give it more room (docker run --shm-size=8g; convoy launch kubernetes --shm=8Gi), "
            "remove what killed runs have left there, or set data.workers=0."
        ) from error


def _parse_flags() -> None:
    """Lets Grain's workers read their absl flags where no absl app has parsed the command line (notebooks, tests)."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_tracker() -> None:
    """Starts Python's resource tracker, which then does its work without a warning: that it cleans up is no news."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _start_worker(board: str, main: int, index: int, count: int) -> None:
    """Prepares a worker process: heartbeats, an end with the main process, and no signals or devices of its own."""
    threading.Thread(
        target=_send_heartbeats, args=(_Board(name=board), 1 + index, main), name="heartbeat", daemon=True
    ).start()
    import jax

    jax.config.update("jax_platforms", "cpu")
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process still saves, and then closes its workers
        signal.signal(number, signal.SIG_IGN)


def _send_heartbeats(board: _Board, slot: int, main: int) -> None:
    """Counts up until the reader is closing; ends this process with the main one, also where no kernel does it."""
    if (kill_with_parent := parent.kill_with(main)) is not None:
        kill_with_parent()
    main_process, beats = multiprocessing.parent_process(), 0
    assert main_process is not None
    while main_process.is_alive() and not board.read(0)[0]:
        beats += 1
        board.write(slot, os.getpid(), beats)
        main_process.join(HEARTBEAT_S)
    if beats == 0:  # the reader was closed while this process started; Grain takes this code for a failure, and ends
        os._exit(1)
    parent.outlive_parent()
    board.write(slot, os.getpid(), _HEARD)
    main_process.join()
    os._exit(1)
