"""`convoy launch ray`: runs a command in several processes on the nodes of a Ray cluster.

Each process belongs to an actor (`process.py`). Nothing here waits for Ray alone: every call runs in a thread, and the
main thread waits for messages with a time limit. Ray may hang when a node is lost (ray-project/ray #22349), so a
process also counts as lost if its actor has not answered for a while.
"""

import contextlib
import functools
import os
import queue
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import ModuleType
from typing import Any

from engine.base.errors import first_line
from engine.cluster import output
from engine.cluster.exit_status import ExitStatus
from engine.cluster.shutdown import RunThread
from engine.launch import local, postmortem, timeouts
from engine.launch.local import ProcessExit
from engine.launch.signals import Signals
from engine.ray.connection import call, connect
from engine.ray.exits import Exits
from engine.ray.nodes import Nodes
from engine.ray.placement import AGAIN, NodesMissing, RayJob, place, remove
from engine.ray.process import Command, News, remote_class
from engine.run.owner import TOKEN

PASSED_ON = ("CONVOY_", "JAX_", "XLA_", "LIBTPU_", "NCCL_")
"""Prefixes of the variables of this process that the processes get."""
_START_S = 120.0  # for the workers of Ray, which import the engine from a cold disk
SILENT_S = 20.0  # without an answer, until a process is lost; its actor answers every second
UNREACHABLE_S = 6.0  # without a connection, likewise: Ray itself takes 15 s or more to state that a node is dead
_RECONNECT_S = 0.5  # between two attempts to connect
_KILL_S = 10.0  # for processes that are killed at the end
_CLEAN_S = 10.0  # for Ray to end the actors


def launch(command: Sequence[str], job: RayJob) -> int:
    """Runs a command on a Ray cluster once, like `local.launch`, and returns its exit code.

    Args:
        command: as for `local.launch`. Its first word, the Python interpreter, is replaced by that of each node.
        job: what it needs.

    Raises:
        ConfigError: there is no such cluster, or it is too small.
        NodesMissing: the resources of the cluster are in use.
    """
    with Signals() as signals:
        exits = RayAttempts(job).run(command, signals)
    local.report(exits)
    return exits[0].code


class RayAttempts:
    """The attempts of one job, for `supervise`.

    Args:
        job: what each of them needs.
    """

    def __init__(self, job: RayJob):
        self._job = job
        self._lost = ""  # sentence about the node that the latest attempt has lost

    def run(self, command: Sequence[str], signals: Signals) -> list[ProcessExit]:
        """Runs the command once and returns how its processes ended, failures first."""
        ray = connect(self._job.address)
        group = place(ray, self._job, lambda: signals.received, self._lost)
        if group is None:
            code = 128 + signals.received[0] if signals.received else ExitStatus.RETRY
            return [ProcessExit(0, code, time.monotonic(), 0, "stopped before it was placed on the cluster.")]
        nodes = Nodes(ray)
        attempt = _Attempt(ray, self._job, nodes, group)
        try:
            exits = attempt.run(command, signals)
        finally:
            attempt.close()
            nodes.close()
            remove(group)
        self._lost = next((text for text in attempt.exits.lost_nodes.values()), "")
        return exits


def passed_on() -> dict[str, str]:
    """Returns the variables of this process that the processes get."""
    found = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    if paths := os.environ.get("PYTHONPATH"):
        found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths.split(os.pathsep) if path)
    return found


