"""Replica check: compares the copies of the state on different devices, to find silent faults of memory or arithmetic.

Data parallelism keeps a copy of a part of an array on several devices; an axis that splits the array does not. Every
device makes the same updates from the same sums, so a difference between copies is never legal. A check waits for the
device and reads the state once. What is saved between two checks is not known to be sound.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np

from engine.cluster.exit_status import ExitStatus
from engine.config.duration import Duration
from engine.config.errors import ConvoyError
from engine.parallel.digest import Digests
from engine.types import PyTree

TOLD = 3  # arrays that an error names


class ReplicaError(ConvoyError):
    """Copies of the state differ: a device is not to be trusted. Nothing of it is saved."""

    exit_code = ExitStatus.RETRY
    everywhere = True


class ReplicaCheck:
    """Compares the copies of a state.

    Args:
        abstract_state: the form of the state, with shardings.
    """

    def __init__(self, abstract_state: PyTree):
        self._abstract_state = abstract_state
        self._digests: Digests | None = None

    @property
    def has_copies(self) -> bool:
        """Whether any part of the state lies on more than one device."""
        return any(_copies(leaf) > 1 for leaf in jax.tree.leaves(self._abstract_state))

    def run(self, step: int, state: PyTree) -> None:
        """Compares the copies; every process calls it at the same steps.

        Raises:
            ReplicaError: they differ; names arrays, devices and processes.
        """
        self._digests = digests = self._digests or Digests(self._abstract_state)
        rows = np.asarray(digests.rows(state, everywhere=True))
        if found := digests.differing(rows):
            raise ReplicaError(_text(digests, step, found))


def _text(digests: Digests, step: int, found: dict[str, list[int]]) -> str:
    devices = list(digests.mesh.devices.flat)
    odd = sorted({position for positions in found.values() for position in positions})
    named = ", ".join(f"device {devices[i].id} of process {devices[i].process_index}" for i in odd)
    more = f" and {len(found) - TOLD} more" if len(found) > TOLD else ""
    holders = digests.holders[:, digests.paths.index(next(iter(found)))]
    copies = int((holders == holders[odd[0]]).sum())
    who = f"{named} hold{'s' * (len(odd) == 1)}"
    rest = "other numbers than most copies" if len(odd) < copies else "each other numbers, so one of them errs"
    return (
        f"step {step}: copies of {', '.join(list(found)[:TOLD])}{more} differ: {who} {rest}. Memory or arithmetic "
        "of a device errs; nothing was saved. Test that device or leave its machine out; the same command goes on "
        "from the newest checkpoint."
    )


def coverage(every: Duration | None, abstract_state: PyTree) -> str:
    """Returns the line of `convoy explain`: how much of a state has copies that are compared, and when.

    Args:
        every: `resilience.replica_check`.
        abstract_state: the form of the state, with shardings.
    """
    if every is None:
        return "replica check: off (resilience.replica_check=None)"
    parts = [abstract_state.get(name, {}) for name in ("params", "carried", "ema", "opt_state")]
    leaves = [leaf for leaf in jax.tree.leaves(parts) if math.prod(leaf.shape) > 1]
    covered = [leaf for leaf in leaves if _copies(leaf) > 1]
    if not covered:
        return "replica check: not covered, this mesh keeps one copy of each array"
    share = _size(covered) / _size(leaves)
    copies = min(_copies(leaf) for leaf in covered)
    rest = "" if len(covered) == len(leaves) else f" ({len(covered)} of {len(leaves)} arrays); the rest: not covered"
    return f"replica check: every {every}, {copies} copies or more of {share:.1%} of the state{rest}"


def _copies(leaf: PyTree) -> int:
    """How many devices hold the same part of an array."""
    sharding = leaf.sharding
    axes = jax.tree.leaves(tuple(sharding.spec))
    return sharding.mesh.size // math.prod(sharding.mesh.shape[axis] for axis in axes)


def _size(leaves: Sequence[PyTree]) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
