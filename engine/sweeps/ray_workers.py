"""`convoy sweep --on=ray`: each run of a sweep belongs to an actor of a Ray cluster, with the resources of a trial.

The actors end with the driver of the sweep, and their runs with them, so a driver that is started again finds none
that still runs: it starts the same jobs, which resume from their checkpoints. The name of an actor begins with its
run, so a job waits until the actor of a killed driver has ended.
"""

import contextlib
import os
import queue
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.cluster import output
from engine.cluster.exit_status import ExitStatus
from engine.cluster.shutdown import RunThread
from engine.ray.connection import call, connect
from engine.ray.launch import SILENT_S, UNREACHABLE_S, passed_on
from engine.ray.placement import RayJob, room
from engine.ray.process import Command, News, remote_class
from engine.sweeps import timeouts
from engine.sweeps.workers import Job

NAMESPACE = "convoy"
"""Namespace of Ray in which the actors have the paths of their runs as names."""
_SEPARATOR = "\n"  # between the path of a run and a number: Ray may cancel an actor that takes the name of a dying one
_CALL_S = 20.0  # for an answer of Ray
_FORMER_S = 60.0  # for the actor of a killed driver to end; it takes a second
_RETRY_S = 0.5  # between two attempts
_NODES_S = 5.0  # for which a number of slots is kept
_SHOWN = 15  # lines of the output of a failed job that are printed