class _Attempt:
    """One attempt. Threads put functions into a queue, which the main thread calls."""

    def __init__(self, ray: ModuleType, job: RayJob, nodes: Nodes, group: Any):
        self._ray, self._job, self._nodes = ray, job, nodes
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._coordinator: Future[str] = Future()
        self._closed = False
        self.exits = Exits(job.processes)
        self._actors = call(lambda: self._start_actors(group), _START_S)
        self._heard = {i: time.monotonic() + _START_S for i in range(job.processes)}
        """Index -> when its actor has answered last."""
        self._unreachable: dict[int, float] = {}  # index -> since when there is no connection to its actor

    def _start_actors(self, group: Any) -> list[Any]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        job, actor = self._job, remote_class(self._ray)
        return [
            actor.options(
                num_cpus=job.bundle.get("CPU", 0),
                num_gpus=job.gpus,
                resources=dict(job.resources),
                max_concurrency=8,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i),
            ).remote(i)
            for i in range(job.processes)
        ]

    def run(self, command: Sequence[str], signals: Signals) -> list[ProcessExit]:
        """Runs the command to its end."""
        variables = {**passed_on(), **self._job.variables}
        token = os.environ.get(TOKEN) or uuid.uuid4().hex
        for i in range(self._job.processes):
            RunThread(self._follow, f"ray {i}", (i, command[1:], variables, token)).start()
        with signals.forwarded_to(lambda number: self._calls.put(functools.partial(self._send, "signal", number))):
            self._wait()
        exits, reason = self.exits.in_order()
        if reason and self.exits.status:
            pids = [ended.pid for ended in exits]
            postmortem.correct(self.exits.status, pids, exits[0].code, reason)
        return exits

    def _wait(self) -> None:
        """Waits until every process has ended or is lost. After the first failure, the rest is killed soon."""
        kill_at = give_up_at = float("inf")
        while self.exits.running:
            with contextlib.suppress(queue.Empty):
                self._calls.get(timeout=timeouts.STOPPED_POLL_S)()
            now = time.monotonic()
            if self._nodes.head_lost:
                self._send("kill")  # which needs no head
                raise NodesMissing(f"{self._nodes.head_lost} {AGAIN}")
            for i in self.exits.running:
                if text := self._nodes.lost(i):
                    self.exits.lose_node(i, text)
                elif now - self._heard[i] > SILENT_S or now - self._unreachable.get(i, now) > UNREACHABLE_S:
                    silent = f"has not answered for {now - self._heard[i]:.0f} s"
                    self.exits.lose_node(i, f"{self._nodes.text(i)}, which runs process {i}, {silent}.")
            if self.exits.failed and kill_at == float("inf"):
                kill_at = now + timeouts.FAILURE_GRACE_S
            if now > kill_at and give_up_at == float("inf"):
                give_up_at = now + _KILL_S
                self.exits.killed.update(self.exits.running)
                self._send("kill")
            if now > give_up_at:
                for i in self.exits.running:
                    self.exits.lose(i, ExitStatus.SIGKILL, "")

    def _send(self, method: str, *arguments: object) -> None:
        """Calls a method of the actors of all running processes, without waiting for an answer."""

        def send() -> None:
            for i in self.exits.running:
                getattr(self._actors[i], method).remote(*arguments)

        RunThread(send, method, otherwise="A process on another node may not have received a signal.").start()

    def _follow(self, i: int, words: Sequence[str], variables: dict[str, str], token: str) -> None:
        """In a thread: starts the process `i`, and reports what happens to it."""
        ray, actor = self._ray, self._actors[i]
        try:
            node = ray.get(actor.node.remote(), timeout=_START_S)
            self._nodes.place(i, node)
            if i == 0:
                host = self._nodes.address(0)
                self._coordinator.set_result(f"{host}:{ray.get(actor.reserve.remote(host), timeout=_START_S)}")
            coordinator = self._coordinator.result(_START_S)
            command = Command(words, variables, os.getcwd(), self._job.processes, coordinator, token)
            ray.get(actor.start.remote(command), timeout=_START_S)
            self._heard[i] = time.monotonic()
            outcome = None
            while outcome is None and not self._closed:
                try:
                    news: News = ray.get(actor.news.remote(), timeout=2 * SILENT_S)
                except ray.exceptions.GetTimeoutError:
                    continue
                except ray.exceptions.ActorUnavailableError:  # the connection is broken: it may be the network
                    self._unreachable.setdefault(i, time.monotonic())
                    time.sleep(_RECONNECT_S)
                    continue
                self._unreachable.pop(i, None)
                self._calls.put(functools.partial(self._take, i, news, time.monotonic()))
                outcome = news.outcome
        except Exception as error:
            lost = self._nodes.wait_until_lost(i) if not self._closed else ""
            self._calls.put(functools.partial(self._fail, i, lost, error))

    def _take(self, i: int, news: News, received: float) -> None:
        self._heard[i] = received
        for is_result, text in news.texts:
            output.write(sys.stdout if is_result else sys.stderr, text)
        if news.dropped:
            output.show(f"convoy launch: {news.dropped} characters of the output of process {i} are missing.")
        self.exits.take(i, news, received)

    def _fail(self, i: int, lost: str, error: Exception) -> None:
        if i not in self.exits.running:
            return
        if lost:
            self.exits.lose_node(i, lost)
            return
        out_of_memory = isinstance(error, self._ray.exceptions.OutOfMemoryError)
        reason = (str(error).strip().splitlines() or [first_line(error)])[-1].strip()
        text = f"the Ray worker of process {i} has ended, on {self._nodes.text(i)}: {reason}"
        self.exits.lose(i, 128 + signal.SIGKILL, text, out_of_memory)

    def close(self) -> None:
        """Ends the actors."""
        self._closed = True

        def end() -> None:
            for actor in self._actors:
                self._ray.kill(actor)

        try:
            call(end, _CLEAN_S)
        except Exception:
            return  # a cluster that is gone; the actors end with this process
