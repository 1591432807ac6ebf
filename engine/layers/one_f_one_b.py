"""The schedule 1F1B of a pipeline, "one forward, one backward" (Narayanan et al. 2019): bounded activation memory.

The backward pass runs the stages again. In each tick, a stage applies its layers to one microbatch and computes the
gradient of an earlier one, whose input it has kept. So a stage keeps the inputs of at most two microbatches per stage,
and the activations of one, whatever the number of microbatches. The loss lies outside of the stack, so the results
come from a forward pass of their own, which keeps nothing: the layers are computed once more than with
rematerialisation.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from engine.base.types import PyTree
from engine.layers.queues import AXIS, Layers, Queues, Travelling, at
from engine.parallel import schedule

type Forward = Callable[[PyTree, Travelling], PyTree]
"""`(params, inputs) -> results` of a batch."""
type Backward = Callable[[PyTree, Travelling, list[jax.Array]], tuple[PyTree, list[jax.Array]]]
"""`(params, inputs, gradients of the results) -> gradients of params and of the inputs` of a batch, of floats only."""


def with_own_gradient(forward: Forward, backward: Backward) -> Forward:
    """Returns `forward` with a gradient that `backward` computes from the arguments."""
    call = jax.custom_vjp(forward)

    def rule(saved: tuple[PyTree, Travelling], d_results: PyTree) -> tuple[PyTree, PyTree]:
        d_params, d_inputs = backward(*saved, _floats(d_results))
        return d_params, _with_floats(saved[1], iter(d_inputs), lambda x: None)

    call.defvjp(lambda params, inputs: (forward(params, inputs), (params, inputs)), rule)
    return call


def gradients(
    layers: Layers, queues: Queues, params: PyTree, queue: Travelling, d_results: list[jax.Array]
) -> tuple[PyTree, list[jax.Array]]:
    """Runs the ticks of one stage and returns the gradients of its parameters, and its share of those of the inputs.

    Args:
        layers: function that applies consecutive layers.
        queues: split of the batch.
        params: parameters of this stage, `[repeats, layers, ...]`.
        queue: share of this stage of the inputs, `[slots, rows, ...]`.
        d_results: share of this stage of the gradients of the results, floats only.
    """
    stage, stages, microbatches = lax.axis_index(AXIS), queues.stages, queues.microbatches
    repeats, depth = jax.tree.leaves(params)[0].shape[:2]
    once, kept_count = repeats == 1, schedule.kept_microbatches(stages, microbatches)

    def index(repeat: jax.Array) -> jax.Array:
        return (repeat * stages + stage) * depth

    def forward(state: PyTree, time: jax.Array) -> PyTree:
        """Applies the layers to the next microbatch, and keeps their input."""
        queue, x, kept = state
        busy, microbatch, repeat = schedule.work(time, stage, stages, microbatches, repeats)
        _, taken, taken_repeat = schedule.work(time, 0, stages, microbatches, repeats)
        enters = (stage == 0) & (repeat == 0)
        x = jax.tree.map(lambda a, b: jnp.where(enters, a, b), queues.slot(queue, taken), x)
        queue = queues.pop(queue, taken, once or taken_repeat == 0)
        place = repeat * kept_count + microbatch % kept_count
        kept = jax.tree.map(lambda old, x: _put(old, place, jnp.where(busy, x, at(old, place))), kept, x)
        return queue, queues.send(layers(at(params, repeat), index(repeat), x)), kept

    def backward(state: PyTree, kept: PyTree, time: jax.Array) -> PyTree:
        """Computes the gradient of the layers for an earlier microbatch."""
        d_results, d_x, d_inputs, d_params = state
        busy, microbatch, repeat = schedule.work(time, stages - 1 - stage, stages, microbatches, repeats)
        takes, taken, taken_repeat = schedule.work(time, 0, stages, microbatches, repeats)
        _, done, done_repeat = schedule.work(time, stages - 1, stages, microbatches, repeats)
        enters, repeat = (stage == stages - 1) & (repeat == 0), repeats - 1 - repeat
        first = [*queues.slot(d_results, taken), *map(jnp.zeros_like, d_x[len(d_results) :])]
        d_x = [jnp.where(enters, a, b) for a, b in zip(first, d_x, strict=True)]
        d_results = queues.pop(d_results, taken, takes & (taken_repeat == 0), forward=False)
        x = at(kept, repeat * kept_count + microbatch % kept_count)

        def floats(values: PyTree, given: list[jax.Array]) -> list[jax.Array]:
            return _floats(layers(values, index(repeat), _with_floats(x, iter(given))))

        _, pullback = jax.vjp(floats, at(params, repeat), _floats(x))
        d_values, d_x = pullback(d_x)
        d_params = jax.tree.map(
            lambda total, part: _put(total, repeat, at(total, repeat) + jnp.where(busy, part, 0)), d_params, d_values
        )
        d_inputs = queues.push(d_inputs, done, d_x, once or done_repeat == repeats - 1, forward=False)
        return d_results, queues.send(d_x, forward=False), d_inputs, d_params

    def tick(state: tuple[PyTree, PyTree], time: jax.Array) -> tuple[PyTree, None]:
        ahead = forward(state[0], time)
        return (ahead, backward(state[1], ahead[-1], time - (repeats * stages - 1))), None

    # Stages without work compute on real rows, so that nothing is NaN; their results are dropped.
    x = queues.slot(queue, 0)
    kept = jax.tree.map(lambda x: jnp.broadcast_to(x, (repeats * kept_count, *x.shape)), x)
    d_x, d_inputs = ([jnp.zeros_like(x) for x in _floats(tree)] for tree in (x, queue))
    wide = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params)
    start = (queue, x, kept), (queues.mirrored(d_results), d_x, d_inputs, wide)
    count = schedule.ticks(stages, microbatches, repeats) + repeats * stages - 1
    (_, (_, _, d_inputs, d_params)), _ = lax.scan(tick, start, jnp.arange(count))
    d_params = lax.psum(d_params, queues.copies) if queues.copies else d_params
    return jax.tree.map(lambda d, x: d.astype(x.dtype), d_params, params), queues.mirrored(d_inputs)


def _put(x: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(x, value, index, 0)


def _floats(tree: PyTree) -> list[jax.Array]:
    """Returns the arrays that have a gradient."""
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


def _with_floats(tree: PyTree, floats: Iterator[jax.Array], other: Callable = lambda x: x) -> PyTree:
    """Returns the tree with other arrays in the positions of `_floats`, and `other(x)` in the rest."""
    return jax.tree.map(lambda x: next(floats) if jnp.issubdtype(x.dtype, jnp.inexact) else other(x), tree)
