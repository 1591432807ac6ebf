"""Diagnosis after a job has ended: explains why a process was killed, and corrects the status it left behind."""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from engine.base.errors import RunError
from engine.base.host import ADVICE
from engine.cluster import origins, output, verdict
from engine.cluster.exit_status import KILLED, ExitStatus, describe
from engine.run import status
from engine.run.directory import RunDirectory
from engine.run.log import RunLog, logger
from engine.storage.mounts import local_path


def explain_exit(code: int, text: str, out_of_memory: bool) -> str:
    """Returns the meaning of an exit code in words. An unexplained SIGKILL is attributed to a lack of memory.

    Args:
        code: exit code of the process that ended first.
        text: text of its verdict; empty if it recorded none.
        out_of_memory: whether the kernel has killed a process for lack of memory since the job started.
    """
    meaning = describe(code)
    if code != 128 + signal.SIGKILL or text:
        return meaning
    if out_of_memory:
        return f"{meaning}: the kernel reports that memory ran out. Use {ADVICE}, or a machine with more memory"
    return f"{meaning}; if nobody sent the signal, memory ran out: see the kernel log (dmesg)"


def unfinished(folder: Path, index: int, pids: Sequence[int]) -> str:
    """Returns why the exit code 0 of a process is not believed, as a sentence; "" if it is.

    Args:
        folder: the folder of verdicts, which also names the status file of the run.
        index: index of the process.
        pids: processes of the job; a status that another process wrote is not read.
    """
    if verdict.is_unfinished(folder, index):
        return (
            f"process {index} ended with exit code 0 before it was done: its code or a library called os._exit, or "
            "exit of C. Find the call; the same command resumes from the newest checkpoint."
        )
    if origins.was_missed(folder, index):
        return (
            f"process {index} ended with exit code 0 before joining the others, which waited for it. Start the same "
            "command in each process, and check what ends it early."
        )
    with contextlib.suppress(RunError):
        path = _status_path(folder)
        if path is not None and (found := status.read(path)).pid == pids[index] and found.state != "done":
            return f"process {index} ended with exit code 0, but the status of its run is {found.state}: {path}."
    return ""


def note_output(folder: Path) -> None:
    """Writes to the log of the job's run which output streams of this launcher went silent."""
    output.drain()  # what the reader then still has not read counts as missing
    if (path := _status_path(folder)) is not None and (texts := output.unreported()):
        with contextlib.suppress(RunError), RunLog(RunDirectory(path.parent).log):
            for text in texts:
                logger.warning("the launcher: %s", text)


def _status_path(folder: Path) -> Path | None:
    """Returns the status file of the job's run; None if the job has none."""
    file = folder / verdict.STATUS
    path = local_path(os.fsdecode(file.read_bytes())) if file.exists() else None
    return path if path is not None and path.exists() else None


def correct_status(folder: Path, pids: Sequence[int], code: int, reason: str) -> None:
    """Writes the end of a job to the status of its run, if that still states "training" or only a lost peer.

    Args:
        folder: the folder of verdicts, which also names the status file of the run.
        pids: processes of the job; a status that another process wrote is not changed.
        code: exit code of the job.
        reason: why the job ended, as a sentence.
    """
    with contextlib.suppress(RunError):
        if (path := _status_path(folder)) is not None:
            found = status.read(path)
            later = code in (ExitStatus.USER_ERROR, *KILLED)  # the loss of the process that ended so
            lost_peer = found.exit_code == ExitStatus.RETRY and found.state == "failed" and later
            if (found.state in status.RUNNING or lost_peer) and found.pid in pids:
                status.write(path, dataclasses.replace(found, state="failed", reason=reason, exit_code=code))
