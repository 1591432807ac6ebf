"""Runs jobs in several processes, which get a pickled copy of the function and send progress and results.

`Pool` is what writes and checks of datasets need of a place where jobs run: here in processes of this machine, in
`engine/ray/pool.py` on many machines.

Python's own pools wait for ever, or do not say why, when a process is killed. Here the caller gets an error that names
the signal. All processes end with the caller, also if it is killed (`data/processes.py`).
"""

import dataclasses
import functools
import pickle
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

from engine.base.errors import ConfigError, ConvoyError, DataError
from engine.base.host import usable_cores
from engine.base.user_errors import describe
from engine.cluster.exit_status import ExitStatus
from engine.data.processes import ProcessEnded, Processes, Reported
from engine.data.source import BaseSource, source_name
from engine.data.source_adapter import exits_reported

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


class Pool(Protocol):
    """A place where jobs run."""

    def count(self, jobs: int, usual: int | None = None) -> int:
        """Returns the number of workers for so many jobs.

        Args:
            jobs: number of jobs.
            usual: the number if the user chose none; None: as many as are useful there.

        Raises:
            ConfigError: the number that the user chose is not allowed, or the place does not exist.
        """
        ...

    def run[J, R](
        self, function: JobFunction[J, R], jobs: Sequence[J], workers: int, report: ReportProgress
    ) -> Generator[tuple[int, R]]:
        """Yields (index of the job, result) for each job when it is done.

        Args:
            function: called with each job.
            jobs: the jobs, which begin in this order. Their text names them in errors.
            workers: number of workers.
            report: called with numbers of finished examples.

        Raises:
            DataError: the function cannot be pickled, or it raises one. The first error of a job stops all workers.
            ProcessError: a worker was killed, so the command can be repeated.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LocalPool:
    """Processes of this machine; None asks for one per core."""

    processes: int | None = None

    def count(self, jobs: int, usual: int | None = None) -> int:
        return process_count(usual if self.processes is None else self.processes, jobs)

    def run[J, R](
        self, function: JobFunction[J, R], jobs: Sequence[J], workers: int, report: ReportProgress
    ) -> Generator[tuple[int, R]]:
        return run(function, jobs, workers, report)


def as_pool(given: int | Pool | None) -> Pool:
    """Returns a pool, or that of so many processes of this machine."""
    return LocalPool(given) if given is None or isinstance(given, int) else given


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
) -> Generator[tuple[int, R]]:
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
    pool, patience = Processes(pickled(functools.partial(_do, function), function.source), processes), 0.0
    try:
        yield from _collect(pool, processes, jobs, report)
        patience = EXIT_S
    finally:
        pool.close(patience)


def in_order[R](results: Iterable[tuple[int, R]]) -> Iterator[R]:
    """Yields the results of `run` in the order of the jobs, each once all before it have arrived."""
    early: dict[int, R] = {}
    number = 0
    for found, result in results:
        early[found] = result
        while number in early:
            yield early.pop(number)
            number += 1


def _collect(pool: Processes, processes: int, jobs: Iterable[Any], report: ReportProgress) -> Iterator[tuple[int, Any]]:
    """Sends each idle process the next job, and yields the results."""
    waiting = enumerate(jobs)
    busy: dict[int, int] = {}  # process -> number of its job

    def send_next(process: int) -> None:
        if (job := next(waiting, None)) is not None:
            busy[process] = job[0]
            pool.send(process, job[1:])

    for process in range(processes):
        send_next(process)
    while busy:
        for process in pool.wait(busy):
            message = _receive(pool, process)
            if isinstance(message, Reported):
                report(message.value)
                continue
            number = busy.pop(process)
            send_next(process)
            yield number, message


def _receive(pool: Processes, process: int) -> Any:
    """Returns the next message of a process. Every error is a ConvoyError."""
    try:
        return pool.receive(process)
    except ProcessEnded as ended:
        raise _exit_error(ended) from None
    except ConvoyError:
        raise
    except Exception as error:
        raise DataError(describe(error)) from error


def pickled(function: Callable[..., Any], source: BaseSource, dumps: Callable[[Any], bytes] = pickle.dumps) -> bytes:
    """Returns a function pickled for other processes. Raises DataError if that fails, which names its source."""
    try:
        return dumps(function)
    except Exception as error:
        raise DataError(
            f"{source_name(source)} cannot be sent to other processes ({type(error).__name__}: {error}). "
            "Define its class in a module, open files on first use, or use one process: --processes=1."
        ) from error


def _do[J, R](function: JobFunction[J, R], job: J, report: ReportProgress) -> R:
    """Does a job in another process."""
    progress = _Progress(report)
    result = function(job, progress.add)
    progress.flush()
    return result


def _exit_error(ended: ProcessEnded) -> ConvoyError:
    """Returns the error for a process that has ended before its job was done."""
    if ended.signal:
        return ProcessError(
            f"a process (pid {ended.pid}) was killed by {ended.signal}. Run the same command again; fewer --processes "
            "need less memory."
        )
    return DataError(
        f"a process (pid {ended.pid}) ended by itself with exit code {ended.code}: the code of the data source, or a "
        "library, called os._exit or failed as the process started. Its output may say more. A script calls the engine "
        "below `if __name__ == '__main__':`."
    )


class _Progress:
    """Reports the number of finished examples, at most every REPORT_S."""

    def __init__(self, report: ReportProgress):
        self._report, self._count, self._next = report, 0, 0.0

    def add(self, count: int) -> None:
        self._count += count
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        self._next = time.monotonic() + REPORT_S
        self._report(self._count)
        self._count = 0