class RayWorkers:
    """Implements `Workers` on a Ray cluster.

    Args:
        address: HOST:PORT of the cluster; None as for `ray.connection.connect`.
        most: largest number of jobs that run at the same time; None: as many as the cluster has the resources for.
        logs: the folder of the output of each job, `NAME.log`; None keeps no output.
        cpus, gpus, resources: of each job.

    Raises:
        ConfigError: there is no such cluster, or a number is not allowed.
    """

    poll_s, outlive_driver = timeouts.RAY_POLL_S, False

    def __init__(
        self,
        address: str | None = None,
        *,
        most: int | None = None,
        logs: Path | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        resources: Mapping[str, float] | None = None,
    ):
        self._trial = RayJob(1, cpus=cpus, gpus=gpus, resources=resources or {}, address=address)
        self._most, self._logs = most, logs
        self._ray = connect(address)
        self._running: dict[str, _Running] = {}
        self._ended: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._slots, self._counted = 0, float("-inf")

    @property
    def slots(self) -> int:
        """Number of jobs for which the nodes that are alive have the resources, at least one."""
        if time.monotonic() - self._counted > _NODES_S:
            with contextlib.suppress(Exception):  # a cluster that does not answer keeps its former number
                self._slots = room(call(self._ray.nodes, _CALL_S), self._trial)
                self._counted = time.monotonic()
        return max(1, self._slots if self._most is None else min(self._slots, self._most))

    def start(self, job: Job) -> None:
        """Starts a job. It waits for the actor that a killed driver has left for the same run, which ends soon."""
        running = self._running[job.name] = _Running()
        RunThread(self._follow, job.name, (job, running)).start()

    def ended(self) -> dict[str, int]:
        """Returns the exit codes of the jobs that have ended since the last call; 137 for one whose node was lost."""
        found: dict[str, int] = {}
        with contextlib.suppress(queue.Empty):
            while True:
                name, code = self._ended.get_nowait()
                found[name] = code
                self._running.pop(name, None)
        return found

    def stop(self, name: str) -> None:
        """Asks a running job to save and end."""
        if running := self._running.get(name):
            running.stopped.set()

    def close(self) -> None:
        """Ends the actors that still run, and disconnects."""
        for running in self._running.values():
            running.closed.set()
        actors = [running.actor for running in self._running.values() if running.actor is not None]
        with contextlib.suppress(Exception):  # a cluster that is gone
            call(lambda: [self._ray.kill(actor) for actor in actors], _CALL_S)
            call(self._ray.shutdown, _CALL_S)

    def _follow(self, job: Job, running: "_Running") -> None:
        """In a thread: runs a job to its end."""
        lines: deque[str] = deque(maxlen=_SHOWN)
        try:
            code = self._run(job, running, lines)
        except Exception as error:
            code = ExitStatus.RETRY if running.stopped.is_set() else 128 + signal.SIGKILL
            if not running.closed.is_set():
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
                output.show(
                    f"{job.name}: its worker on the Ray cluster has ended ({reason}). It will be started again."
                )
        if code not in (ExitStatus.DONE, ExitStatus.RETRY, 128 + signal.SIGKILL):
            output.show("\n".join([f"{job.name}: the end of its output:", *lines]))
        if running.actor is not None:
            with contextlib.suppress(Exception):
                call(lambda: self._ray.kill(running.actor), _CALL_S)
        self._ended.put((job.name, code))

    def _run(self, job: Job, running: "_Running", lines: deque[str]) -> int:
        actor = running.actor = self._actor(job)
        words = ["-m", "engine.cli.main", *job.words]
        command = Command(words, passed_on(), os.getcwd(), None, "", uuid.uuid4().hex)
        node = actor.node.remote()
        while not self._get(node, _RETRY_S):  # it may wait for resources
            if running.stopped.is_set() or running.closed.is_set():
                return ExitStatus.RETRY
        self._ray.get(actor.start.remote(command), timeout=_CALL_S)
        heard, is_signalled = time.monotonic(), False
        while not running.closed.is_set():
            if running.stopped.is_set() and not is_signalled:
                is_signalled = True
                actor.signal.remote(int(signal.SIGTERM))
            news = self._news(actor, heard)
            if news is None:
                continue
            heard = time.monotonic()
            texts, ended = [text for _, text in news.texts], news.outcome and news.outcome.exits[0]
            if ended and ended.text:  # the error of a launched process, which its launcher prints
                texts.append(f"{ended.text}\n")
            self._keep(job, texts)
            lines.extend(line for text in texts for line in text.splitlines())
            if ended:
                return ended.code
        return ExitStatus.RETRY

    def _keep(self, job: Job, texts: Sequence[str]) -> None:
        """Appends output of a job to its log."""
        if self._logs is not None and texts:
            self._logs.mkdir(parents=True, exist_ok=True)
            with open(self._logs / f"{job.name}.log", "a") as file:
                file.writelines(texts)

    def _news(self, actor: Any, heard: float) -> News | None:
        """Returns news of a job; None if there is no connection at present.

        Raises:
            TimeoutError: there has been none for too long.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(actor.news.remote(), timeout=SILENT_S)
        except (errors.ActorUnavailableError, errors.GetTimeoutError):
            if time.monotonic() - heard > UNREACHABLE_S:
                raise TimeoutError(f"its node has not answered for {time.monotonic() - heard:.0f} s") from None
            time.sleep(_RETRY_S)
            return None

    def _get(self, result: Any, timeout_s: float) -> Any:
        try:
            return self._ray.get(result, timeout=timeout_s)
        except self._ray.exceptions.GetTimeoutError:
            return None

    def _actor(self, job: Job) -> Any:
        """Returns an actor, once none of a killed driver runs for the same run."""
        trial, path = self._trial, str(Path(job.run).absolute())
        end = time.monotonic() + _FORMER_S
        while path in (found.partition(_SEPARATOR)[0] for found in call(self._names, _CALL_S)):
            if time.monotonic() > end:
                raise TimeoutError(f"another actor still runs for {path}")
            time.sleep(_RETRY_S)
        options: dict[str, Any] = dict(
            num_cpus=trial.cpus, num_gpus=trial.gpus, resources=dict(trial.resources), max_concurrency=8,
            name=f"{path}{_SEPARATOR}{uuid.uuid4().hex}", namespace=NAMESPACE,
        )  # fmt: skip
        return call(lambda: remote_class(self._ray).options(**options).remote(0), _CALL_S)

    def _names(self) -> list[str]:
        """Returns the names of the actors that run."""
        found = self._ray.util.list_named_actors(all_namespaces=True)
        return [actor["name"] for actor in found if actor["namespace"] == NAMESPACE]


class _Running:
    """What the driver knows about a job."""

    def __init__(self):
        self.actor: Any = None
        self.stopped = threading.Event()
        """Whether it was asked to save and end."""
        self.closed = threading.Event()
        """Whether its driver has stopped waiting for it."""
