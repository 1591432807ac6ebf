"""Runs a stack of layers over the stages of a pipeline: each stage holds some layers; microbatches pass through all.

The mesh axes `pipeline`, `data` and `fsdp` are manual (`jax.shard_map`): the devices gather the parameters of a stage
once, and sum their gradients once. XLA splits a stage's layers over the other axes as usual.
The microbatches wait in queues that are split over the stages (`queues.py`), so that no device holds the inputs or
results of all stages. `one_f_one_b.py` has a backward pass with bounded memory.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from engine.base.errors import TaskError
from engine.base.types import PyTree
from engine.config import hardware
from engine.layers import one_f_one_b
from engine.layers.queues import AXIS, Layers, Queues, Travelling, at
from engine.layers.rematerialization import remat_slices
from engine.layers.whole_weight import gathered, own_part
from engine.parallel import schedule
from engine.parallel.layout import Layout, current
from engine.parallel.rules import axes_of, partition_spec, to_entry

COPIES = ("data", "fsdp")
"""Axes of the rows whose devices hold the parameters of a stage whole, if the memory suffices."""

type Apply = Callable[[PyTree, jax.Array, PyTree, PyTree, jax.Array | None], PyTree]
"""`(parameters of consecutive layers, index of the first layer, carry, shared, keys) -> carry`."""


def pipeline(
    apply: Apply,
    params: Sequence[jax.Array],
    names: Sequence[Sequence[str | None]],
    carry: PyTree,
    shared: PyTree,
    rng: jax.Array | None,
) -> PyTree:
    """Returns the carry after all layers; each stage of the pipeline applies its own layers.

    Args:
        apply: function that applies consecutive layers.
        params: arrays `[repeats, layers of a repeat, ...]`.
        names: logical axes of each array.
        carry: pytree of arrays `[batch, ...]`.
        shared: further inputs of every layer, pytrees of arrays `[batch, ...]`.
        rng: keys `[batch]`, or None.

    Raises:
        ShardingError: the batch does not divide over microbatches and devices.
        TaskError: the first dimension of an input is not the batch.
    """
    layout = current()
    stages = layout.use(AXIS)
    queues = Queues(layout, _batch_of((carry, shared)), stages, params[0].shape[0])
    weights = _Weights.of(layout, queues.axes, params, names)
    keys = None if rng is None else jax.random.key_data(rng)

    def layers(values: PyTree, first: jax.Array, x: Travelling) -> Travelling:
        carry, shared, keys = x
        if keys is not None and rng is not None:
            keys = jax.random.wrap_key_data(keys, impl=jax.random.key_impl(rng))
        return apply(values, first, carry, shared, keys), *x[1:]

    def forward(params: Sequence[jax.Array], inputs: Travelling) -> PyTree:
        return jax.tree.map(queues.drain, on_stages(_forward, params, inputs, out_specs=weights.of_rows))

    def gradients(*args: PyTree) -> PyTree:
        d_params, d_inputs = one_f_one_b.gradients(*args)
        return weights.own_parts(d_params), queues.mirrored(d_inputs)

    def backward(
        params: Sequence[jax.Array], inputs: Travelling, d_out: list[jax.Array]
    ) -> tuple[PyTree, list[jax.Array]]:
        specs = weights.specs, weights.of_rows
        d_params, d_inputs = on_stages(gradients, params, inputs, d_out, out_specs=specs)
        return [d.astype(x.dtype) for d, x in zip(d_params, params, strict=True)], jax.tree.map(queues.drain, d_inputs)

    on_stages = functools.partial(_on_stages, layers, queues, weights)
    run = one_f_one_b.with_own_gradient(forward, backward) if layout.schedule == "1f1b" else forward
    return run(list(params), (carry, shared, keys))


def _on_stages(
    layers: Layers,
    queues: Queues,
    weights: "_Weights",
    run: Callable,
    params: Sequence[jax.Array],
    *batches: PyTree,
    out_specs: PyTree,
) -> PyTree:
    """Runs a function `(layers, queues, parameters of a stage, queue of each batch)` on the devices of each stage."""
    layout = queues.layout

    def stage(values: Sequence[jax.Array], *queue: PyTree) -> PyTree:
        whole = zip(weights.whole(values), params, strict=True)
        return run(layers, queues, [x.astype(like.dtype) for x, like in whole], *queue)

    def summable(x: jax.Array) -> jax.Array:  # XLA:CPU cannot sum half precision in a manual computation
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if layout.platform == "cpu" else x

    stages = jax.shard_map(
        stage,
        mesh=layout.inner_mesh,
        axis_names={AXIS, *weights.axes},
        in_specs=(weights.specs, *[weights.of_rows] * len(batches)),
        out_specs=out_specs,
        check_vma=False,  # the check refuses a scan in a layer whose initial carry is a constant
    )
    return stages([summable(x) for x in params], *jax.tree.map(queues.fill, batches))


@dataclasses.dataclass(frozen=True)
class _Weights:
    """How the devices of a stage that have different rows hold its parameters.

    Those of manual axes hold them whole during all ticks: each device adds up the gradients of its microbatches, and
    the devices sum theirs once. XLA alone would gather parameters and sum gradients in each tick.
    """

    axes: tuple[str, ...]
    """Manual axes of the rows."""
    splits: Sequence[Sequence[tuple[str, ...]]]
    """The manual axes that split each dimension of each parameter."""
    elsewhere: Sequence[Sequence[tuple[str, ...]]]
    """Other mesh axes that split it, without that of the stages."""
    platform: str

    @classmethod
    def of(
        cls, layout: Layout, rows: Sequence[str], params: Sequence[jax.Array], names: Sequence[Sequence[str | None]]
    ) -> "_Weights":
        """Returns the choice for a stack; parameters stay split if they take too much memory whole.

        Args:
            layout: the active layout.
            rows: mesh axes of the rows.
            params: arrays `[repeats, layers of a repeat, ...]`.
            names: logical axes of each array.
        """
        mesh = layout.mesh
        assert mesh is not None
        found = [partition_spec("Stack", x.shape, n, layout.rules, mesh) for x, n in zip(params, names, strict=True)]
        specs = [[[a for a in axes_of(entry) if a != AXIS and layout.size(a) > 1] for entry in spec] for spec in found]
        axes = tuple(axis for axis in COPIES if axis in rows)
        elements = 0.0
        for x, spec in zip(params, specs, strict=True):
            if any(axis in axes for entry in spec for axis in entry):
                elements += x.size / math.prod(layout.size(a) for entry in spec for a in entry if a not in axes)
        whole = schedule.whole_bytes(elements / layout.size(AXIS), params[0].dtype.itemsize, layout.schedule)
        device = hardware.find(mesh.devices.flat[0].device_kind)
        if not schedule.gathers_once(whole, device and device.hbm_bytes):
            axes = tuple(axis for axis in axes if not any(axis in entry for spec in specs for entry in spec))
        splits = [[tuple(a for a in entry if a in axes) for entry in spec] for spec in specs]
        elsewhere = [[tuple(a for a in entry if a not in axes) for entry in spec] for spec in specs]
        return cls(axes, splits, elsewhere, layout.platform)

    @property
    def of_rows(self) -> PartitionSpec:
        """PartitionSpec of a queue `[stages * slots, rows of a microbatch, ...]`."""
        return PartitionSpec(AXIS, self.axes or None)

    @property
    def specs(self) -> list[PartitionSpec]:
        """PartitionSpec of each parameter over the manual axes; the second dimension is split over the stages."""
        return [
            PartitionSpec(*(to_entry((AXIS, *axes) if i == 1 else axes) for i, axes in enumerate(split)))
            for split in self.splits
        ]

    def whole(self, params: Sequence[jax.Array]) -> list[jax.Array]:
        """Returns the parameters of the stage, for the parts of this device."""
        each = zip(params, self.splits, self.elsewhere, strict=True)
        return [gathered(x, split, elsewhere, self.platform) for x, split, elsewhere in each]

    def own_parts(self, gradients: Sequence[jax.Array]) -> list[jax.Array]:
        """Returns the parts of this device of the gradients of the stage, summed over the manual axes of the rows."""
        each = zip(gradients, self.splits, self.elsewhere, strict=True)
        return [own_part(x, split, elsewhere, self.axes, self.platform) for x, split, elsewhere in each]


def _forward(layers: Layers, queues: Queues, params: PyTree, queue: Travelling) -> PyTree:
    """Runs the ticks of one stage and returns its share of the queue of results.

    Args:
        layers: function that applies consecutive layers.
        queues: split of the batch.
        params: parameters of this stage, `[repeats, layers, ...]`.
        queue: share of this stage of the inputs, `[slots, rows, ...]`.
    """
    stage, stages, microbatches = lax.axis_index(AXIS), queues.stages, queues.microbatches
    repeats, depth = jax.tree.leaves(params)[0].shape[:2]
    once = repeats == 1

    # For the backward pass a tick keeps what its layers keep, but not its slice of the parameters, which would be one
    # copy per tick.
    @remat_slices
    def work(x: Travelling, repeat: jax.Array) -> Travelling:
        return layers(at(params, repeat), (repeat * stages + stage) * depth, x)

    def tick(state: PyTree, time: jax.Array) -> tuple[PyTree, None]:
        queue, x, out = state
        _, _, repeat = schedule.work(time, stage, stages, microbatches, repeats)
        _, taken, taken_repeat = schedule.work(time, 0, stages, microbatches, repeats)
        _, done, done_repeat = schedule.work(time, stages - 1, stages, microbatches, repeats)
        enters = (stage == 0) & (repeat == 0)
        x = jax.tree.map(lambda a, b: jnp.where(enters, a, b), queues.slot(queue, taken), x)
        x = work(x, repeat)
        queue = queues.pop(queue, taken, once or taken_repeat == 0)
        out = queues.push(out, done, x[0], once or done_repeat == repeats - 1)
        return (queue, queues.send(x), out), None

    # A stage without work computes on real rows, and its result is dropped, so its gradient is 0 and never NaN.
    start = queue, queues.slot(queue, 0), queue[0]
    (_, _, out), _ = lax.scan(tick, start, jnp.arange(schedule.ticks(stages, microbatches, repeats)))
    return out


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
