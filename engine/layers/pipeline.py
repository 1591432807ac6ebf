"""Runs a stack of layers over the stages of a pipeline: each stage holds some layers; microbatches pass through all.

Only the mesh axis `pipeline` is manual (`jax.shard_map`); XLA splits a stage's layers over the other axes as usual. Row
r belongs to microbatch r mod M, so that no row moves to another device. A batch enters by an all-gather over the stages
and leaves by a reduce-scatter, so that the rest of the model is split over `pipeline`, too. If the rows of a device do
not divide over the stages, the batch enters replicated and leaves by an all-reduce.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from engine.config.errors import TaskError
from engine.layers.remat import remat_slices
from engine.parallel import schedule
from engine.parallel.layout import Layout, current
from engine.types import PyTree

AXIS = "pipeline"

type Apply = Callable[[PyTree, jax.Array, PyTree, PyTree, jax.Array | None], PyTree]
"""`(parameters of consecutive layers, index of the first layer, carry, shared, keys) -> carry`."""


def pipeline(apply: Apply, params: PyTree, carry: PyTree, shared: PyTree, rng: jax.Array | None) -> PyTree:
    """Returns the carry after all layers; each stage of the pipeline applies its own layers.

    Args:
        apply: function that applies consecutive layers.
        params: pytree of arrays `[repeats, layers of a repeat, ...]`.
        carry: pytree of arrays `[batch, ...]`.
        shared: further inputs of every layer, pytrees of arrays `[batch, ...]`.
        rng: keys `[batch]`, or None.

    Raises:
        ShardingError: the batch does not divide over microbatches and devices.
        TaskError: the first dimension of an input is not the batch.
    """
    layout = current()
    stages = layout.use(AXIS)
    repeats = jax.tree.leaves(params)[0].shape[0]
    rows = _Rows(layout, _batch_of((carry, shared)), stages, repeats)
    keys = None if rng is None else jax.random.key_data(rng)
    inputs = (carry, shared, keys)
    dtypes = jax.tree.map(lambda x: x.dtype, inputs)

    def with_key_data(
        values: PyTree, first: jax.Array, carry: PyTree, shared: PyTree, keys: jax.Array | None
    ) -> PyTree:
        if keys is not None and rng is not None:
            keys = jax.random.wrap_key_data(keys, impl=jax.random.key_impl(rng))
        return apply(values, first, carry, shared, keys)

    out = jax.shard_map(
        lambda params, inputs: _stage(with_key_data, rows, params, jax.tree.map(rows.deal, inputs, dtypes)),
        mesh=layout.inner_mesh,
        axis_names={AXIS},
        in_specs=(PartitionSpec(None, AXIS), rows.spec),
        out_specs=rows.spec,
        check_vma=False,  # the check refuses a scan in a layer whose initial carry is a constant
    )(params, jax.tree.map(rows.share, inputs))
    return jax.tree.map(rows.merge, out, dtypes[0])


def _stage(apply: Apply, rows: "_Rows", params: PyTree, inputs: PyTree) -> PyTree:
    """Runs the ticks of one stage and returns its share of the result.

    Args:
        apply: function that applies consecutive layers.
        rows: split of the batch.
        params: parameters of this stage, `[repeats, layers, ...]`.
        inputs: carry, shared inputs and keys of the whole batch, `[microbatches, rows, ...]`.
    """
    stage, stages, repeats = lax.axis_index(AXIS), rows.stages, rows.repeats
    layers = jax.tree.leaves(params)[0].shape[1]
    ring = [(i, (i + 1) % stages) for i in range(stages)]

    # For the backward pass a tick keeps what its layers keep, but not its slices of the inputs: the slices of the
    # parameters alone would be one copy per tick.
    @remat_slices
    def work(x: PyTree, microbatch: jax.Array, repeat: jax.Array) -> PyTree:
        first, shared, keys = _at(inputs, microbatch)
        x = jax.tree.map(lambda a, b: jnp.where((stage == 0) & (repeat == 0), a, b), first, x)
        return apply(_at(params, repeat), (repeat * stages + stage) * layers, x, shared, keys)

    def tick(state: PyTree, time: jax.Array) -> tuple[PyTree, None]:
        x, out = state
        _, microbatch, repeat = schedule.work(time, stage, stages, rows.microbatches, repeats)
        x = work(x, microbatch, repeat)
        # On the last stage the last repeat writes last. Only the rows of that stage are collected at the end.
        out = jax.tree.map(lambda out, x: lax.dynamic_update_index_in_dim(out, x, microbatch, 0), out, x)
        return (lax.ppermute(x, AXIS, ring), out), None

    # Carry and result start from real rows. A stage without work computes on these, and its result is dropped, so its
    # gradient is 0 and never NaN.
    start = _at(inputs[0], 0), inputs[0]
    (_, out), _ = lax.scan(tick, start, jnp.arange(schedule.ticks(stages, rows.microbatches, repeats)))
    return jax.tree.map(lambda x: rows.collect(jnp.where(stage == stages - 1, x, jnp.zeros_like(x))), out)


class _Rows:
    """Converts the rows of a batch between shares of the stages (outside the `shard_map`) and microbatches (inside).

    Row `shard * batch / shards + q * microbatches + m` is on device shard `shard` and belongs to microbatch m.

    Raises:
        ShardingError: the batch does not divide.
    """

    def __init__(self, layout: Layout, batch: int, stages: int, repeats: int):
        self.layout, self.stages, self.repeats = layout, stages, repeats
        self.axes = tuple(axis for axis in layout.axes("batch") if axis != AXIS)
        self.shards = math.prod(layout.size(axis) for axis in self.axes)
        self.microbatches = schedule.microbatch_count(layout.microbatches, stages)
        schedule.check_rows(batch, self.shards, stages, self.microbatches, repeats)
        self.split = batch // self.shards % stages == 0
        self.parts = stages if self.split else 1

    @property
    def spec(self) -> PartitionSpec:
        """PartitionSpec of the shares `[shards, parts, rows, ...]` over the stages."""
        return PartitionSpec(None, AXIS) if self.split else PartitionSpec()

    def share(self, x: jax.Array) -> jax.Array:
        """Returns the shares `[shards, parts, rows, ...]` of `[batch, ...]`; called outside."""
        x = x.reshape(self.shards, self.parts, -1, *x.shape[1:])
        return self._constrain(self._wide(x), self.axes, *self.spec[1:])

    def deal(self, x: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Returns all microbatches `[microbatches, rows, ...]` from the share of a stage; called inside."""
        x = lax.all_gather(x, AXIS, axis=1, tiled=True) if self.split else x
        x = x.astype(dtype).reshape(self.shards, -1, self.microbatches, *x.shape[3:])
        return self._constrain(jnp.moveaxis(x, 2, 0).reshape(self.microbatches, -1, *x.shape[3:]), None, self.axes)

    def collect(self, x: jax.Array) -> jax.Array:
        """Returns a stage's share of `[microbatches, rows, ...]`, which is 0 on all stages but one; called inside."""
        x = jnp.moveaxis(x.reshape(self.microbatches, self.shards, -1, *x.shape[2:]), 0, 2)
        x = self._wide(self._constrain(x.reshape(self.shards, self.parts, -1, *x.shape[3:]), self.axes))
        return lax.psum_scatter(x, AXIS, scatter_dimension=1, tiled=True) if self.split else lax.psum(x, AXIS)

    def merge(self, x: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Returns the batch `[batch, ...]` from the shares `[shards, parts, rows, ...]`; called outside."""
        x = x.astype(dtype).reshape(-1, *x.shape[3:])
        return self._constrain(x, self.layout.axes("batch", x.shape[0]))

    def _constrain(self, x: jax.Array, *entries: str | tuple[str, ...] | None) -> jax.Array:
        """Returns `x` with its first dimensions split over these axes. The other dimensions stay unconstrained."""
        others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(entries))
        spec = PartitionSpec(*(entry or None for entry in entries), *others)
        return lax.with_sharding_constraint(x, NamedSharding(self.layout.inner_mesh, spec))

    def _wide(self, x: jax.Array) -> jax.Array:
        """Returns `x`, on CPU as float32: XLA:CPU cannot sum half precision over a manual axis."""
        narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
        return x.astype(jnp.float32) if narrow and self.layout.platform == "cpu" else x


def _at(tree: PyTree, index: int | jax.Array) -> PyTree:
    """Returns entry `index` of the first dimension of each array."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def _batch_of(inputs: PyTree) -> int:
    """Returns the number of rows, the first dimension of every input. Raises TaskError if these differ."""
    sizes = {x.shape[:1] for x in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or sizes == {()}:
        found = ", ".join(str(list(x.shape)) for x in jax.tree.leaves(inputs))
        raise TaskError(
            f"Stack: inputs of shapes {found}. Over a pipeline the first dimension of each input must be the batch, "
            "which is split into microbatches. Repeat an input shared by all rows with jnp.broadcast_to."
        )
    return sizes.pop()[0]
