"""Diagnosis after a job has ended: explains why a process was killed, and corrects the status it left behind."""

import contextlib
import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path

from engine.cluster import verdict
from engine.cluster.exit_status import KILLED, ExitStatus, describe
from engine.config.errors import RunError
from engine.mounts import local_path
from engine.run import status


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
        return f"{meaning}: the kernel reports that memory ran out. Use less memory, or a larger machine"
    return f"{meaning}; if nobody sent the signal, memory ran out: see the kernel log (dmesg)"


def correct_status(folder: Path, pids: Sequence[int], code: int, reason: str) -> None:
    """Writes the end of a job to the status of its run, if that still states "training" or only a lost peer.

    Args:
        folder: the folder of verdicts, which also names the status file of the run.
        pids: processes of the job; a status that another process wrote is not changed.
        code: exit code of the job.
        reason: why the job ended, as a sentence.
    """
    file = folder / verdict.STATUS
    with contextlib.suppress(RunError):
        path = local_path(file.read_text()) if file.exists() else None
        if path is not None and path.exists():
            found = status.read(path)
            lost_peer = found.exit_code == ExitStatus.RETRY and found.state == "failed" and code in KILLED
            if (found.state in status.RUNNING or lost_peer) and found.pid in pids:
                status.write(path, dataclasses.replace(found, state="failed", reason=reason, exit_code=code))
