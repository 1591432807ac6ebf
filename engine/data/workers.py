"""Batches made ahead by worker processes, which are watched: a killed or frozen one ends the run, and none is left.

Owns: Grain's worker processes, their signs of life, and the errors about them. Does not own: what they make
(`batches.py`), or a source that is merely slow, which the watchdog bounds (`resilience/`).

Terms. *Beat*: once a second, a thread of each worker touches a file; a process that is stopped, or that holds Python's
lock in one call, does not. *Frozen*: no beat for FROZEN_S while its batch is waited for.

One thread starts the workers and draws all batches, one ahead of the caller, and lives until `close`: the kernel ends a
worker with the thread that started it (`cluster/parent.py`). Python's resource tracker, a process of its own, removes
what killed workers leave in shared memory.
"""

import functools
import gc
import logging
import multiprocessing
import os
import queue
import re
import shutil
import signal
import tempfile
import threading
import time
from concurrent.futures import Future, wait
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import grain
from absl import flags

from engine.cluster import exit_codes, parent
from engine.config.errors import ConvoyError

BEAT_S = 1.0
FROZEN_S = 10.0
SLOW_S = 10.0  # after which a wait is told
CLOSE_S, START_S = 3.0, 60.0  # for the batch that is being made at the end, and for the first one
BURIED_S = 2.0  # for the end of a process to be known
_KILLED = re.compile(r"exit code -(\d+)")  # in Grain's words
_END = object()


class DataWorkerError(ConvoyError):
    """A worker process was killed or is frozen; the run can be started again."""

    exit_code = exit_codes.RETRY


class Workers:
    """The elements of a dataset in order, made by processes.

    Args:
        dataset: pickled to the workers.
        count: of the workers.
        buffer: elements that each makes ahead.

    Raises (when a batch is drawn):
        DataWorkerError: a worker was killed from outside, or is frozen.
    """

    def __init__(self, dataset: grain.MapDataset, count: int, buffer: int):
        _parse_flags()
        _start_tracker()
        self._count = count
        self._beats = Path(tempfile.mkdtemp(prefix="convoy-data-"))
        options = grain.MultiprocessingOptions(count, per_worker_buffer_size=buffer)
        elements = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        start = functools.partial(_start_worker, str(self._beats), os.getpid())
        self._reader: Any = iter(elements.mp_prefetch(options, worker_init_fn=start))
        self._processes: dict[int, Any] = {}  # index -> multiprocessing.Process, as soon as it beats
        self._seen: dict[int, tuple[int, float]] = {}  # index -> its beat, and when that was new
        self._started = False
        self._asked: queue.SimpleQueue[Future[Any] | None] = queue.SimpleQueue()
        # A daemon: where Grain does not return, it must not hold up the end of the process.
        self._thread = threading.Thread(target=self._draw, name="data-workers", daemon=True)
        self._thread.start()
        self._ahead = self._ask()

    def _ask(self) -> Future[Any]:
        future: Future[Any] = Future()
        self._asked.put(future)
        return future

    def _draw(self) -> None:
        """The thread."""
        while (future := self._asked.get()) is not None:
            try:
                future.set_result(next(self._reader, _END))
            except BaseException as error:  # every kind reaches the caller: this thread has no one else to tell
                future.set_exception(error)

    def __iter__(self) -> "Workers":
        return self

    def __next__(self) -> Any:
        begin = time.monotonic()
        tell_at = begin + SLOW_S
        while not wait([self._ahead], BEAT_S).done:
            self._check_alive(begin)
            if self._started and time.monotonic() > tell_at:
                logging.getLogger("convoy").warning("waiting for data: no batch for %g s", time.monotonic() - begin)
                tell_at += 10 * SLOW_S
        try:
            element = self._ahead.result()
        except RuntimeError as error:
            self._raise_killed(error)
            raise
        if element is _END:
            raise StopIteration
        self._started = True
        self._ahead = self._ask()
        if len(self._processes) < self._count:
            self._find_processes()
        return element

    def close(self) -> None:
        """Ends the workers; one that does not come to its end is killed. A second call does nothing."""
        if self._reader is None:
            return
        if not wait([self._ahead], CLOSE_S if self._started else START_S).done:
            self._kill()
        self._asked.put(None)
        self._reader.close()
        self._thread.join(CLOSE_S)
        self._ahead = Future()  # a batch that nobody took holds shared memory
        shutil.rmtree(self._beats, ignore_errors=True)
        # Grain's objects refer to each other. Left to chance, their semaphores would be collected in the middle of a
        # call of Python's resource tracker, which then warns and leaks them. (What an error on its way holds stays.)
        self._reader = None
        gc.collect()

    def _find_processes(self) -> None:
        children = {child.pid: child for child in multiprocessing.active_children()}
        for file in self._beats.iterdir():
            index, pid = (int(part) for part in file.name.split("-"))
            if pid in children:
                self._processes.setdefault(index, children[pid])

    def _check_alive(self, begin: float) -> None:
        """Looks at the beats; `begin` is since when a batch is waited for."""
        self._find_processes()
        now = time.monotonic()
        for index, process in self._processes.items():
            beat = (self._beats / f"{index}-{process.pid}").stat().st_mtime_ns
            if self._seen.get(index, (0, 0.0))[0] != beat:
                self._seen[index] = beat, now
            if now - max(begin, self._seen[index][1]) > FROZEN_S:
                self._kill()
                raise DataWorkerError(
                    f"data worker {index} (pid {process.pid}) has shown no life for {FROZEN_S:g} s: it is stopped, or "
                    "one call of the data source does not return. The same command goes on from the newest checkpoint."
                )

    def _raise_killed(self, error: RuntimeError) -> None:
        """Raises for a worker that a signal has ended; Grain's words tell of one, and not of which."""
        if (killed := _KILLED.search(str(error))) is None:
            return
        number = int(killed[1])
        which = self._victim(number)
        raise DataWorkerError(
            f"{which} was killed by {signal.Signals(number).name}"
            f"{', perhaps for want of memory' * (number == signal.SIGKILL)}. The same command goes on from the newest "
            "checkpoint; fewer data.workers need less memory."
        ) from error

    def _victim(self, number: int) -> str:
        """Names the worker that a signal has ended; one that was still starting has no name yet."""
        end = time.monotonic() + BURIED_S
        while time.monotonic() < end:
            for index, process in self._processes.items():
                if process.exitcode == -number:
                    return f"data worker {index} (pid {process.pid})"
            if len(self._processes) < self._count:
                break
            time.sleep(0.01)  # a thread of Grain's asks for the same end, and one of two is told
        return "a data worker that was starting"

    def _kill(self) -> None:
        self._find_processes()
        for process in self._processes.values():
            process.kill()


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


def _start_worker(beats: str, main: int, index: int, count: int) -> None:
    """Prepares a worker process: it leaves signals and devices to the main process, ends with it, and beats."""
    if (end_with_parent := parent.end_with(main)) is not None:
        end_with_parent()
    import jax

    jax.config.update("jax_platforms", "cpu")
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process still saves, and then closes its workers
        signal.signal(number, signal.SIG_IGN)
    file = Path(beats) / f"{index}-{os.getpid()}"
    file.touch()
    threading.Thread(target=_beat, args=(file,), name="beat", daemon=True).start()


def _beat(file: Path) -> None:
    """Touches the file; ends this process when its parent is gone, where the kernel does not."""
    parent_process = multiprocessing.parent_process()
    while parent_process is not None and parent_process.is_alive():
        try:
            os.utime(file)
        except OSError:
            return  # the main process is closing
        parent_process.join(BEAT_S)
    os._exit(1)
