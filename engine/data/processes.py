"""Processes that call one function with each job that they get: for data workers, and to write and check datasets.

Each process has a pipe to the main process, which stops it by closing the pipe, and reads its end there if it was
killed. The kernel also kills a process when the thread that started it ends (`cluster/parent.py`), so a thread starts
all processes of a pool and lives as long as they do.
"""

import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, reduction, util
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, NamedTuple

from engine.base.errors import DataError
from engine.base.user_errors import describe
from engine.cluster import output, parent
from engine.cluster.shutdown import RunThread
from engine.data import source_adapter
from engine.data.shared_arrays import Receiver, Sender, create, receive_memory

HEARTBEAT_S = 0.05
EXIT_S = 5.0  # for a process that was killed, and for the exit status of one that has ended


@dataclass
class ProcessEnded(Exception):
    """A process has ended before its job was done."""

    index: int
    pid: int | None
    code: int
    """Exit code; below 0, the number of a signal."""
    starting: bool

    @property
    def signal(self) -> str:
        """Name of the signal that killed it, and the likely reason; "" if it ended by itself."""
        if self.code >= 0:
            return ""
        by = signal.Signals(-self.code)
        return by.name + ", probably for lack of memory" * (by in (signal.SIGKILL, signal.SIGBUS))


class Reported(NamedTuple):
    """What the function of a process reported."""

    value: Any


class Processes:
    """Processes that call `function(job, report)` with each job.

    Args:
        function: pickled function. What it passes to `report` is received as `Reported`, before its result.
        count: number of processes.
        name: name of the processes in the texts of errors; None if these name only the data source.
    """

    def __init__(self, function: bytes, count: int, name: str | None = None):
        self._context = multiprocessing.get_context("spawn")  # a fork of a process that runs JAX may deadlock
        pipes = [self._context.Pipe() for _ in range(count)]
        self._pipes = [pipe for pipe, _ in pipes]
        self._receivers = [Receiver(pipe) for pipe in self._pipes]
        with open(create(len(function)), "wb") as file, open(create(8 * max(1, count)), "r+b") as heartbeats:
            file.write(function)
            file.flush()
            self._heartbeats = memoryview(mmap.mmap(heartbeats.fileno(), 0)).cast("q")
            for pipe in self._pipes:
                reduction.send_handle(pipe, file.fileno(), 0)
                reduction.send_handle(pipe, heartbeats.fileno(), 0)
        self._processes: list[BaseProcess] = []
        self._failure: BaseException | None = None  # why a process could not be started
        self._started, self._closing, self._closed = (threading.Event() for _ in range(3))
        self._thread = RunThread(self._start, "processes", ([pipe for _, pipe in pipes], name))
        self._thread.start()
        # Python would wait for the processes at its end, before it closes the pipes.
        self._at_exit = util.Finalize(None, self.close, exitpriority=1)

    def _start(self, pipes: Sequence[connection.Connection], name: str | None) -> None:
        try:
            for index, pipe in enumerate(pipes):
                if self._closing.is_set():
                    break
                arguments = (index, pipe, os.getpid(), name)
                process = self._context.Process(target=_serve, args=arguments, name=f"convoy-{index}", daemon=True)
                process.start()
                self._processes.append(process)
                pipe.close()
        except Exception as error:
            self._failure = error
        for pipe in pipes:  # of processes that were not started
            pipe.close()
        self._started.set()
        self._closed.wait()

    def send(self, index: int, jobs: Sequence[Any]) -> None:
        """Sends jobs to a process. If it has ended, `receive` raises the error."""
        with contextlib.suppress(ConnectionError):
            self._pipes[index].send(jobs)

    def wait(self, indices: Iterable[int], timeout: float | None = None) -> list[int]:
        """Returns those of these processes from which something can be received, after at most so many seconds."""
        pipes = {self._pipes[index]: index for index in indices}
        return [pipes[pipe] for pipe in connection.wait(pipes, timeout) if isinstance(pipe, connection.Connection)]

    def receive(self, index: int) -> Any:
        """Returns the next result of a process, or `Reported`.

        Raises:
            ProcessEnded: the process has ended.
            Exception: the function raised it, or the process could not be started.
        """
        try:
            message = self._receivers[index].receive()
        except EOFError:
            raise self._ended(index) from None
        if isinstance(message, _Failed):
            raise message.restored()
        return message

    def heartbeats(self, index: int) -> int:
        """Returns the number of heartbeats of a process; 0 while it starts."""
        return self._heartbeats[index]

    def pid(self, index: int) -> int | None:
        """Returns the id of a process."""
        self._started.wait()
        return self._processes[index].pid

    def _ended(self, index: int) -> BaseException:
        self._started.wait()
        if index >= len(self._processes):
            return self._failure or EOFError("closed")
        process = self._processes[index]
        process.join(EXIT_S)
        return ProcessEnded(index, process.pid, process.exitcode or 0, self._heartbeats[index] == 0)

    def close(self, patience: float = 0.0) -> None:
        """Stops the processes, and kills those that still do a job after so many seconds. A later call does nothing."""
        self._at_exit.cancel()
        self._closing.set()
        self._started.wait()
        for pipe in self._pipes:
            pipe.close()
        self._receivers.clear()  # frees the memory of arrays that are not used any more
        end = time.monotonic() + patience
        for index, process in enumerate(self._processes):
            if self._heartbeats[index]:  # it does not start now
                process.join(max(0.0, end - time.monotonic()))
            process.kill()
        for process in self._processes:
            process.join(EXIT_S)
        self._closed.set()
        self._thread.join()


