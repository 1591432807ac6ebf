"""What the launcher finds out after a job: why a process was killed, and the status that a kill left behind."""

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

_MINE = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def killed_for_memory() -> int:
    """Returns how many processes of this control group the kernel has killed for lack of memory; 0 if unknown."""
    try:
        for line in _MINE.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if "memory" in controllers.split(","):  # version 1
                return _count(_GROUPS / "memory" / group.strip("/") / "memory.oom_control")
            if not controllers and (file := _GROUPS / group.strip("/") / "memory.events").exists():  # version 2
                return _count(file)
    except (OSError, ValueError):
        return 0
    return 0


def _count(file: Path) -> int:
    return int(dict(line.split() for line in file.read_text().splitlines()).get("oom_kill", 0))


def why(code: int, text: str, for_memory: bool) -> str:
    """Returns what an exit code means, in words; a kill that no process explains has a likely cause.

    Args:
        code: of the process that ended first.
        text: of its verdict, if it recorded one.
        for_memory: whether the kernel has killed a process for lack of memory since the job began.
    """
    words = describe(code)
    if code != 128 + signal.SIGKILL or text:
        return words
    if for_memory:
        return f"{words}: memory ran out, the kernel says. Use less of it, or a larger machine"
    return f"{words}; if nobody sent it, memory ran out: see the kernel's log, dmesg"


def correct_status(folder: Path, pids: Sequence[int], code: int, reason: str) -> None:
    """Writes the end of a job to the status of its run, where that still says "training" or only "lost a peer".

    Args:
        folder: of the verdicts, in which the run has named its status file.
        pids: of the job's processes; a status that another process wrote is left alone.
        code: exit code of the job.
        reason: a sentence.
    """
    file = folder / verdict.STATUS
    with contextlib.suppress(RunError):
        path = local_path(file.read_text()) if file.exists() else None
        if path is not None and path.exists():
            found = status.read(path)
            knows_less = found.exit_code == ExitStatus.RETRY and found.state == "failed" and code in KILLED
            if (found.state in status.RUNNING or knows_less) and found.pid in pids:
                status.write(path, dataclasses.replace(found, state="failed", reason=reason, exit_code=code))
