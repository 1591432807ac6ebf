"""The owner of a lease: a process, identified so that other processes can check whether it is alive.

A pid alone is not enough: pids are reused, and each container starts at 1. An owner is a pid with its start time (ticks
since boot), the boot id and the pid namespace. Where these cannot be compared, `is_alive` returns None. A token
identifies a job across its restarts; the supervisor passes it to its processes in the environment.
"""

import os
import socket
import uuid
from dataclasses import dataclass, field

from engine.base.host import HOST_NAMESPACE, boot_id, machine_id, pid_exists, pid_namespace, start_ticks
from engine.base.json_text import now

TOKEN = "CONVOY_RUN_TOKEN"
"""Name of the environment variable with the token of a job, the same for all its processes and restarts."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """One process; unknown values are empty text. The defaults are those of this process."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)  # unique for each time a lease is taken
    token: str = field(default_factory=lambda: os.environ.get(TOKEN, ""))
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    since: str = field(default_factory=now)  # wall clock of its host, for messages; never compared
    started: str = field(default_factory=lambda: start_ticks(os.getpid()) or "")  # ticks from the boot to its start
    boot: str = field(default_factory=boot_id)
    namespace: str = field(default_factory=pid_namespace)
    machine: str = field(default_factory=machine_id)
    folder: str = ""  # absolute path of the folder with its lease
    identity: str = ""  # identity of that folder (`lease_copy.py`)

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, since {self.since}"


def is_alive(owner: Owner) -> bool | None:
    """Whether the process of `owner` still runs; None if this process cannot know."""
    here = Owner()
    if here.boot and here.namespace and (here.boot, here.namespace) == (owner.boot, owner.namespace):
        return _runs_here(owner)
    without_boot_ids = not here.boot and not owner.boot  # both hosts run another system than Linux
    if without_boot_ids and here.host == owner.host and not pid_exists(owner.pid):
        return False  # the pid is unused, so the owner has ended; a used pid may be another process by now
    same_machine = here.machine and (here.host, here.machine) == (owner.host, owner.machine)
    if same_machine and here.namespace == owner.namespace == HOST_NAMESPACE:
        return False  # outside of containers, another boot id means that this machine has rebooted
    return None


def _runs_here(owner: Owner) -> bool | None:
    if not pid_exists(owner.pid):
        return False
    started = start_ticks(owner.pid)
    return None if started is None else started == owner.started
