"""Where the processes of a job run: a placement group of Ray with the resources of each process."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from engine.base.errors import ConfigError, ConvoyError
from engine.cluster.exit_status import ExitStatus
from engine.launch.cli_args import check_at_least
from engine.ray.connection import call

RESERVED = ("CPU", "GPU", "memory")
_POLL_S = 0.5  # between two checks for a signal or for the resources
_REMOVE_S = 5.0  # to give back the resources
_CALL_S = 20.0  # for an answer of Ray to a request that needs no resources


class NodesMissing(ConvoyError):
    """The cluster has no room for the job, at present or since it has lost a node."""

    exit_code = ExitStatus.RETRY
    from_outside = True


@dataclass(frozen=True)
class RayJob:
    """What a job asks of a Ray cluster.

    Raises:
        ConfigError: a number or a name is not allowed.
    """

    processes: int
    cpus: float = 1
    """CPUs, GPUs and other resources of each process, by the names that the nodes have."""
    gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    spread: bool = False
    """Whether each process needs a node of its own; else they share as few nodes as possible."""
    address: str | None = None
    """HOST:PORT of the cluster; None as for `connection.connect`."""
    wait_for_nodes_s: float = 30.0
    """How long a start, or a restart after the loss of a node, waits for the resources."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables of the processes."""

    def __post_init__(self):
        check_at_least("--processes", self.processes)
        for name, value in (("--cpus", self.cpus), ("--gpus", self.gpus), *self.resources.items()):
            if value < 0:
                raise ConfigError(f"{name} = {value:g}: allowed is a number from 0.")
        if reserved := next((name for name in self.resources if name in RESERVED), None):
            raise ConfigError(f"--resource {reserved}: is a resource of Ray's own. Use --cpus or --gpus.")

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of each process, as Ray names them."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: value for name, value in asked.items() if value} or {"CPU": 0.001}

    @property
    def text(self) -> str:
        """What is asked, such as "2 x CPU: 1, GPU: 8, each on a node of its own"."""
        each = ", ".join(f"{name}: {value:g}" for name, value in self.bundle.items())
        return f"{self.processes} x {each}{', each on a node of its own' if self.spread else ''}"


def place(ray: ModuleType, job: RayJob, stopped: Callable[[], object], lost: str) -> Any | None:
    """Returns a placement group that has its resources; None if `stopped` is true before that.

    Args:
        ray: the connected module.
        job: what is asked.
        stopped: whether this process was asked to stop.
        lost: which node the job has lost, "" if none.

    Raises:
        ConfigError: the cluster is too small.
        NodesMissing: its resources are in use, or a node is lost, and it does not change in time.
    """
    from ray.util.placement_group import placement_group

    strategy = "STRICT_SPREAD" if job.spread else "PACK"
    group = call(lambda: placement_group([job.bundle] * job.processes, strategy=strategy), _CALL_S)
    end = time.monotonic() + job.wait_for_nodes_s
    try:
        while not stopped():
            if call(lambda: group.wait(_POLL_S), _CALL_S):
                return group
            if time.monotonic() > end:
                raise _missing(call(ray.nodes, _CALL_S), job, lost)
    except TimeoutError as error:
        remove(group)
        raise NodesMissing(f"{error}.{lost and f' {lost}'} {AGAIN}") from error
    except BaseException:
        remove(group)
        raise
    remove(group)
    return None


AGAIN = "Checkpoints are intact; the same command continues the run."


def _missing(nodes: list[dict[str, Any]], job: RayJob, lost: str) -> ConvoyError:
    alive, fitting = sum(node["Alive"] for node in nodes), room(nodes, job)
    waited = f"within {job.wait_for_nodes_s:g} s"
    found = f"the job needs {job.text}, and the {alive} nodes of the cluster have room for {fitting} of them in all"
    if lost:
        return NodesMissing(f"{lost} No other node took its place {waited}: {found}. {AGAIN}")
    if fitting < job.processes:
        return ConfigError(f"{found}. Start more nodes (`ray start --address=...`), or ask for less.")
    return NodesMissing(f"{found}, but others use it, and it did not become free {waited}. {AGAIN}")


def room(nodes: Sequence[Mapping[str, Any]], job: RayJob) -> int:
    """Returns for how many processes of a job the nodes that are alive have resources, whether in use or not.

    Args:
        nodes: the return value of `ray.nodes`.
        job: what is asked.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    fits = [min(int(have.get(name, 0) // value) for name, value in job.bundle.items()) for have in alive]
    return sum(min(fit, 1) if job.spread else fit for fit in fits)


def remove(group: Any) -> None:
    """Gives the resources back."""
    from ray.util.placement_group import remove_placement_group

    try:
        call(lambda: remove_placement_group(group), _REMOVE_S)
    except Exception:
        return  # a cluster that is gone; the resources are free once this process has ended
