"""A stack of layers over the stages of a pipeline: each holds some layers, and microbatches go through all of them.

Owns: how a batch is dealt out to microbatches and put together again, and what each stage does at each tick. Does not
own: the schedule (`parallel/schedule.py`), or the layers and their parameters (`stack.py`).

Only the mesh axis `pipeline` is manual (`jax.shard_map`); how a stage's layers are split over the other axes is left
to the layout, as without a pipeline. Rows are dealt out in turn (row r to microbatch r mod M), so that each device's
rows stay where they are. In between, a stage holds its share of the rows: a batch comes in by an all-gather over the
stages and goes out by a reduce-scatter, so that what precedes and follows the stack can be split over `pipeline` too
(the rules of "batch" say whether it is). Where a device's rows do not divide over the stages, it comes in whole and
goes out by a sum.

A stage without work computes on rows that exist and what it makes is dropped: its gradient is 0, never NaN.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from engine.config.errors import TaskError
from engine.layers.remat import remat_slices
from engine.parallel import schedule
from engine.parallel.layout import Layout, current

AXIS = "pipeline"

Apply = Callable[[Any, Any, Any, tuple, Any], Any]
"""`(parameters of some layers, index of the first, carry, shared, keys) -> carry`."""


def pipeline(apply: Apply, params: Any, carry: Any, shared: tuple, rng: jax.Array | None) -> Any:
    """Returns what a stack of layers makes of `carry`, each stage of the pipeline doing its own layers.

    Args:
        apply: some consecutive layers.
        params: pytree of arrays `[repeats, layers of a repeat, ...]`.
        carry: pytree of arrays `[batch, ...]`.
        shared: further inputs of every layer, pytrees of arrays `[batch, ...]`.
        rng: keys `[batch]`, or None.

    Raises:
        ShardingError: the batch does not divide over microbatches and devices.
        TaskError: an input whose first dimension is not the batch.
    """
    layout = current()
    stages = layout.use(AXIS)
    repeats = jax.tree.leaves(params)[0].shape[0]
    rows = _Rows(layout, _batch_of((carry, shared)), stages, repeats)
    keys = None if rng is None else jax.random.key_data(rng)
    inputs = (carry, shared, keys)
    dtypes = jax.tree.map(lambda x: x.dtype, inputs)

    def with_numbers(values: Any, first: Any, carry: Any, shared: tuple, keys: Any) -> Any:
        mine = keys if rng is None else jax.random.wrap_key_data(keys, impl=jax.random.key_impl(rng))
        return apply(values, first, carry, shared, mine)

    out = jax.shard_map(
        lambda params, inputs: _stage(with_numbers, rows, params, jax.tree.map(rows.deal, inputs, dtypes)),
        mesh=layout.inner_mesh,
        axis_names={AXIS},
        in_specs=(PartitionSpec(None, AXIS), rows.spec),
        out_specs=rows.spec,
        check_vma=False,  # else a scan inside of a layer could not start from a constant
    )(params, jax.tree.map(rows.share, inputs))
    return jax.tree.map(rows.whole, out, dtypes[0])


def _stage(apply: Apply, rows: "_Rows", params: Any, inputs: Any) -> Any:
    """What one stage does: its ticks, one after the other.

    `params` are its own, `[repeats, layers, ...]`, and inputs `[microbatches, rows, ...]` those of the whole batch.
    Returns its share of the result.
    """
    stage, stages, repeats = lax.axis_index(AXIS), rows.stages, rows.repeats
    layers = jax.tree.leaves(params)[0].shape[1]
    ring = [(i, (i + 1) % stages) for i in range(stages)]

    # A tick keeps what its layers keep, but not the slices that it begins with: those of the parameters alone would be
    # as many copies of them as there are ticks.
    @remat_slices
    def work(x: Any, microbatch: jax.Array, repeat: jax.Array) -> Any:
        first, shared, keys = _at(inputs, microbatch)
        x = jax.tree.map(lambda a, b: jnp.where((stage == 0) & (repeat == 0), a, b), first, x)
        return apply(_at(params, repeat), (repeat * stages + stage) * layers, x, shared, keys)

    def tick(state: Any, time: jax.Array) -> tuple[Any, None]:
        x, out = state
        _, microbatch, repeat = schedule.work(time, stage, stages, rows.microbatches, repeats)
        x = work(x, microbatch, repeat)
        # On the last stage the last repeat is the last to write, and only that stage's rows count in the end.
        out = jax.tree.map(lambda out, x: lax.dynamic_update_index_in_dim(out, x, microbatch, 0), out, x)
        return (lax.ppermute(x, AXIS, ring), out), None

    # Both begin with rows that exist.
    start = _at(inputs[0], 0), inputs[0]
    (_, out), _ = lax.scan(tick, start, jnp.arange(schedule.ticks(stages, rows.microbatches, repeats)))
    return jax.tree.map(lambda x: rows.collect(jnp.where(stage == stages - 1, x, jnp.zeros_like(x))), out)


class _Rows:
    """The rows of a batch: as shares of the stages, and as microbatches.

    Row `shard * batch / shards + q * microbatches + m` lies on its shard and belongs to microbatch m.

    Raises:
        ShardingError: the batch does not divide.
    """

    def __init__(self, layout: Layout, batch: int, stages: int, repeats: int):
        self.layout, self.stages, self.repeats = layout, stages, repeats
        self.axes = tuple(axis for axis in layout.axes("batch") if axis != AXIS)
        self.shards = math.prod(layout.size(axis) for axis in self.axes)
        self.microbatches = schedule.microbatches_of(layout.microbatches, stages)
        schedule.check_rows(batch, self.shards, stages, self.microbatches, repeats)
        self.split = batch // self.shards % stages == 0
        self.parts = stages if self.split else 1

    @property
    def spec(self) -> PartitionSpec:
        """Of a share, `[shards, parts, rows, ...]`, over the stages."""
        return PartitionSpec(None, AXIS) if self.split else PartitionSpec()

    def share(self, x: jax.Array) -> jax.Array:
        """`[batch, ...]` -> `[shards, parts, rows, ...]`; outside."""
        x = x.reshape(self.shards, self.parts, -1, *x.shape[1:])
        return self._hold(self._wide(x), self.axes, *self.spec[1:])

    def deal(self, x: jax.Array, dtype: Any) -> jax.Array:
        """A stage's share -> `[microbatches, rows, ...]`, all of them; inside."""
        x = lax.all_gather(x, AXIS, axis=1, tiled=True) if self.split else x
        x = x.astype(dtype).reshape(self.shards, -1, self.microbatches, *x.shape[3:])
        return self._hold(jnp.moveaxis(x, 2, 0).reshape(self.microbatches, -1, *x.shape[3:]), None, self.axes)

    def collect(self, x: jax.Array) -> jax.Array:
        """`[microbatches, rows, ...]`, zeros but on one stage -> a stage's share; inside."""
        x = jnp.moveaxis(x.reshape(self.microbatches, self.shards, -1, *x.shape[2:]), 0, 2)
        x = self._wide(self._hold(x.reshape(self.shards, self.parts, -1, *x.shape[3:]), self.axes))
        return lax.psum_scatter(x, AXIS, scatter_dimension=1, tiled=True) if self.split else lax.psum(x, AXIS)

    def whole(self, x: jax.Array, dtype: Any) -> jax.Array:
        """`[shards, parts, rows, ...]` -> `[batch, ...]`; outside."""
        x = x.astype(dtype).reshape(-1, *x.shape[3:])
        return self._hold(x, self.layout.axes("batch", x.shape[0]))

    def _hold(self, x: jax.Array, *entries: Any) -> jax.Array:
        """`x` with its first dimensions split so; the others are as the layers have them."""
        others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(entries))
        spec = PartitionSpec(*(entry or None for entry in entries), *others)
        return lax.with_sharding_constraint(x, NamedSharding(self.layout.inner_mesh, spec))

    def _wide(self, x: jax.Array) -> jax.Array:
        """`x` in float32 on a CPU, where XLA cannot sum half precision over a manual axis (nor gather its gradient)."""
        narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
        return x.astype(jnp.float32) if narrow and self.layout.platform == "cpu" else x


def _at(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def _batch_of(inputs: Any) -> int:
    """The first dimension that all inputs have."""
    sizes = {x.shape[:1] for x in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or sizes == {()}:
        found = ", ".join(str(list(x.shape)) for x in jax.tree.leaves(inputs))
        raise TaskError(
            f"Stack: inputs of shapes {found}. Over a pipeline the first dimension of each is the batch, which is "
            "dealt out to microbatches: repeat what is the same for all rows with jnp.broadcast_to."
        )
    return sizes.pop()[0]