@dataclass
class _Failed:
    """An error of a process, on its way to the main process."""

    error: BaseException
    frames: list[tuple[str, int, str]]
    """File, line and function of each frame of its traceback."""

    def restored(self) -> BaseException:
        """Returns the error with a traceback of the same frames, since pickle drops the original."""
        found: TracebackType | None = None
        for file, line, function in reversed(self.frames):
            try:
                exec(compile("\n" * (line - 1) + "raise ValueError", file, "exec").replace(co_name=function))
            except ValueError as error:
                assert error.__traceback__ is not None and error.__traceback__.tb_next is not None
                frame = error.__traceback__.tb_next.tb_frame
                found = TracebackType(found, frame, frame.f_lasti, line)
        return self.error.with_traceback(found)


def _failed(error: BaseException) -> _Failed:
    frames = [
        (frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = DataError(describe(error))
    return _Failed(error, frames)


def _serve(index: int, pipe: connection.Connection, main: int, name: str | None) -> None:
    """Does jobs until the main process closes the pipe."""
    if (kill_with_parent := parent.kill_with(main)) is not None:
        kill_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they reach all processes; the main one stops these
        signal.signal(number, signal.SIG_IGN)
    if name is not None:
        source_adapter.place = f"{name} {index} (pid {os.getpid()})"
    output.guard()
    _use_cpu()
    with contextlib.suppress(EOFError, ConnectionError):
        pickled = receive_memory(pipe)
        heartbeats = memoryview(receive_memory(pipe)).cast("q")
        RunThread(_send_heartbeats, "heartbeat", (heartbeats, index)).start()
        sender, function = Sender(pipe), _loaded(pickled)
        del pickled
        while True:
            for job in pipe.recv():
                _do(function, job, sender)


def _loaded(pickled: mmap.mmap) -> Callable[..., Any]:
    """Returns the function; if it cannot be loaded, one that raises the error."""
    try:
        return pickle.loads(pickled)
    except Exception as error:
        error.add_note("The data source cannot be loaded in another process.")
        failure = error

    def fail(job: Any, report: Any) -> Any:
        raise failure

    return fail


def _do(function: Callable[..., Any], job: Any, sender: Sender) -> None:
    """Calls the function with a job, and sends its result or its error."""
    with sender.block():
        try:
            with source_adapter.exits_reported():
                result = function(job, lambda value: sender.send(sender.message(Reported(value))))
            message = sender.message(result)
        except BaseException as error:  # of every kind: the main process raises it
            message = sender.message(_failed(error))
        sender.send(message)


def _use_cpu() -> None:
    """Restricts JAX to the CPU, since the main process holds the other devices."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        import jax

        jax.config.update("jax_platforms", "cpu")


def _send_heartbeats(heartbeats: memoryview, index: int) -> None:
    """Increments the heartbeats of this process, and ends it with the main process, on every system."""
    main_process = multiprocessing.parent_process()
    assert main_process is not None
    heartbeats[index] += 1
    # Not `is_alive`, which imports: while etils imports lazily in another thread, that gives modules of its own.
    while not connection.wait([main_process.sentinel], HEARTBEAT_S):
        heartbeats[index] += 1
    os._exit(1)
