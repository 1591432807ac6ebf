"""Diagnosis after a job has ended: explains why a process was killed, and corrects the status it left behind."""

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from engine.base.errors import RunError
from engine.base.formatting import size_text
from engine.base.host import ADVICE, virtual_memory_limit
from engine.cluster import origins, output, verdict
from engine.cluster.exit_status import KILLED, ExitStatus, describe
from engine.run import status
from engine.run.directory import RunDirectory
from engine.run.goodput import record_death
from engine.run.log import RunLog, logger
from engine.storage.mounts import local_path

_SHOW_CURSOR = "\x1b[?25h"
_USUAL_CAUSES: dict[int, str] = {
    signal.SIGILL: "a library or a compiled program was built for another kind of processor",
    signal.SIGABRT: "a library found an error with which it cannot continue, often a lack of memory: see its output",
    signal.SIGBUS: "a file that is mapped into memory was cut, or the disk or /dev/shm behind it is full",
    signal.SIGFPE: "compiled code of a library or an extension divided an integer by zero",
    signal.SIGSEGV: "compiled code of a library or an extension used memory that is not its own; "
    "PYTHONFAULTHANDLER=1 prints the line that called it",
}


def explain_exit(code: int, text: str, out_of_memory: bool) -> str:
    """Returns the meaning of an exit code in words, for a signal of a fault with its usual cause.

    An unexplained SIGKILL is attributed to a lack of memory.

    Args:
        code: exit code of the process that ended first.
        text: text of its verdict; empty if it recorded none.
        out_of_memory: whether the kernel has killed a process for lack of memory since the job started.
    """
    meaning = describe(code)
    limit = virtual_memory_limit()
    if not text and limit is not None and code - 128 in (signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV):
        return f"{meaning}: usually the limit of virtual memory, {size_text(limit)}, is too low; raise it (ulimit -v)"
    if not text and (cause := _USUAL_CAUSES.get(code - 128)):
        return f"{meaning}: usually {cause}"
    if code != 128 + signal.SIGKILL or text:
        return meaning
    if out_of_memory:
        return f"{meaning}: the kernel reports that memory ran out. Use {ADVICE}, or a machine with more memory"
    return f"{meaning}; if nobody sent the signal, memory ran out: see the kernel log (dmesg)"


def unfinished(folder: Path, index: int, pid: int) -> str:
    """Returns why the exit code 0 of a process is not believed, as a sentence; "" if it is.

    Args:
        folder: the folder of verdicts, which also names the status file of the run.
        index: index of the process.
        pid: its pid; a status that another process wrote is not read.
    """
    if verdict.is_unfinished(folder, index):
        return _not_done(f"process {index}", ExitStatus.DONE)
    if origins.was_missed(folder, index):
        return (
            f"process {index} ended with exit code 0 before joining the others, which waited for it. Start the same "
            "command in each process, and check what ends it early."
        )
    with contextlib.suppress(RunError):
        path = _status_path(folder)
        if path is not None and (found := status.read(path)).pid == pid and found.state != "done":
            return f"process {index} ended with exit code 0, but the status of its run is {found.state}: {path}."
    return ""


def _not_done(who: str, code: int) -> str:
    return (
        f"{who} ended with exit code {code} before it was done: its code or a library called os._exit, or exit of C. "
        "Find the call; the same command resumes from the newest checkpoint."
    )


def report_unexplained(pid: int, code: int, out_of_memory: bool) -> int:
    """Tells how a process without a launcher has ended that did not say so itself, and corrects its status.

    Called in the parent that waits for it (`cluster/parent.py`).

    Args:
        pid: the process.
        code: its exit code, 128 + the signal for a killed one.
        out_of_memory: as for `explain_exit`.

    Returns:
        The exit code for the caller, which is not 0.
    """
    killed = describe(code).startswith("killed")
    reason = f"the process was {explain_exit(code, '', out_of_memory)}." if killed else _not_done("the process", code)
    # A progress bar on a terminal has left the cursor hidden, at the end of its line.
    output.show(f"{_SHOW_CURSOR}\n{reason}" if output.is_terminal(sys.stderr) else reason)
    failed = code or ExitStatus.USER_ERROR
    if (path := _shared_status_path()) is not None:
        correct(path, [pid], failed, reason)
        record_death(RunDirectory(path.parent).goodput, [pid], verdict.shared_status()[1])
    return failed


def note_output(folder: Path) -> None:
    """Writes to the log of the job's run which output streams of this launcher went silent, or were not read."""
    output.drain()  # what the reader then still has not read counts as missing
    _note(_status_path(folder), output.unreported())


def note_shared_output(texts: Sequence[str]) -> None:
    """Writes sentences about the output of a process without a launcher to the log of its run. Called in its parent."""
    _note(_shared_status_path(), texts)


def _note(path: Path | None, texts: Sequence[str]) -> None:
    if path is not None and texts:
        with contextlib.suppress(RunError), RunLog(RunDirectory(path.parent).log):
            for text in texts:
                logger.warning("the launcher: %s", text)


def _status_path(folder: Path) -> Path | None:
    """Returns the status file of the job's run; None if the job has none."""
    file = folder / verdict.STATUS
    return _existing(os.fsdecode(file.read_bytes())) if file.exists() else None


def _shared_status_path() -> Path | None:
    return _existing(verdict.shared_status()[0])


def _existing(name: str) -> Path | None:
    return path if name and (path := local_path(name)).exists() else None


def correct_status(folder: Path, pids: Collection[int], code: int, reason: str) -> None:
    """Writes the end of a job to the status of its run, if that still states "training" or only a lost peer.

    Args:
        folder: the folder of verdicts, which also names the status file of the run.
        pids: processes of the job; a status that another process wrote is not changed.
        code: exit code of the job.
        reason: why the job ended, as a sentence.
    """
    if (path := _status_path(folder)) is not None:
        correct(path, pids, code, reason)


def correct(path: Path, pids: Collection[int], code: int, reason: str) -> None:
    """Does the same for the status file `path`."""
    with contextlib.suppress(RunError):
        found = status.read(path)
        later = code in (ExitStatus.USER_ERROR, *KILLED)  # the loss of the process that ended so
        lost_peer = found.exit_code == ExitStatus.RETRY and found.state == "failed" and later
        if (found.state in status.RUNNING or lost_peer) and found.pid in pids:
            status.write(path, dataclasses.replace(found, state="failed", reason=reason, exit_code=code))
