"""The program that measures the activations of each layer: a forward pass that the modules of the model report to.

While it is traced, the classes of the modules have another `__call__`, which marks the outputs in this thread alone.
The train step is traced at another time, and is not changed.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine.base.types import PyTree
from engine.compile.program import Program
from engine.data.batch import Batch
from engine.data.context import call
from engine.diagnosis.attention import entropy_marked
from engine.diagnosis.collect import DEAD, ENTROPY, Found, begin_attention, collect, end_attention, enter, mark
from engine.diagnosis.groups import EACH, Groups, each
from engine.layers.stack import Stack
from engine.parallel.layout import with_layout
from engine.parallel.mesh import replicated
from engine.training.arrays import Arrays
from engine.training.gradients import Shared, called_with, losses, microbatches
from engine.training.state import TrainState
from engine.training.step import step_key
from engine.training.step_spec import StepSpec

LARGEST, SQUARE = "largest", "square"
"""Measures of an output: the largest magnitude, and the mean square."""
ATTENTION = "Attention"
"""Part of the names of the classes of modules whose softmax has the weights of an attention."""
NORM = "Norm"
"""Part of the names of classes that normalise: their `max(variance, 0)` is no activation."""
_NUMBERED = ":"  # before the number of a call of a layer of a stack: "decoder/*:3"


class Activations:
    """The compiled programs of the activations, for batches of any shape of the run.

    Args:
        program: program of the run.
        groups: the layers of its model.
    """

    def __init__(self, program: Program, groups: Groups):
        sizes = {groups.paths[p]: math.prod(program.spec.model.params[p].shape[:n]) for p, n in groups.leading.items()}
        measure = _make_measure(program.spec, program.task_metrics, frozenset(groups.paths.values()), sizes)
        self._measure = jax.jit(with_layout(program.spec.layout, measure), out_shardings=replicated(program.mesh))

    def measure(self, state: TrainState, batch: Batch) -> dict[str, dict[str, float]]:
        """Returns measure -> layer -> value, of the forward pass of a step; waits. Every process must call it."""
        found: dict[str, dict[str, float]] = {}
        for group, measures in jax.tree.map(np.asarray, self._measure(state, batch)).items():
            for name, values in measures.items():
                found.setdefault(name, {}).update(each(group, values))
        return found


def _make_measure(
    spec: StepSpec, names: tuple[str, ...], layers: frozenset[str], sizes: Mapping[str, int]
) -> Callable[[TrainState, Batch], dict[str, Arrays]]:
    def measure(state: TrainState, batch: Batch) -> dict[str, Arrays]:
        rows = len(batch.weight)
        key = step_key(state, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
        if spec.accumulate > 1:
            batch, keys = jax.tree.map(lambda x: x[0], microbatches(spec, (batch, keys)))
        trained = {path: state.params[path] for path in spec.model.trained}
        frozen = {path: x for path, x in state.params.items() if path not in trained}
        shared = Shared(spec, names, frozen, key, state.step, rows, losses)

        def forward(trained: Arrays, model_state: Arrays, batch: Batch, keys: jax.Array) -> PyTree:
            module, examples = called_with(shared, trained, model_state, batch, 0)
            context = spec.context(state.step, keys, batch.weight)
            with _watched(module, layers) as watch, entropy_marked(watch.attention):
                result = call(spec.task.loss, module, examples, keys, context=context)
            return jax.tree.leaves(result)

        return _results(collect(forward, trained, state.model_state, batch, keys), sizes)

    return measure


class _Watch:
    """What the calls of modules need to know while a forward pass is traced.

    Args:
        module: the model.
        layers: names of the layers.
    """

    def __init__(self, module: nnx.Module, layers: frozenset[str]):
        self._layers, self._paths = layers, dict[int, str]()
        self._kept: list[nnx.Module] = []  # so that no other module gets the same id
        self._calls = 0
        self.stack: list[tuple[nnx.Module, str]] = []
        """The modules whose calls have begun, each with its layer, or "" if it is not one."""
        self._entered = ""
        self._register(module, "")

    def _register(self, module: nnx.Module, before: str) -> None:
        self._kept.append(module)
        for path, inner in nnx.iter_modules(module):
            self._paths[id(inner)] = "/".join(map(str, (*filter(None, [before]), *path)))

    def layer_of(self, module: nnx.Module) -> str:
        """Returns the layer whose output a module returns; "" for none."""
        path = self._paths.get(id(module))
        if path is not None:
            return path if path in self._layers else ""
        caller = self.stack[-1][0] if self.stack else None
        if not isinstance(caller, Stack):
            return ""
        # A stack makes the module of each layer anew.
        path = self._paths[id(caller)]
        self._register(module, f"{path}/{EACH}")
        self._calls += 1
        return f"{path}/{EACH}".removeprefix("/") + f"{_NUMBERED}{self._calls}"

    def enter(self, layer: str) -> str:
        """Marks that the operations from here on belong to a layer; returns the one before."""
        before, self._entered = self._entered, layer
        enter(layer)
        return before

    def attention(self) -> str:
        """Returns the layer of an attention: that around it, or else the innermost module with a path."""
        layers = [layer for _, layer in self.stack if layer]
        paths = [path for module, _ in self.stack if (path := self._paths.get(id(module)))]
        return (layers[-1:] or paths[-1:] or ["attention"])[0]


_watch: contextvars.ContextVar[_Watch | None] = contextvars.ContextVar("_watch", default=None)


@contextlib.contextmanager
def _watched(module: nnx.Module, layers: frozenset[str]) -> Iterator[_Watch]:
    """Marks the outputs of the layers of a model that this thread traces while the block runs."""
    classes: dict[type[Any], None] = {type(inner): None for _, inner in nnx.iter_modules(module) if callable(inner)}
    own = {kind: vars(kind).get("__call__") for kind in classes}
    calls = {kind: kind.__call__ for kind in classes}
    watch = _Watch(module, layers)
    token = _watch.set(watch)
    try:
        for kind, before in calls.items():
            kind.__call__ = _marking(before)
        yield watch
    finally:
        for kind, before in own.items():
            if before is None:
                del kind.__call__
            else:
                kind.__call__ = before
        _watch.reset(token)


def _marking(before: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a `__call__` of modules that marks their outputs."""

    @functools.wraps(before)
    def call(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
        watch = _watch.get()
        if watch is None or (watch.stack and watch.stack[-1][0] is self):  # `super().__call__`
            return before(self, *args, **kwargs)
        name, layer = type(self).__name__, watch.layer_of(self)
        after = watch.enter("" if NORM in name else layer) if layer or NORM in name else ""
        watch.stack.append((self, layer))
        if is_attention := ATTENTION in name:
            begin_attention(watch.attention())
        try:
            out = before(self, *args, **kwargs)
        finally:
            watch.stack.pop()
        if is_attention:
            end_attention()
        if layer:
            _mark_output(layer, out)
        if NORM in name:
            watch.enter(layer or after)
        if isinstance(self, Stack):  # what follows is not part of its last layer
            watch.enter("")
        return out

    return call


def _mark_output(layer: str, out: PyTree) -> None:
    """Marks LARGEST and SQUARE of all floating-point arrays of an output."""
    arrays = [x for x in jax.tree.leaves(out) if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)]
    arrays = [x.astype(jnp.float32) for x in arrays if x.size]
    if arrays:
        mark(layer, LARGEST, jnp.stack([jnp.abs(x).max() for x in arrays]).max())
        mark(layer, SQUARE, jnp.stack([jnp.square(x).sum() for x in arrays]).sum() / sum(x.size for x in arrays))


