"""Queues of microbatches before and after a pipeline, split over its stages.

Microbatch m waits in slot `m % slots` of stage `m // slots`. When the first stage takes a microbatch, that slot of
every stage moves to the stage before, so that the first stage always stores the microbatch that it takes next. Results
move in the same way, from the last stage on. So a device stores its share of the batch, and sends one microbatch of
each queue in a tick.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from engine.base.types import PyTree
from engine.parallel import schedule
from engine.parallel.layout import Layout

AXIS = "pipeline"

type Travelling = tuple[PyTree, PyTree, jax.Array | None]
"""What a stage receives and sends: the carry, the shared inputs, and the data of the keys of one microbatch."""
type Layers = Callable[[PyTree, jax.Array, Travelling], Travelling]
"""`(parameters of consecutive layers, index of the first layer, input) -> output`."""


class Queues:
    """Converts a batch to a queue and back (outside the `shard_map`), and moves its slots (inside).

    Row `shard * batch / shards + m * rows + i` is on device shard `shard`, and belongs to microbatch m. If the stages
    divide the number of microbatches, no row moves to another device. Otherwise a shard's rows are gathered over the
    stages, and the last slots repeat the first microbatches.

    Raises:
        ShardingError: the batch does not divide.
    """

    def __init__(self, layout: Layout, batch: int, stages: int, repeats: int):
        self.layout, self.stages = layout, stages
        self.axes = tuple(axis for axis in layout.axes("batch") if axis != AXIS)
        self.shards = math.prod(layout.size(axis) for axis in self.axes)
        self.microbatches = schedule.microbatch_count(layout.microbatches, stages)
        schedule.check_rows(batch, self.shards, stages, self.microbatches, repeats)
        self.slots = -(-self.microbatches // stages)
        self.spare = stages * self.slots - self.microbatches

    def fill(self, x: jax.Array) -> jax.Array:
        """Returns the queue `[stages * slots, rows of a microbatch, ...]` of a batch `[batch, ...]`."""
        x = x.reshape(self.shards, self.microbatches, -1, *x.shape[1:])
        x = self._constrain(x, self.axes, None if self.spare else AXIS)
        if self.spare:
            x = x[:, np.arange(self.stages * self.slots) % self.microbatches]
        return self._constrain(_merged(jnp.moveaxis(x, 1, 0), 1), AXIS, self.axes)

    def drain(self, x: jax.Array) -> jax.Array:
        """Returns the batch `[batch, ...]` of a queue of results, whose first slots are spare."""
        if self.spare:
            x = self._constrain(x, None, self.axes)[self.spare :]
        x = jnp.moveaxis(x.reshape(self.microbatches, self.shards, -1, *x.shape[2:]), 0, 1)
        x = _merged(_merged(self._constrain(x, self.axes, None if self.spare else AXIS), 1), 0)
        return self._constrain(x, self.layout.axes("batch", x.shape[0]))

    def slot(self, queue: PyTree, microbatch: int | jax.Array) -> PyTree:
        """Returns the slot of a microbatch. On the stage that takes it next, it stores this microbatch."""
        return jax.tree.map(lambda x: self.rows(at(x, microbatch % self.slots)), queue)

    def pop(self, queue: PyTree, microbatch: jax.Array, moves: bool | jax.Array, *, forward: bool = True) -> PyTree:
        """Returns the queue after a stage has taken a microbatch.

        Args:
            queue: arrays `[slots, rows, ...]`.
            microbatch: index of the microbatch.
            moves: whether a microbatch is taken at all.
            forward: whether the first stage takes microbatches; else the last stage does, from a mirrored queue.
        """
        return jax.tree.map(lambda x: self._moved(x, microbatch % self.slots, moves, forward, None), queue)

    def push(
        self, queue: PyTree, microbatch: jax.Array, result: PyTree, moves: bool | jax.Array, *, forward: bool = True
    ) -> PyTree:
        """Returns the queue after a stage has put its result: the last stage if `forward`, else the first."""
        index = (microbatch + self.spare) % self.slots
        return jax.tree.map(lambda x, y: self._moved(x, index, moves, forward, y), queue, result)

    def mirrored(self, queue: PyTree) -> PyTree:
        """Returns the queue with the stages in reverse order."""
        return lax.ppermute(queue, AXIS, [(i, self.stages - 1 - i) for i in range(self.stages)])

    def send(self, x: PyTree, *, forward: bool = True) -> PyTree:
        """Sends arrays to the next stage of the ring, or to the one before, and returns the received ones."""
        step = 1 if forward else -1
        return lax.ppermute(x, AXIS, [(i, (i + step) % self.stages) for i in range(self.stages)])

    def rows(self, x: jax.Array) -> jax.Array:
        """Returns `[rows, ...]` with the rows split over the devices of a stage."""
        return self._constrain(x, self.axes)

    def _moved(
        self, queue: jax.Array, slot: jax.Array, moves: bool | jax.Array, forward: bool, result: jax.Array | None
    ) -> jax.Array:
        """Returns the queue after one slot has moved, against the direction in which the stages send."""
        before = at(queue, slot)
        after = self.send(before, forward=not forward)
        if result is not None:
            end = self.stages - 1 if forward else 0
            after = jnp.where(lax.axis_index(AXIS) == end, result, after)
        after = self.rows(jnp.where(moves, after, before))
        return lax.dynamic_update_index_in_dim(queue, after, slot, 0)

    def _constrain(self, x: jax.Array, *entries: str | tuple[str, ...] | None) -> jax.Array:
        """Returns `x` with its first dimensions split over these axes. The other dimensions stay unconstrained.

        An axis that is manual here splits them already.
        """
        manual = jax.sharding.get_abstract_mesh().manual_axes
        others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(entries))
        left = [tuple(axis for axis in jax.tree.leaves(entry) if axis not in manual) or None for entry in entries]
        spec = PartitionSpec(*left, *others)
        return lax.with_sharding_constraint(x, NamedSharding(self.layout.inner_mesh, spec))


def at(tree: PyTree, index: int | jax.Array) -> PyTree:
    """Returns entry `index` of the first dimension of each array."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def _merged(x: jax.Array, axis: int) -> jax.Array:
    """Returns `x` with dimensions `axis` and `axis + 1` as one."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
