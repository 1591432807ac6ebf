"""Runs a stack of layers over the stages of a pipeline: each stage holds some layers; microbatches pass through all.

The mesh axes `pipeline` and `data` are manual (`jax.shard_map`); XLA splits a stage's layers over the others as usual.
The microbatches wait in queues that are split over the stages (`queues.py`), so that no device holds the inputs or
results of all stages. `one_f_one_b.py` has a backward pass with bounded memory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from engine.base.errors import TaskError
from engine.base.types import PyTree
from engine.layers import one_f_one_b
from engine.layers.queues import AXIS, Layers, Queues, Travelling, at
from engine.layers.rematerialization import remat_slices
from engine.parallel import schedule
from engine.parallel.layout import current

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
    queues = Queues(layout, _batch_of((carry, shared)), stages, repeats)
    keys = None if rng is None else jax.random.key_data(rng)

    def layers(values: PyTree, first: jax.Array, x: Travelling) -> Travelling:
        carry, shared, keys = x
        if keys is not None and rng is not None:
            keys = jax.random.wrap_key_data(keys, impl=jax.random.key_impl(rng))
        return apply(values, first, carry, shared, keys), *x[1:]

    def on_stages(run: Callable, params: PyTree, *batches: PyTree, out_specs: PyTree) -> PyTree:
        def stage(values: PyTree, *queue: PyTree) -> PyTree:
            return run(layers, queues, jax.tree.map(lambda x, like: x.astype(like.dtype), values, params), *queue)

        stages = jax.shard_map(
            stage,
            mesh=layout.inner_mesh,
            axis_names={AXIS, *queues.copies},
            in_specs=(of_params, *[of_rows] * len(batches)),
            out_specs=out_specs,
            check_vma=False,  # the check refuses a scan in a layer whose initial carry is a constant
        )
        return stages(jax.tree.map(summable, params), *jax.tree.map(queues.fill, batches))

    def summable(x: jax.Array) -> jax.Array:  # XLA:CPU cannot sum half precision in a manual computation
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if layout.platform == "cpu" else x

    def forward(params: PyTree, inputs: Travelling) -> PyTree:
        return jax.tree.map(queues.drain, on_stages(_forward, params, inputs, out_specs=of_rows))

    def backward(params: PyTree, inputs: Travelling, d_out: list[jax.Array]) -> tuple[PyTree, list[jax.Array]]:
        specs = of_params, of_rows
        d_params, d_inputs = on_stages(one_f_one_b.gradients, params, inputs, d_out, out_specs=specs)
        return d_params, jax.tree.map(queues.drain, d_inputs)

    of_params, of_rows = PartitionSpec(None, AXIS), PartitionSpec(AXIS, queues.copies or None)
    run = one_f_one_b.with_own_gradient(forward, backward) if layout.schedule == "1f1b" else forward
    return run(params, (carry, shared, keys))


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