def _results(found: Found, sizes: Mapping[str, int]) -> dict[str, dict[str, jax.Array]]:
    """Returns layer, or layers of a stack -> measure -> value; of a stack one for each layer `[layers]`."""
    by_measure: dict[tuple[str, str], dict[int, list[jax.Array]]] = {}
    for (layer, measure), values in found.items():
        group, _, number = layer.partition(_NUMBERED)
        by_measure.setdefault((group, measure), {})[int(number or 0)] = values
    results: dict[str, dict[str, jax.Array]] = {}
    for (group, measure), calls in by_measure.items():
        ordered = [calls[number] for number in sorted(calls)]
        name, reduce = _REDUCED[measure]
        if group not in sizes:
            results.setdefault(group, {})[name] = reduce([x for values in ordered for x in values], 0)
        else:
            each_call = jnp.stack([reduce(values, 1) for values in ordered])  # [calls in an iteration, iterations]
            if each_call.size % sizes[group] == 0:
                again = each_call.size // sizes[group]  # how often the stack was called
                layers = each_call.reshape(again, -1, each_call.shape[1]).swapaxes(1, 2).reshape(again, -1)
                results.setdefault(group, {})[name] = (jnp.max if measure == LARGEST else jnp.mean)(layers, 0)
    return results


def _largest(values: list[jax.Array], kept: int) -> jax.Array:
    return jnp.stack([x.max(tuple(range(kept, x.ndim))) for x in values]).max(0)


def _mean(values: list[jax.Array], kept: int) -> jax.Array:
    """Returns the mean of all entries of all values, where the first `kept` dimensions stay."""
    totals = [x.sum(tuple(range(kept, x.ndim))) for x in values]
    return jnp.stack(totals).sum(0) / sum(math.prod(x.shape[kept:]) for x in values)


def _root_mean(values: list[jax.Array], kept: int) -> jax.Array:
    return jnp.sqrt(_mean(values, kept))


_REDUCED: dict[str, tuple[str, Callable[[list[jax.Array], int], jax.Array]]] = {
    LARGEST: ("activation_max", _largest),
    SQUARE: ("activation_rms", _root_mean),
    DEAD: ("dead_units", _mean),
    ENTROPY: ("attention_entropy", _mean),
}
"""Measure -> the name of its metric, and the function that reduces its values, keeping some first dimensions."""
