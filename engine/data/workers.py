"""Runs Grain's worker processes, detects ended and frozen workers, and stops all of them at the end.

The kernel kills a worker when the thread that started it ends (`cluster/parent.py`). That is a thread of Grain, which
ends first when a reader is closed, and a worker killed then would leak the shared memory that it is writing. `close`
therefore first asks the workers, through shared memory, to outlive that thread until Grain stops them. When the main
process ends, Python's resource tracker removes the shared memory of killed workers, which `_TrackedMemory` registers.
"""

import contextlib
import errno
import functools
import gc
import logging
import multiprocessing
import os
import queue
import secrets
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from multiprocessing import connection, resource_tracker, shared_memory
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import grain
from absl import flags
from grain import DatasetIterator

from engine.base.errors import DataError, RunError
from engine.base.user_errors import describe
from engine.cluster import output, parent
from engine.data.shared_arrays import Receiver
from engine.data.worker_error import SHARED, DataWorkerError, ended_at_start, exit_error

HEARTBEAT_S = 0.05
CHECK_S = 1.0  # between two checks of the heartbeats while the caller waits for a batch
FROZEN_S = 10.0  # without a heartbeat: stopped, or one call holds the GIL; the watchdog handles a slow source
SLOW_S = 10.0  # a longer wait for a batch is reported
CLOSE_S, START_S = 3.0, 60.0  # timeouts of `close` for the batch in preparation: a later one, and the first one
ACKNOWLEDGE_S = 1.0  # for all workers to see that the reader is closing: 20 heartbeats
EXIT_S = 2.0  # for the exit status of a process
_SLOT = struct.Struct("@qq")
_CLOSING_SEEN = -1  # stored instead of the heartbeat count
_END = object()
_starting = threading.Lock()  # held while a reader's processes start, so that no other reader takes them for its own
_worker: int | None = None  # index of this process if it is a worker


@contextlib.contextmanager
def exits_reported() -> Iterator[None]:
    """Raises a DataError where the code of a data source calls `sys.exit`, which would end a worker or the run."""
    try:
        yield
    except SystemExit as error:
        where = "the data source" if _worker is None else f"data worker {_worker} (pid {os.getpid()})"
        raise DataError(f"{where}: {describe(error)} Raise an error instead, which names the example.") from error


