"""The schedule 1F1B of a pipeline, "one forward, one backward" (Narayanan et al. 2019): bounded activation memory.

The backward pass runs the stages again. In each tick, a stage applies its layers to one microbatch and computes the
gradient of an earlier one, whose input it has kept. So a stage keeps the inputs of at most two microbatches per stage,
and the activations of one, whatever the number of microbatches. The loss lies outside of the stack, so the results
come from a forward pass of their own, which keeps nothing: the layers are computed once more than with
rematerialisation.
"""

import dataclasses
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

    The gradients of the parameters are those of the rows of this device, in float32 if the parameters are narrower. The
    queue of the gradients of the inputs is mirrored.

    Args:
        layers: function that applies consecutive layers.
        queues: split of the batch.
        params: parameters of this stage, `[repeats, layers, ...]`.
        queue: share of this stage of the inputs, `[slots, rows, ...]`.
        d_results: this stage's share of the results' gradients, floats only.
    """
    stage = _Stage(layers, queues, lax.axis_index(AXIS), *jax.tree.leaves(params)[0].shape[:2])
    latency = stage.repeats * queues.stages - 1  # ticks from the first forward pass to the first gradient

    def tick(state: tuple[PyTree, PyTree], time: jax.Array) -> tuple[PyTree, None]:
        ahead = stage.forward(params, state[0], time)
        return (ahead, stage.backward(params, state[1], ahead[-1], time - latency)), None

    # Stages without work compute on real rows, so that nothing is NaN; their results are dropped.
    x = queues.slot(queue, 0)
    kept = jax.tree.map(lambda x: jnp.broadcast_to(x, (stage.repeats * stage.kept_microbatches, *x.shape)), x)
    d_x, d_inputs = ([jnp.zeros_like(x) for x in _floats(tree)] for tree in (x, queue))
    wide = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params)
    start = (queue, x, kept), (queues.mirrored(d_results), d_x, d_inputs, wide)
    count = schedule.ticks(queues.stages, queues.microbatches, stage.repeats) + latency
    (_, (_, _, d_inputs, d_params)), _ = lax.scan(tick, start, jnp.arange(count))
    return d_params, d_inputs


@dataclasses.dataclass(frozen=True)
class _Stage:
    """The work of one stage in a tick."""

    layers: Layers
    queues: Queues
    number: jax.Array
    repeats: int
    """Groups of layers that this stage applies, in turn with the other stages."""
    depth: int
    """Layers of a group."""

    @property
    def kept_microbatches(self) -> int:
        """Microbatches whose inputs a stage keeps for each group of layers."""
        return schedule.kept_microbatches(self.queues.stages, self.queues.microbatches)

    def forward(self, params: PyTree, state: PyTree, time: jax.Array) -> PyTree:
        """Applies the layers to the next microbatch, and keeps their input."""
        queue, x, kept = state
        queues = self.queues
        busy, microbatch, repeat = self._work(time, self.number)
        _, taken, taken_repeat = self._work(time, 0)
        enters = (self.number == 0) & (repeat == 0)
        x = jax.tree.map(lambda a, b: jnp.where(enters, a, b), queues.slot(queue, taken), x)
        queue = queues.pop(queue, taken, self.repeats == 1 or taken_repeat == 0)
        place = self._place(repeat, microbatch)
        kept = jax.tree.map(lambda old, x: _put(old, place, jnp.where(busy, x, at(old, place))), kept, x)
        return queue, queues.send(self.layers(at(params, repeat), self._first_layer(repeat), x)), kept

    def backward(self, params: PyTree, state: PyTree, kept: PyTree, time: jax.Array) -> PyTree:
        """Computes the gradient of the layers for an earlier microbatch."""
        d_results, d_x, d_inputs, d_params = state
        queues, last = self.queues, self.queues.stages - 1
        busy, microbatch, repeat = self._work(time, last - self.number)
        takes, taken, taken_repeat = self._work(time, 0)
        _, done, done_repeat = self._work(time, last)
        enters, repeat = (self.number == last) & (repeat == 0), self.repeats - 1 - repeat
        first = [*queues.slot(d_results, taken), *map(jnp.zeros_like, d_x[len(d_results) :])]
        d_x = [jnp.where(enters, a, b) for a, b in zip(first, d_x, strict=True)]
        d_results = queues.pop(d_results, taken, takes & (taken_repeat == 0), forward=False)
        x = at(kept, self._place(repeat, microbatch))

        def floats(values: PyTree, given: list[jax.Array]) -> list[jax.Array]:
            return _floats(self.layers(values, self._first_layer(repeat), _with_floats(x, iter(given))))

        _, pullback = jax.vjp(floats, at(params, repeat), _floats(x))
        d_values, d_x = pullback(d_x)
        d_params = jax.tree.map(
            lambda total, part: _put(total, repeat, at(total, repeat) + jnp.where(busy, part, 0)), d_params, d_values
        )
        ends = self.repeats == 1 or done_repeat == self.repeats - 1
        d_inputs = queues.push(d_inputs, done, d_x, ends, forward=False)
        return d_results, queues.send(d_x, forward=False), d_inputs, d_params

    def _work(self, time: jax.Array, stage: jax.Array | int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns `schedule.work` of a stage."""
        return schedule.work(time, stage, self.queues.stages, self.queues.microbatches, self.repeats)

    def _first_layer(self, repeat: jax.Array) -> jax.Array:
        return (repeat * self.queues.stages + self.number) * self.depth

    def _place(self, repeat: jax.Array, microbatch: jax.Array) -> jax.Array:
        """Returns the place of a microbatch among the inputs that are kept."""
        return repeat * self.kept_microbatches + microbatch % self.kept_microbatches


def _put(x: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(x, value, index, 0)


def _floats(tree: PyTree) -> list[jax.Array]:
    """Returns the arrays that have a gradient."""
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


def _with_floats(tree: PyTree, floats: Iterator[jax.Array], other: Callable = lambda x: x) -> PyTree:
    """Returns the tree with other arrays in the positions of `_floats`, and `other(x)` in the rest."""
    return jax.tree.map(lambda x: next(floats) if jnp.issubdtype(x.dtype, jnp.inexact) else other(x), tree)
