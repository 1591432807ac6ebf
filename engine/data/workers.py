"""Makes the elements of a Grain dataset in worker processes, and names a worker that is killed, frozen or has ended.

Worker i of N makes elements i, i + N, i + 2N and so on, so their order does not depend on the number of workers.
"""

import functools
import logging
import time
from typing import Any

import cloudpickle
import grain

from engine.base.errors import ConvoyError
from engine.cluster.exit_status import ExitStatus
from engine.data.processes import ProcessEnded, Processes

CHECK_S = 1.0  # between two checks of the heartbeats while the caller waits for an element
FROZEN_S = 10.0  # without a heartbeat: stopped, or one call holds the GIL; the watchdog handles a slow source
SLOW_S = 10.0  # a longer wait for an element is reported
CLOSE_S = 3.0  # for the elements in preparation, which are not used
MOST_AHEAD = 100  # elements of a worker: messages that surely fit into its pipe


class DataWorkerError(ConvoyError):
    """A worker process was killed or is frozen, so the run can be restarted; or its code has ended it."""

    exit_code = ExitStatus.RETRY


class Workers:
    """Iterator over the elements of a dataset, in order, made by worker processes.

    Args:
        dataset: dataset that is pickled to the workers.
        count: number of workers.
        buffer: number of elements that each worker makes in advance, in addition to the one in progress.

    Raises:
        DataWorkerError: raised by `next`: a worker was killed by a signal, has ended by itself, or is frozen.
    """

    def __init__(self, dataset: grain.MapDataset, count: int, buffer: int):
        self._next, self._length, self._count = 0, len(dataset), min(count, len(dataset))
        self._ahead = self._count * min(buffer + 1, MOST_AHEAD)
        self._processes = Processes(_pickled(dataset), self._count, "data worker")
        for index in range(self._count):
            self._processes.send(index, range(index, min(self._ahead, self._length), self._count))

    def __iter__(self) -> "Workers":
        return self

    def __next__(self) -> Any:
        if self._next >= self._length:
            raise StopIteration
        index = self._next % self._count
        self._wait(index)
        if (later := self._next + self._ahead) < self._length:
            self._processes.send(index, [later])
        try:
            element = self._processes.receive(index)
        except ProcessEnded as ended:
            raise _exit_error(ended) from None
        self._next += 1
        return element

    def _wait(self, index: int) -> None:
        """Waits until a worker has sent something or ended. Raises DataWorkerError if it is frozen."""
        begin = time.monotonic()
        report_at, latest, missing_s = begin + SLOW_S, -1, 0.0
        while not self._processes.wait([index], CHECK_S):
            heartbeats = self._processes.heartbeats(index)
            missing_s = missing_s + CHECK_S if heartbeats == latest else 0.0
            latest = heartbeats
            if heartbeats and missing_s >= FROZEN_S:
                pid = self._processes.pid(index)
                self._processes.close()
                raise DataWorkerError(
                    f"data worker {index} (pid {pid}) has sent no heartbeat for {FROZEN_S:g} s: it is stopped, or one "
                    "call of the data source does not return. The same command resumes from the newest checkpoint."
                )
            if self._next and time.monotonic() > report_at:
                logging.getLogger("convoy").warning("waiting for data: no batch for %g s", time.monotonic() - begin)
                report_at += 10 * SLOW_S

    def close(self) -> None:
        """Stops the workers; kills those that do not end within CLOSE_S. A second call does nothing."""
        self._processes.close(CLOSE_S)


def _element(dataset: grain.MapDataset, number: int, report: object) -> Any:
    return dataset[number]


def _pickled(dataset: grain.MapDataset) -> bytes:
    try:
        return cloudpickle.dumps(functools.partial(_element, dataset))  # a class of a notebook is pickled by value
    except Exception as error:
        error.add_note("It cannot be sent to data workers. Open files on first use, or set data.workers=0.")
        raise


def _exit_error(ended: ProcessEnded) -> DataWorkerError:
    """Returns the error for a worker that has ended."""
    name = "a data worker that was starting" if ended.starting else f"data worker {ended.index}"
    if ended.signal:
        return DataWorkerError(
            f"{name} (pid {ended.pid}) was killed by {ended.signal}. The same command resumes from the newest "
            "checkpoint. Fewer data.workers need less memory."
        )
    error = DataWorkerError(
        f"{name} (pid {ended.pid}) ended by itself with exit code {ended.code}: the code of the data source, or a "
        "library, called os._exit or exit of C, or failed where Python prints the error. Its output may say more."
    )
    error.exit_code = ExitStatus.USER_ERROR
    return error
