"""Exit codes: the one table that the command line, launchers, batch scripts and JobSet rules read.

| code | name        | means                                                        | restarted |
|------|-------------|--------------------------------------------------------------|-----------|
| 0    | DONE        | the run reached its end, and `status.json` states it         | no        |
| 1    | USER_ERROR  | a config, a file or the user's code is wrong; a restart would fail again | no |
| 42   | RETRY       | preempted (the state is saved), a lost peer, a hang: start it again | yes       |
| 43   | STOP        | do not retry: the engine decided to end the run              | no        |
| 130  | INTERRUPTED | the user pressed Ctrl-C                                      | never     |

A process that was killed from outside ends with 128 + the signal (`SIG...`). It is restarted, unless the recorded
verdict of a process is USER_ERROR or STOP, which is then the job's code.
"""

import signal
from enum import IntEnum

from engine.base.errors import EngineEnd


class ExitStatus(IntEnum):
    """The exit codes that the engine returns or handles, each with its `meaning`."""

    DONE = 0, "done"
    USER_ERROR = 1, "the user's error"
    RETRY = 42, "start it again"
    STOP = 43, "do not retry"
    INTERRUPTED = 130, "interrupted by the user"
    SIGABRT = 134, "killed by SIGABRT"
    SIGKILL = 137, "killed by SIGKILL"
    SIGSEGV = 139, "killed by SIGSEGV"
    SIGTERM = 143, "killed by SIGTERM"

    meaning: str

    def __new__(cls, code: int, meaning: str) -> "ExitStatus":
        """Creates a member from a code and its meaning."""
        status = int.__new__(cls, code)
        status._value_, status.meaning = code, meaning
        return status


KILLED = (ExitStatus.SIGABRT, ExitStatus.SIGKILL, ExitStatus.SIGSEGV, ExitStatus.SIGTERM)


def describe(code: int) -> str:
    """Returns the meaning of an exit code."""
    meanings = {int(status): status.meaning for status in ExitStatus}
    if code not in meanings and code - 128 in signal.valid_signals():
        return f"killed by {signal.Signals(code - 128).name}"
    return meanings.get(code, f"exit code {code}, which is not the engine's")


def is_retried(code: int) -> bool:
    """Whether a supervisor restarts the run after this code."""
    return code == ExitStatus.RETRY or code in KILLED


def status_of(error: BaseException | None) -> int:
    """Returns the exit code of a process that an error ends; without an error, DONE."""
    if error is None:
        return ExitStatus.DONE
    if isinstance(error, EngineEnd):
        return error.exit_code
    return ExitStatus.INTERRUPTED if isinstance(error, KeyboardInterrupt) else ExitStatus.USER_ERROR
