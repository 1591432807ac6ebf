"""The errors for worker processes that have ended."""

import re
import signal

from engine.base.errors import ConvoyError
from engine.cluster.exit_status import ExitStatus

SHARED = "shared memory (/dev/shm), through which data workers pass batches"
_LIKELY_REASON = {
    signal.SIGKILL: ", probably for lack of memory",
    signal.SIGBUS: f", probably for lack of {SHARED}",
}


class DataWorkerError(ConvoyError):
    """A worker process was killed or is frozen, so the run can be restarted; or its code has ended it."""

    exit_code = ExitStatus.RETRY


def exit_error(name: str, code: int) -> DataWorkerError:
    """Returns the error for a worker that has ended with an exit code; below 0, the number of a signal."""
    if code < 0:
        by = signal.Signals(-code)
        return DataWorkerError(
            f"{name} was killed by {by.name}{_LIKELY_REASON.get(by, '')}. The same command resumes from the newest "
            "checkpoint. Fewer data.workers need less memory."
        )
    error = DataWorkerError(
        f"{name} ended by itself with exit code {code}: the code of the data source, or a library, called os._exit or "
        "exit of C, or failed where Python prints the error. Its output may say more."
    )
    error.exit_code = ExitStatus.USER_ERROR
    return error


def ended_at_start(error: RuntimeError) -> DataWorkerError | None:
    """Returns the error for a worker that ended before it was listed, from that of Grain; None for another error."""
    code = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    return None if code is None else exit_error("a data worker that was starting", int(code[1]))
