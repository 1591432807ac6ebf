"""`status.json`: what a run is doing and how it ended, for scripts and schedulers.

`observe/reporter.py` writes it during training; a launcher corrects it after a kill (`launch/postmortem.py`). States
of a live process: starting, training, evaluating. States after the end: done, failed (the exit code says whether to
restart), preempted (restart it), interrupted (the user stopped it). A killed process leaves one of the first three.
"""

import dataclasses
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from engine.base import json_text
from engine.base.errors import RunError
from engine.base.json_text import now
from engine.cluster.exit_status import ExitStatus
from engine.run.lease import ALWAYS_GRANTED, Lease, LeaseLost, acquire, current_owner
from engine.run.owner import is_alive

RUNNING = ("starting", "training", "evaluating")
KILLED = int(ExitStatus.SIGKILL)  # exit code of an attempt whose end is not known: its run is started again
ENDED = ("done", "failed", "preempted", "interrupted")


@dataclass(frozen=True, kw_only=True)
class Status:
    """The status of a run at one moment. Immutable: use `dataclasses.replace` for the next status.

    Raises:
        RunError: `state` is not in RUNNING or ENDED.
    """

    state: str  # one of RUNNING or ENDED
    step: int = 0  # completed updates
    total_steps: int | None = None  # None while it is not known yet
    reason: str = ""  # why it ended, a sentence
    exit_code: int | None = None  # None while it runs
    slowest: str = ""  # sentence: which process slows down the run, and why; "" if none
    metrics: Mapping[str, float] = field(default_factory=dict)  # latest value by name: {"heldout/accuracy": 0.98}
    attempt: int = 1  # number of this start of the run
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=now)  # this attempt, ISO time in UTC
    updated: str = ""  # set by write()

    def __post_init__(self):
        if self.state not in RUNNING + ENDED:
            raise RunError(f"state {self.state!r} is unknown. Allowed: {', '.join(RUNNING + ENDED)}.")
        object.__setattr__(self, "metrics", {str(name): float(value) for name, value in self.metrics.items()})


_SHAPE = {
    "state": frozenset(RUNNING + ENDED), "step": int, "total_steps?": int | None, "exit_code?": int | None,
    "reason?": str, "slowest?": str, "metrics?": {str: float}, "attempt": int, "host": str, "pid": int,
    "started": str, "updated?": str,
}  # fmt: skip


def write(path: Path, status: Status, lease: Lease = ALWAYS_GRANTED) -> Status:
    """Writes `status` atomically, with `updated` set to now; returns what was written.

    It waits for the disk, so during training only the thread of `observe/writer.py` calls it.

    Raises:
        LeaseLost: another job has taken over the run; its status stays.
        RunError: the file cannot be written.
    """
    status = dataclasses.replace(status, updated=now())
    lease.replace_text(path, json_text.dumps(dataclasses.asdict(status), indent=2) + "\n")
    return status


def missing_end(path: Path) -> str:
    """Returns a sentence if the last attempt has ended without writing how; "" if it has not, or if this is not known.

    A killed process leaves a status such as "training". Its lease shows whether it is alive.

    Raises:
        RunError: the file is missing or not a valid status.
    """
    found, owner = read(path), current_owner(path.parent / "lease")
    if found.state not in RUNNING or owner is None or (owner.pid, owner.host) != (found.pid, found.host):
        return ""
    if is_alive(owner) is not False:
        return ""
    return (
        f"attempt {found.attempt} (process {found.pid} on host {found.host}) ended without a verdict after step "
        f"{found.step}: it was killed, or its code ended the process. The same command resumes from the newest "
        "checkpoint."
    )


def complete_missing_end(path: Path) -> str:
    """Does what `missing_end` does, and writes the end to the status, as that of a killed process.

    It holds the lease meanwhile, so that it does not change the status of an attempt that starts. Where the directory
    cannot be written, the status stays.
    """
    text = missing_end(path)
    if text:
        with suppress(RunError, LeaseLost):
            last = read(path)
            lease = acquire(path.parent / "lease", grace_s=0.0)
            try:
                if read(path) == last:
                    write(path, dataclasses.replace(last, state="failed", reason=text, exit_code=KILLED), lease)
            finally:
                lease.release()
    return text


def read(path: Path) -> Status:
    """Reads a status. Ignores unknown fields, so that the status of a newer version can be read.

    Raises:
        RunError: the file is missing or not a valid status.
    """
    try:
        return Status(**json_text.read(path, _SHAPE))
    except FileNotFoundError as error:
        raise RunError(f"{path}: file not found, so no run was started here. Check the directory.") from error
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise RunError(
            f"{path}: is not the status of a run ({error}). "
            "Remove this file to resume the run; attempts are then counted from 1 again."
        ) from error
