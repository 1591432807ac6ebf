"""What is known of a job once its processes are gone: why one was killed, and what the run's status must say now.

Owns: the guess at a lack of memory, and the correction of a status that a killed process left behind. Does not own: how
the processes ended (`local.py`), or whether the run is started again (`supervise.py`).
"""

import contextlib
import dataclasses
import signal
from collections.abc import Sequence
from pathlib import Path

from engine.cluster import exit_codes, shutdown
from engine.config.errors import RunError
from engine.mounts import local_path
from engine.run import status

_MINE = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def killed_for_memory() -> int:
    """Returns how many processes of this control group the kernel has killed because memory ran out.

    0 where it does not tell.
    """
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
        text: its last words, if it had any.
        for_memory: whether the kernel has killed a process here since the job began.
    """
    words = exit_codes.describe(code)
    if code != 128 + signal.SIGKILL or text:
        return words
    if for_memory:
        return f"{words}: memory ran out, the kernel says. Use less of it, or a larger machine"
    return f"{words}; if nobody sent it, memory ran out: see the kernel's log, dmesg"


def correct_status(folder: Path, pids: Sequence[int], code: int, reason: str) -> None:
    """Tells the end of a job in the status of its run, where that still says "training", or that some peer was lost.

    Args:
        folder: of the verdicts, in which the run has told where its status lies.
        pids: of the job's processes; a status that another process wrote is not theirs.
        code: exit code of the job.
        reason: a sentence.
    """
    file = folder / shutdown.STATUS
    with contextlib.suppress(RunError):
        path = local_path(file.read_text()) if file.exists() else None
        if path is not None and path.exists():
            found = status.read(path)
            knows_less = found.exit_code == exit_codes.RETRY and found.state == "failed" and code in exit_codes.KILLED
            if (found.state in status.RUNNING or knows_less) and found.pid in pids:
                status.write(path, dataclasses.replace(found, state="failed", reason=reason, exit_code=code))
