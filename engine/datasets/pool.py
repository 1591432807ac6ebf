"""Runs jobs in several processes, which get a pickled copy of the function and send progress and results.

Python's own pools wait for ever, or do not say why, when a process is killed. Here the caller gets an error that names
the signal. All processes end with the caller, also if it is killed.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol

from engine.base.errors import ConfigError, ConvoyError, DataError
from engine.base.host import usable_cores
from engine.base.user_errors import describe
from engine.cluster import parent
from engine.cluster.exit_status import ExitStatus
from engine.data.source import BaseSource, source_name
from engine.data.workers import exits_reported

REPORT_S = 0.1  # between two reports of the progress of a process
EXIT_S = 5.0  # for the processes to end after the last job
MAX_PROCESSES = 1024

type ReportProgress = Callable[[int], None]
"""Called with the number of examples that were finished since the last call."""


class ProcessError(ConvoyError):
    """A process was killed, so the command can be repeated."""

    exit_code = ExitStatus.RETRY


class JobFunction[J, R](Protocol):
    """Function that each process calls with a job. It is pickled, with the source that it reads."""

    @property
    def source(self) -> BaseSource: ...

    def __call__(self, job: J, report: ReportProgress, /) -> R: ...


class _Process(NamedTuple):
    process: BaseProcess
    pipe: connection.Connection


def process_count(asked: int | None, jobs: int) -> int:
    """Returns the number of processes for so many jobs; None asks for one per core that this process may use.

    Raises:
        ConfigError: the number is not allowed.
    """
    if asked is not None and not 1 <= asked <= MAX_PROCESSES:
        raise ConfigError(f"processes = {asked}: allowed is a whole number from 1 to {MAX_PROCESSES}.")
    return max(1, min(asked or usable_cores(), jobs))


def run[J, R](
    function: JobFunction[J, R], jobs: Sequence[J], processes: int, report: ReportProgress
) -> Iterator[tuple[int, R]]:
    """Yields (index of the job, result) for each job when it is done; a single process is this one.

    Args:
        function: called with each job.
        jobs: the jobs, which begin in this order.
        processes: number of processes.
        report: called with numbers of finished examples.

    Raises:
        DataError: the function cannot be pickled, or it raises one. The first error of a job stops all processes.
        ProcessError: a process was killed.
    """
    if processes == 1:
        for number, job in enumerate(jobs):
            with exits_reported():
                result = function(job, report)
            yield number, result
        return
    pool = _start(function, processes)
    try:
        yield from _collect(pool, list(enumerate(jobs)), report)
        for one in pool:
            with contextlib.suppress(OSError):  # a process that was killed after its last job
                one.pipe.send(None)
        end = time.monotonic() + EXIT_S
        for one in pool:
            one.process.join(max(0.0, end - time.monotonic()))
    finally:
        for one in pool:
            one.process.kill()
        for one in pool:
            one.process.join()
            one.pipe.close()


def in_order[R](results: Iterable[tuple[int, R]]) -> Iterator[R]:
    """Yields the results of `run` in the order of the jobs, each once all before it have arrived."""
    early: dict[int, R] = {}
    number = 0
    for found, result in results:
        early[found] = result
        while number in early:
            yield early.pop(number)
            number += 1


def _start(function: Any, count: int) -> list[_Process]:
    context = multiprocessing.get_context("spawn")  # a fork of a process that runs JAX may deadlock
    pool: list[_Process] = []
    try:
        pickled = pickle.dumps(function)
    except Exception as error:
        raise DataError(
            f"{source_name(function.source)} cannot be sent to other processes ({type(error).__name__}: {error}). "
            "Define its class in a module, open files on first use, or use one process: --processes=1."
        ) from error
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, pickled, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        pool.append(_Process(process, ours))
    return pool


def _collect(
    pool: list[_Process], jobs: Iterable[tuple[int, Any]], report: ReportProgress
) -> Iterator[tuple[int, Any]]:
    """Sends each idle process the next job, and yields the results."""
    waiting, busy = iter(jobs), {}
    for one in pool:
        if (job := next(waiting, None)) is not None:
            _send(one, job)
            busy[one.pipe] = one
    while busy:
        for pipe in connection.wait(list(busy)):
            one = busy[pipe]
            try:
                kind, number, value = one.pipe.recv()
            except (EOFError, ConnectionError):
                raise _ended(one.process) from None
            if kind == "progress":
                report(value)
                continue
            del busy[pipe]
            if kind == "failed":
                raise value
            if (job := next(waiting, None)) is not None:
                _send(one, job)
                busy[pipe] = one
            yield number, value


def _send(one: _Process, job: tuple[int, Any]) -> None:
    try:
        one.pipe.send(job)
    except (BrokenPipeError, ConnectionError):
        raise _ended(one.process) from None


def _ended(process: BaseProcess) -> ConvoyError:
    """Returns the error for a process that has ended before its job was done."""
    process.join(EXIT_S)
    code = process.exitcode or 0
    if code < 0:
        by = signal.Signals(-code).name
        likely = ", probably for lack of memory" if by == "SIGKILL" else ""
        return ProcessError(
            f"a process (pid {process.pid}) was killed by {by}{likely}. Run the same command again; fewer --processes "
            "need less memory."
        )
    return DataError(
        f"a process (pid {process.pid}) ended by itself with exit code {code}: the code of the data source, or a "
        "library, called os._exit or failed as the process started. Its output may say more. A script calls the engine "
        "below `if __name__ == '__main__':`."
    )


def _serve(pipe: connection.Connection, pickled: bytes, main: int) -> None:
    """Does jobs until the pipe sends None."""
    if (kill_with_parent := parent.kill_with(main)) is not None:
        kill_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main process stops the others
    _use_cpu()
    progress = _Progress(pipe)
    try:
        function = pickle.loads(pickled)
    except Exception as error:
        pipe.recv()
        pipe.send(("failed", -1, DataError(f"the data source cannot be loaded in another process: {describe(error)}")))
        return
    while (message := pipe.recv()) is not None:
        number, job = message
        try:
            with exits_reported():
                result = function(job, progress.add)
        except BaseException as error:
            known = isinstance(error, ConvoyError)
            pipe.send(("failed", number, error if known else DataError(f"{type(error).__name__}: {error}")))
            continue
        progress.flush()
        pipe.send(("done", number, result))


def _use_cpu() -> None:
    """Restricts JAX to the CPU, whose devices the main process does not hold."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        import jax

        jax.config.update("jax_platforms", "cpu")


class _Progress:
    """Sends the number of finished examples, at most every REPORT_S."""

    def __init__(self, pipe: connection.Connection):
        self._pipe, self._count, self._next = pipe, 0, 0.0

    def add(self, count: int) -> None:
        self._count += count
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        self._next = time.monotonic() + REPORT_S
        self._pipe.send(("progress", -1, self._count))
        self._count = 0
