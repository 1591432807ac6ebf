"""`status.json`: what a run is doing and how it ended, for scripts and schedulers.

The file is replaced in one piece. States of a live process: starting, training, evaluating. States of an ended one:
done, failed (the exit code says whether to restart), preempted (restart it), interrupted (the user stopped it). A
killed process leaves one of the first three, unless a launcher corrects it.
"""

import dataclasses
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.config.errors import RunError
from engine.run import json_text
from engine.run.json_text import now
from engine.run.lease import ALWAYS_GRANTED, Lease

RUNNING = ("starting", "training", "evaluating")
ENDED = ("done", "failed", "preempted", "interrupted")


@dataclass(frozen=True, kw_only=True)
class Status:
    """One moment of a run; `dataclasses.replace` makes the next one.

    Raises:
        RunError: `state` is none of the seven.
    """

    state: str  # one of RUNNING or ENDED
    step: int = 0  # completed updates
    total_steps: int | None = None  # None while it is not known yet
    reason: str = ""  # why it ended, a sentence
    exit_code: int | None = None  # None while it runs
    metrics: Mapping[str, float] = field(default_factory=dict)  # the latest of each name: {"heldout/accuracy": 0.98}
    attempt: int = 1  # which start of this run
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=now)  # this attempt, ISO time in UTC
    updated: str = ""  # set by write()

    def __post_init__(self):
        if self.state not in RUNNING + ENDED:
            raise RunError(f"state {self.state!r} is unknown. Allowed: {', '.join(RUNNING + ENDED)}.")


def write(path: Path, status: Status, lease: Lease = ALWAYS_GRANTED) -> Status:
    """Writes `status` with `updated` set to now, in one piece; returns what was written.

    It waits for the disk, so while the loop runs it belongs on the writer's thread.

    Raises:
        LeaseLost: another job has taken over the run; its status stays.
        RunError: the file cannot be written.
    """
    status = dataclasses.replace(status, updated=now())
    lease.replace_text(path, json_text.dumps(dataclasses.asdict(status), indent=2) + "\n")
    return status


def read(path: Path) -> Status:
    """Reads a status; fields that this version does not know are left out, so that a newer run can be read.

    Raises:
        RunError: there is no such file, or it is no status.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in dataclasses.fields(Status)}
        return Status(**{name: value for name, value in fields.items() if name in known})
    except FileNotFoundError as error:
        raise RunError(f"{path}: there is no status, so no run was started here. Check the directory.") from error
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, AttributeError, RunError) as error:
        raise RunError(
            f"{path}: is not the status of a run ({error}). "
            "Remove this one file to go on with the run; attempts are then counted from 1 again."
        ) from error
