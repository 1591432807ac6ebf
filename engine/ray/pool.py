"""Runs jobs in actors on the nodes of a Ray cluster, as `engine/datasets/pool.py` runs them in processes of a machine.

A job whose worker or node is lost is given to another worker, and the worker is replaced if the cluster has room. Ray's
own health checks find a lost node, within half a minute by default. The results do not depend on the workers.
"""

import os
import pickle
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.base.errors import ConfigError, DataError
from engine.datasets.given import with_inner
from engine.datasets.pool import MAX_PROCESSES, JobFunction, ProcessError, ReportProgress, pickled
from engine.ray.connection import connect
from engine.ray.worker import Answer, Setup, Worker

TRIES = 3  # workers that may end while they do one job, or one after the other as they start
START_S = 300.0  # for the first worker, in a cluster that starts machines on demand
POLL_S = 0.5  # between two questions for the progress of a worker
SHARED = ("CONVOY_", "JAX_", "XLA_")  # beginnings of the variables that workers take over


@dataclass(frozen=True)
class RayPool:
    """Workers on the nodes of a Ray cluster, each with one CPU, or with one GPU.

    Attributes:
        address: HOST:PORT of the cluster; None: as `connect` finds it.
        workers: number of workers; None: as many as the cluster has CPUs, or GPUs.
        devices: whether each worker uses a GPU, if the cluster has any. Other workers use JAX on the CPU.
        start_s: seconds to wait for the first worker.
    """

    address: str | None = None
    workers: int | None = None
    devices: bool = False
    start_s: float = START_S

    def count(self, jobs: int, usual: int | None = None) -> int:
        if self.workers is not None and not 1 <= self.workers <= MAX_PROCESSES:
            raise ConfigError(f"processes = {self.workers}: allowed is a whole number from 1 to {MAX_PROCESSES}.")
        found = connect(self.address).cluster_resources()
        room = int(found.get(self._unit(found), 0))
        return max(1, min(self.workers or usual or room, jobs))

    def run[J, R](
        self, function: JobFunction[J, R], jobs: Sequence[J], workers: int, report: ReportProgress
    ) -> Generator[tuple[int, R]]:
        ray = connect(self.address)
        # With the classes of a script or a notebook, which workers cannot import.
        code = pickled(function, function.source, ray.cloudpickle.dumps)
        unit = self._unit(ray.cluster_resources())
        environment = {name: value for name, value in os.environ.items() if name.startswith(SHARED)}
        if unit == "CPU":
            environment["JAX_PLATFORMS"] = "cpu"
        paths = [os.path.abspath(path or os.curdir) for path in sys.path]
        files = [str(one.paths[0]) for one in with_inner(function.source) if one.paths]
        setup = Setup(os.getcwd(), paths, environment, [path for path in files if os.path.exists(path)])
        options = {"max_concurrency": 2, "num_cpus": 1, "num_gpus": int(unit == "GPU")}
        actors = _Actors(ray, ray.remote(Worker).options(**options), (setup, ray.put(code)), self.start_s)
        try:
            yield from actors.run(jobs, workers, report)
        finally:
            actors.close()

    def _unit(self, resources: Mapping[str, float]) -> str:
        """Returns the resource of which each worker has one."""
        return "GPU" if self.devices and resources.get("GPU") else "CPU"


@dataclass(eq=False)
class _Actor:
    """A worker, and what it does."""

    handle: Any
    started: bool = False
    job: int | None = None
    is_asked: bool = False
    """Whether it has not answered yet how far its job is."""
    ask_at: float = 0.0


@dataclass(frozen=True)
class _Call:
    """A call that has not been answered."""

    actor: _Actor
    answered: Callable[[_Actor, Any], None]
    lost: Callable[[_Actor, Exception], None]


@dataclass
class _Jobs:
    """The jobs of a run, and how far they are."""

    jobs: Sequence[Any]
    report: ReportProgress
    waiting: deque[int] = field(default_factory=deque)
    results: list[tuple[int, Any]] = field(default_factory=list)
    """Those that are not yielded yet."""
    losses: Counter[int] = field(default_factory=Counter)
    """Number of a job -> workers that ended while they did it."""
    reported: Counter[int] = field(default_factory=Counter)
    """Number of a job -> its examples that were reported. A job that is done again reports only those after them."""

    def progress(self, job: int, examples: int) -> None:
        if (new := examples - self.reported[job]) > 0:
            self.reported[job] = examples
            self.report(new)


