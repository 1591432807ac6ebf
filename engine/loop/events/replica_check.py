"""Replica check: compares the copies of the state on different devices, to detect silent data corruption.

Data parallelism keeps copies of the same shard on several devices. Every device computes the same updates from the same
sums, so copies never differ on healthy hardware. A check waits for the devices and reads the state once. Checkpoints
saved between two checks are not verified.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from engine.base.duration import Duration, Period
from engine.base.errors import ConvoyError
from engine.base.types import PyTree
from engine.cluster.exit_status import ExitStatus
from engine.loop.events.event import Boundary
from engine.loop.phases import TRAINING
from engine.parallel.digest import Digests

SHOWN = 3  # arrays that an error names


class ReplicaError(ConvoyError):
    """Copies of the state differ: a device is faulty. The state is not saved."""

    exit_code = ExitStatus.RETRY
    everywhere = True


class ReplicaCheck:
    """Compares the copies of a state.

    Args:
        abstract_state: shapes and shardings of the state.
    """

    def __init__(self, abstract_state: PyTree):
        self._abstract_state = abstract_state
        self._digests: Digests | None = None

    @property
    def has_copies(self) -> bool:
        """Whether any shard of the state is on more than one device."""
        return any(_copies(leaf) > 1 for leaf in jax.tree.leaves(self._abstract_state))

    def run(self, step: int, state: PyTree) -> None:
        """Compares the copies; every process calls it at the same steps.

        Raises:
            ReplicaError: they differ. Its text names arrays, devices and processes.
        """
        self._digests = digests = self._digests or Digests(self._abstract_state)
        rows = np.asarray(digests.rows(state, gather=True))
        if differing := digests.differing(rows):
            raise ReplicaError(_text(digests, step, differing))


@dataclass(eq=False)
class CheckReplicas:
    """Compares the replicas of the state on different devices."""

    check: ReplicaCheck
    period: Period
    phase = TRAINING
    ends_dispatch = True
    runs_at_end = True

    def next_step(self, after: int) -> float:
        return self.period.next_after(after)

    def run(self, boundary: Boundary) -> None:
        self.check.run(boundary.step, boundary.state.to_tree())


def replica_checks(abstract_state: PyTree, period: Period) -> list[CheckReplicas]:
    """Returns the event that compares the copies of a state; none if there are no copies."""
    check = ReplicaCheck(abstract_state)
    return [CheckReplicas(check, period)] if check.has_copies else []


def _text(digests: Digests, step: int, differing: dict[str, list[int]]) -> str:
    devices = list(digests.mesh.devices.flat)
    odd = sorted({position for positions in differing.values() for position in positions})
    named = ", ".join(f"device {devices[i].id} of process {devices[i].process_index}" for i in odd)
    more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
    copy_groups = digests.copy_groups[:, digests.paths.index(next(iter(differing)))]
    copies = int((copy_groups == copy_groups[odd[0]]).sum())
    if len(odd) < copies:
        problem = f"{named} differ{'s' * (len(odd) == 1)} from most copies"
    else:
        problem = f"{named} have different values, so one of them is wrong"
    return (
        f"step {step}: copies of {', '.join(list(differing)[:SHOWN])}{more} differ: {problem}. The memory or "
        "arithmetic of a device is faulty; this state was not saved. Test that device or exclude its machine; the same "
        "command resumes from the newest checkpoint."
    )


def coverage(every: Duration | None, abstract_state: PyTree) -> str:
    """Returns the line of `convoy explain`: the share of the state that has copies to compare, and how often.

    Args:
        every: `resilience.replica_check`.
        abstract_state: shapes and shardings of the state.
    """
    if every is None:
        return "replica check: off (resilience.replica_check=None)"
    parts = [abstract_state.get(name, {}) for name in ("params", "carried", "ema", "opt_state")]
    leaves = [leaf for leaf in jax.tree.leaves(parts) if math.prod(leaf.shape) > 1]
    covered = [leaf for leaf in leaves if _copies(leaf) > 1]
    if not covered:
        return "replica check: nothing to compare, since this mesh keeps one copy of each array"
    share = _size(covered) / _size(leaves)
    copies = min(_copies(leaf) for leaf in covered)
    of_all = f" ({len(covered)} of {len(leaves)} arrays); the others have one copy each"
    rest = "" if len(covered) == len(leaves) else of_all
    return f"replica check: every {every}, {copies} copies or more of {share:.1%} of the state{rest}"


def _copies(leaf: PyTree) -> int:
    """Returns how many devices hold the same shard of an array."""
    sharding = leaf.sharding
    axes = jax.tree.leaves(tuple(sharding.spec))
    return sharding.mesh.size // math.prod(sharding.mesh.shape[axis] for axis in axes)


def _size(leaves: Sequence[PyTree]) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