class Workers:
    """Iterator over the elements of a dataset, in order, made by worker processes.

    A thread requests every element from Grain, one ahead of the caller, so that each wait has a timeout.

    Args:
        dataset: dataset that is pickled to the workers.
        count: number of workers.
        buffer: elements that each worker prefetches.

    Raises:
        RunError: shared memory is full.
        DataWorkerError: raised by `next`: a worker was killed by a signal, has ended by itself, or is frozen.
    """

    def __init__(self, dataset: grain.MapDataset, count: int, buffer: int):
        _parse_flags()
        _start_tracker()
        self._count = count
        try:
            self._slots = _SharedSlots(1 + count)
        except OSError as error:
            _raise_full(error)
            raise
        options = grain.MultiprocessingOptions(count, per_worker_buffer_size=buffer)
        elements = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        start = functools.partial(_start_worker, self._slots.name, os.getpid())
        self._reader: DatasetIterator | None = iter(elements.mp_prefetch(options, worker_init_fn=start))
        self._receiver = Receiver()
        self._seen: dict[int, tuple[int, float]] = {}  # worker index -> (heartbeat count, time when it last changed)
        self._drawn = 0  # number of elements that the caller has received
        self._ended: list[BaseProcess] = []  # workers that the latest check found ended although their turn has come
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._stuck = False  # whether a thread of Grain waits for ever for a worker that has ended
        # A daemon, so that a call of Grain that does not return cannot keep the process alive.
        self._thread = threading.Thread(target=self._run_calls, name="data-workers", daemon=True)
        self._thread.start()
        self._processes: list[BaseProcess] = []  # worker processes that Grain has started so far
        self._next_element = self._submit(self._draw_first)

    def _draw_first(self) -> Any:
        """Requests the first element, for which Grain starts the processes, one reader after the other."""
        _starting.acquire()
        before = multiprocessing.active_children()
        threading.Thread(target=self._find_processes, args=(before,), name="find-workers", daemon=True).start()
        return self._draw()

    def _find_processes(self, before: list[BaseProcess]) -> None:
        """Collects Grain's processes, in a thread, while Grain starts them: an ended process is no longer listed.

        Grain starts them in parallel, so a worker may be listed after another one has made the first element.
        """
        end = time.monotonic() + START_S
        try:
            while len(self._processes) < self._count and self._reader is not None and time.monotonic() < end:
                known = [*before, *self._processes]
                self._processes += [child for child in multiprocessing.active_children() if child not in known]
                time.sleep(0.002)
        finally:
            _starting.release()

    def _submit(self, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((function, future))
        return future

    def _run_calls(self) -> None:
        """Runs the submitted functions, in the thread that alone uses Grain's iterator."""
        while (call := self._calls.get()) is not None:
            function, future = call
            try:
                future.set_result(function())
            except BaseException as error:  # of every kind: the caller raises it
                future.set_exception(error)

    def _draw(self) -> Any:
        assert self._reader is not None
        return self._receiver.open(next(self._reader, _END))

    def __iter__(self) -> "Workers":
        return self

    def __next__(self) -> Any:
        begin = time.monotonic()
        report_at = begin + SLOW_S
        while not wait([self._next_element], CHECK_S).done:
            self._check_alive(begin)
            if self._drawn and time.monotonic() > report_at:
                logging.getLogger("convoy").warning("waiting for data: no batch for %g s", time.monotonic() - begin)
                report_at += 10 * SLOW_S
        try:
            element = self._next_element.result()
        except RuntimeError as error:  # raised by Grain when a worker has ended with another code than 0
            if (failed := self._failed() or ended_at_start(error)) is not None:
                raise failed from error
            raise
        except OSError as error:
            _raise_full(error)
            raise
        if element is _END:
            raise StopIteration
        self._drawn += 1
        self._next_element = self._submit(self._draw)
        return element

    def close(self) -> None:
        """Stops the workers; kills those that do not end within CLOSE_S. A second call does nothing."""
        if self._reader is None:
            return
        patience = 0.0 if self._stuck else CLOSE_S
        if not wait([self._next_element], patience if self._drawn or self._stuck else START_S).done:
            self._kill()
        self._detach_workers()
        closed = self._submit(self._reader.close)
        self._calls.put(None)
        if not wait([closed], patience).done:
            self._kill()
        self._thread.join(0.0 if self._stuck else EXIT_S)
        self._next_element = Future()  # drops an unused batch, which holds shared memory
        self._receiver.close()
        self._slots.remove()
        # Grain's objects form reference cycles. If the garbage collector freed their semaphores during a call of
        # Python's resource tracker, the tracker would warn and leak them, so they are collected now. (Objects that the
        # traceback of a current exception refers to remain.)
        self._reader = None
        gc.collect()
        if closed.done():
            closed.result()  # raises the error of Grain's close, if any

    def _known(self) -> Iterator[tuple[int, BaseProcess]]:
        """Yields (index, process) of the workers that have sent a heartbeat."""
        processes = {process.pid: process for process in self._processes}
        for index in range(self._count):
            pid, _ = self._slots.read(1 + index)
            if pid in processes:
                yield index, processes[pid]

    def _check_alive(self, begin: float) -> None:
        """Raises DataWorkerError if a worker is frozen, or has ended although the next batch is its own.

        Grain waits for ever for a worker that ends with code 0. `begin` is when the wait for the present batch began.
        """
        now = time.monotonic()
        if ended := [process for process in self._next_makers() if not process.is_alive() and process in self._ended]:
            self._stuck = True
            self._kill()
            raise self._exit_error(ended[0])
        # A worker may end between two checks, after it has sent the batch or an error.
        self._ended = [process for process in self._next_makers() if not process.is_alive()]
        for index, process in self._known():
            if not process.is_alive():  # it has made its last batch, or Grain will report its failure
                continue
            _, heartbeats = self._slots.read(1 + index)
            if self._seen.get(index, (0, 0.0))[0] != heartbeats:
                self._seen[index] = heartbeats, now
            if now - max(begin, self._seen[index][1]) > FROZEN_S:
                self._kill()
                raise DataWorkerError(
                    f"data worker {index} (pid {process.pid}) has sent no heartbeat for {FROZEN_S:g} s: it is stopped, "
                    "or one call of the data source does not return. The same command resumes from the newest "
                    "checkpoint."
                )

    def _next_makers(self) -> list[BaseProcess]:
        """Returns the process that makes the next batch; before its first heartbeat, all that have sent none."""
        known = dict(self._known())
        if (process := known.get(self._drawn % self._count)) is not None:
            return [process]
        return [process for process in self._processes if process not in known.values()]

    def _failed(self) -> "DataWorkerError | None":
        """Returns the error for a worker that has ended with another code than 0; None if there is none."""
        end, dead = time.monotonic() + EXIT_S, connection.wait([p.sentinel for p in self._processes], 0)
        ended = [process for process in self._processes if process.sentinel in dead]
        while ended and time.monotonic() < end:
            if failed := [process for process in ended if process.exitcode]:
                return self._exit_error(failed[0])
            ended = [process for process in ended if process.exitcode is None]
            time.sleep(0.01)  # a thread of Grain waits for the same process, and the exit status reaches one of the two
        return None

    def _exit_error(self, process: BaseProcess) -> DataWorkerError:
        """Returns the error for a worker that has ended."""
        index = next((index for index, known in self._known() if known is process), None)
        name = "a data worker that was starting" if index is None else f"data worker {index}"
        return exit_error(f"{name} (pid {process.pid})", process.exitcode or 0)

    def _detach_workers(self) -> None:
        """Lets the workers outlive the threads that started them, until Grain stops them."""
        self._slots.write(0, True, 0)
        end = time.monotonic() + ACKNOWLEDGE_S
        while time.monotonic() < end:
            if all(self._slots.read(1 + i)[1] == _CLOSING_SEEN or not p.is_alive() for i, p in self._known()):
                break
            time.sleep(HEARTBEAT_S / 10)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()


class _SharedSlots:
    """Slots of two integers in shared memory: created by the main process, opened by name in the workers.

    Slot 0 holds whether the reader is closing. Slot 1 + i holds the pid of worker i and its number of heartbeats: both
    0 before the first heartbeat, and _CLOSING_SEEN as the count once the worker has seen that the reader is closing.
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


class _TrackedMemory(SharedMemory):
    """Shared memory that is registered with Python's resource tracker before it is created.

    `SharedMemory` registers after the creation. A worker that is killed between the two leaks the memory for good.
    """

    def __init__(self, name: str | None = None, create: bool = False, size: int = 0, **options: Any):
        if create and name is None:
            name = f"psm_{secrets.token_hex(8)}"
            resource_tracker.register(f"/{name}", "shared_memory")
        super().__init__(name, create, size, **options)


def _reserve(name: str, size: int) -> None:
    """Allocates the pages of a shared memory file now. Otherwise Linux sends SIGBUS at the first use if it is full."""
    with contextlib.suppress(FileNotFoundError), open(f"/dev/shm/{name}", "r+b") as file:
        file.write(bytes(size))


def _raise_full(error: OSError) -> None:
    """Raises RunError if shared memory is full, else returns."""
    if error.errno == errno.ENOSPC:
        raise RunError(
            f"{SHARED}, is full. Give it more space (docker run --shm-size=8g; convoy launch k8s --shm=8Gi), delete "
            "files that killed runs left there, or set data.workers=0."
        ) from error


def _parse_flags() -> None:
    """Lets Grain's workers read absl flags when no absl app has parsed the command line (notebooks, tests)."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_tracker() -> None:
    """Starts Python's resource tracker with its warnings off: it would report each cleanup after a killed worker."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _start_worker(slots: str, main: int, index: int, count: int) -> None:
    """Sets up a worker process: starts its heartbeats, restricts JAX to the CPU, and ignores stop signals."""
    global _worker
    _worker = index
    output.guard()
    threading.Thread(
        target=_send_heartbeats, args=(_SharedSlots(name=slots), 1 + index, main), name="heartbeat", daemon=True
    ).start()
    shared_memory.SharedMemory = _TrackedMemory  # Grain creates its batches by this name
    import jax

    jax.config.update("jax_platforms", "cpu")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the main process saves, then closes its workers
        signal.signal(number, signal.SIG_IGN)


def _send_heartbeats(slots: _SharedSlots, slot: int, main: int) -> None:
    """Increments the heartbeat count until the reader closes, then exits with the main process, on every system."""
    if (kill_with_parent := parent.kill_with(main)) is not None:
        kill_with_parent()
    main_process, heartbeats = multiprocessing.parent_process(), 0
    assert main_process is not None
    while main_process.is_alive() and not slots.read(0)[0]:
        heartbeats += 1
        slots.write(slot, os.getpid(), heartbeats)
        main_process.join(HEARTBEAT_S)
    if heartbeats == 0:  # the reader was closed while this process started; Grain treats this exit code as a failure
        os._exit(1)
    parent.outlive_parent()
    slots.write(slot, os.getpid(), _CLOSING_SEEN)
    main_process.join()
    os._exit(1)