class _Actors:
    """The workers of one run.

    Args:
        ray: the module, connected.
        template: creates an actor.
        arguments: those of `Worker.start`.
        start_s: seconds to wait for the first worker.
    """

    def __init__(self, ray: Any, template: Any, arguments: tuple[Any, ...], start_s: float):
        self._ray, self._template, self._arguments, self._start_s = ray, template, arguments, start_s
        self._actors: list[_Actor] = []
        self._calls: dict[Any, _Call] = {}  # reference of a result -> its call
        self._failed_starts = 0  # since one succeeded

    def run(self, jobs: Sequence[Any], workers: int, report: ReportProgress) -> Iterator[tuple[int, Any]]:
        """Yields (index, result) of each job when it is done."""
        self._work = work = _Jobs(jobs, report, deque(range(len(jobs))))
        for _ in range(workers):
            self._add()
        left, wait_until = len(jobs), time.monotonic() + self._start_s
        while left:
            ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=POLL_S)
            for reference in ready:
                self._take(reference)
            yield from work.results
            left -= len(work.results)
            work.results.clear()
            if any(actor.started for actor in self._actors):
                wait_until = time.monotonic() + self._start_s
            elif time.monotonic() > wait_until:
                raise self._no_room()
            self._ask()

    def close(self) -> None:
        """Ends all workers."""
        for actor in self._actors:
            self._kill(actor)
        self._actors.clear()

    def _add(self) -> None:
        actor = _Actor(self._template.remote())
        self._actors.append(actor)
        self._call(actor, actor.handle.start.remote(*self._arguments), self._started, self._start_failed)

    def _call(self, actor: _Actor, reference: Any, *handlers: Callable[[_Actor, Any], None]) -> None:
        self._calls[reference] = _Call(actor, *handlers)

    def _take(self, reference: Any) -> None:
        """Receives the answer of a call."""
        call = self._calls.pop(reference)
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            call.lost(call.actor, error)
            return
        if isinstance(answer, Answer) and answer.error is not None:
            raise answer.error
        call.answered(call.actor, answer)

    def _started(self, actor: _Actor, answer: Answer) -> None:
        actor.started, self._failed_starts = True, 0
        self._assign()

    def _start_failed(self, actor: _Actor, error: Exception) -> None:
        self._failed_starts += 1
        if "ModuleNotFoundError" in str(error):
            raise DataError(
                f"a node of the Ray cluster cannot load the code ({_reason(error)}). Install the same version of the "
                "engine there, or start Ray with the PYTHONPATH of this command."
            ) from error
        if self._failed_starts >= TRIES:
            raise ProcessError(
                f"{TRIES} workers of the Ray cluster ended as they started ({_reason(error)}). Run the same command "
                "again; `ray status` shows the nodes."
            ) from error
        self._replace(actor)

    def _assign(self) -> None:
        """Gives waiting jobs to idle workers."""
        for actor in self._actors:
            if actor.started and actor.job is None and self._work.waiting:
                actor.job, actor.ask_at = self._work.waiting.popleft(), time.monotonic() + POLL_S
                reference = actor.handle.do.remote(pickle.dumps(self._work.jobs[actor.job]))
                self._call(actor, reference, self._done, self._lost)

    def _done(self, actor: _Actor, answer: Answer) -> None:
        assert actor.job is not None
        self._work.progress(actor.job, answer.examples)
        self._work.results.append((actor.job, pickle.loads(answer.pickled)))
        actor.job = None
        self._assign()

    def _lost(self, actor: _Actor, error: Exception) -> None:
        """Gives the job of a worker that has ended, or whose node is lost, to another one."""
        job = actor.job
        assert job is not None
        self._work.losses[job] += 1
        if self._work.losses[job] >= TRIES:
            raise ProcessError(
                f"{TRIES} workers of the Ray cluster ended, one after the other, while they did the same job "
                f"({self._work.jobs[job]}): {_reason(error)}. If its examples need more memory than a node has, use "
                "fewer --processes; then run the same command again."
            ) from error
        self._work.waiting.appendleft(job)
        self._replace(actor)
        self._assign()

    def _replace(self, actor: _Actor) -> None:
        self._actors.remove(actor)
        self._kill(actor)  # it may be cut off, and work still
        self._add()

    def _kill(self, actor: _Actor) -> None:
        self._calls = {reference: call for reference, call in self._calls.items() if call.actor is not actor}
        self._ray.kill(actor.handle)

    def _ask(self) -> None:
        """Asks the workers how far their jobs are, each once in a while."""
        now = time.monotonic()
        for actor in self._actors:
            if actor.job is not None and not actor.is_asked and now >= actor.ask_at:
                actor.is_asked, actor.ask_at = True, now + POLL_S
                self._call(actor, actor.handle.examples.remote(), self._progressed, lambda actor, error: None)

    def _progressed(self, actor: _Actor, examples: int) -> None:
        actor.is_asked = False
        if actor.job is not None:
            self._work.progress(actor.job, examples)

    def _no_room(self) -> ProcessError:
        total, free = (
            found.get("CPU", 0) for found in (self._ray.cluster_resources(), self._ray.available_resources())
        )
        return ProcessError(
            f"no worker of the Ray cluster has started within {self._start_s:g} s: {free:g} of its {total:g} CPUs are "
            "free. Wait until other jobs end, or add nodes; `ray status` shows both."
        )


def _reason(error: Exception) -> str:
    """Returns the sentence of an error of Ray that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    chosen = [line for line in lines if "Error: " in line or "memory" in line or "node" in line.lower()]
    found = (chosen or lines or [type(error).__name__])[-1]
    return found.partition(" Some common causes")[0].removeprefix("The actor is dead because ").rstrip(".")
