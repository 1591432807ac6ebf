"""One process of a job, on a node of Ray: the actor that starts it, follows it, and dies with it.

The command runs in a child process of the actor, since Ray's own process has threads, signal handlers and limits of its
own. The kernel kills the child when the actor dies, which dies with its node's raylet and with the driver of the job.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from engine.base.files import temporary_folder
from engine.cluster import verdict
from engine.cluster.exit_status import ExitStatus
from engine.cluster.shutdown import RunThread
from engine.launch import local, timeouts
from engine.launch.job import Job, reserved_port
from engine.launch.local import Outcome, ProcessExit
from engine.launch.signals import Signals

_NEWS_S = 1.0  # longest wait for news, which also shows the driver that this process answers
_LARGEST = 16 << 20  # characters of output that wait for a driver that does not fetch them


@dataclass(frozen=True)
class Command:
    """What every process of a job runs."""

    words: Sequence[str]  # after the Python interpreter of the node
    variables: Mapping[str, str]
    """Variables in addition to those of the node."""
    cwd: str
    processes: int | None  # None: a single one
    coordinator: str  # HOST:PORT
    token: str  # of the lease of the run


@dataclass(frozen=True)
class News:
    """What has happened since the last call."""

    texts: list[tuple[bool, str]]  # whether it is standard output, and whole lines
    dropped: int  # characters of output that the driver has not fetched in time
    step: int | None
    status: str  # path of the status file of the run, "" until it is known
    pid: int
    now: float  # monotonic clock of this node
    outcome: Outcome | None  # once the process has ended


class RemoteProcess:
    """The actor. Its methods are called in threads, at most a few at a time."""

    def __init__(self, index: int):
        self._index = index
        self._signals = Signals()
        self._changed = threading.Condition()
        self._texts: list[tuple[bool, str]] = []
        self._waiting = self._dropped = 0  # characters
        self._outcome: Outcome | None = None
        self._resources = ExitStack()
        self._folder = self._resources.enter_context(temporary_folder("launch"))
        self._job = Job(self._folder, self._write, lambda text: self._write(None, f"{text}\n"))

    def node(self) -> str:
        """Returns the id of the node on which it runs."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def reserve(self, host: str) -> int:
        """Returns a port of this node for the coordinator, which is process 0."""
        return self._resources.enter_context(reserved_port(host))

    def start(self, command: Command) -> None:
        """Starts the process."""
        # The kernel kills the process when the thread that has started it ends.
        RunThread(self._run, "process", (command,)).start()

    def news(self) -> News:
        """Returns what has happened since the last call, as soon as there is something, or after a second."""
        with self._changed:
            self._changed.wait_for(lambda: self._texts or self._outcome, _NEWS_S)
            texts, self._texts, self._waiting = self._texts, [], 0
            dropped, self._dropped = self._dropped, 0
            outcome = self._outcome
        status = self._folder / verdict.STATUS
        return News(
            texts=texts,
            dropped=dropped,
            step=verdict.read_steps(self._folder).get(self._index),
            status=os.fsdecode(status.read_bytes()) if status.exists() else "",
            pid=self._job.pids.get(self._index, 0),
            now=time.monotonic(),
            outcome=outcome,
        )

    def signal(self, number: int) -> None:
        """Passes a signal on to the process."""
        self._signals.receive(number)

    def kill(self) -> None:
        """Kills the process."""
        self._job.kill()

    def _write(self, stream: TextIO | None, text: str | bytes) -> None:
        lines = text if isinstance(text, str) else text.decode(errors="replace")
        with self._changed:
            if self._waiting > _LARGEST:
                self._dropped += len(lines)
                return
            self._texts.append((stream is sys.stdout, lines))
            self._waiting += len(lines)
            self._changed.notify_all()

    def _run(self, command: Command) -> None:
        outcome = self._end(command)
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    def _end(self, command: Command) -> Outcome:
        """Runs the process to its end."""
        index, variables = self._index, {**os.environ, **command.variables}
        environment = local.environment(
            variables, index, command.processes, command.coordinator, self._folder, command.token
        )
        words = [sys.executable, *command.words]
        try:
            return local.run_here(
                self._job, words, {index: environment}, signals=self._signals, cwd=command.cwd, grace_s=timeouts.TIDY_S
            )
        except OSError as error:
            missing = "" if Path(command.cwd).is_dir() else " All nodes must see the folder in which it is started."
            text = f"it cannot be started in {command.cwd}: {error.strerror or error}.{missing}"
            failed = ProcessExit(index, ExitStatus.USER_ERROR, time.monotonic(), 0, text, explanation=text)
            return Outcome([failed], set(), set(), False)


def remote_class(ray: ModuleType) -> Any:
    """Returns the class as an actor of Ray."""
    return ray.remote(RemoteProcess)
