"""Traces of the unsharded program: the loss and its gradient on one device, for a number of rows and a remat policy."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from engine.base.types import PyTree
from engine.compile.build import DTYPES
from engine.compile.program import Program
from engine.config.hardware import QUANTIZED
from engine.config.schema import Sharding
from engine.data.batch import Batch, abstract_batch
from engine.data.context import call
from engine.parallel.layout import with_layout
from engine.parallel.rules import RULES, mesh_axes
from engine.planning.graph import Graph, make_graph, parts_by_rows
from engine.planning.work import Work, measure
from engine.training.arrays import abstract_key, cast
from engine.training.gradients import gradients
from engine.training.objective import means_of
from engine.training.state import TrainState
from engine.training.step_spec import StepSpec
from engine.training.update import has_own_update, own_update

FORWARD = "forward"
"""Instead of a remat policy: the loss alone."""


class Traces:
    """The unsharded programs of a config, traced when they are needed.

    Args:
        program: the program of the config on one device, with `train.remat=none` and `train.accumulate=1`.
        sharding: config section `sharding`.
        prefetch: `data.prefetch`.
        balance: FLOP that a device computes while it moves a byte of its memory, by precision; also in bfloat16 with a
            precision in eight bits.
        rows: rows of a small batch; the work is linear in the rows beyond.
        on_progress: receives a line before each trace.
        share: as for `work.measure`.
    """

    def __init__(
        self,
        program: Program,
        sharding: Sharding,
        prefetch: int | str,
        balance: Mapping[str, float],
        rows: int,
        on_progress: Callable[[str], None],
        share: Callable[[int | None], float] = lambda dimension: 1.0,
    ):
        self.program, self.prefetch, self.balance, self.rows = program, prefetch, balance, max(rows, 1)
        self.share = share
        self.on_progress = on_progress
        self.model = program.spec.model
        self.rules = {**RULES, **sharding.rules}
        self._work: dict[tuple[str, str, int], Work] = {}
        self._between: dict[tuple[str, str, float, int], Work] = {}
        self._graphs: dict[tuple[str, str, int], tuple[Graph, dict[int, tuple[str, tuple]]]] = {}
        self._peaks: dict[tuple[str, str], tuple[float, float]] = {}
        self.used = program.spec.layout.used

    def axes(self, name: str | None) -> tuple[str, ...]:
        """Returns the mesh axes of a logical axis."""
        return mesh_axes("parameter", name, self.rules) if name in self.rules else ()

    def work(self, remat: str, precision: str, rows: float, forwards: int = 0) -> Work:
        """Returns the work of a batch of `rows` rows.

        Args:
            remat: policy of train.remat, or FORWARD.
            precision: train.precision.
            rows: rows of the batch.
            forwards: number of further forward passes of the stacks of layers.
        """
        remat = remat.replace("offload:", "save:")  # the same operations
        key = (remat, precision, rows, forwards)
        if key not in self._between:
            small, large = (self._at(remat, precision, n) for n in (self.rows, 2 * self.rows))
            found = small.between(large, rows / self.rows - 1)
            self._between[key] = found.plus(self.forward(precision, rows), forwards) if forwards else found
        return self._between[key]

    def peak(self, remat: str, precision: str) -> tuple[float, float]:
        """Returns the bytes of temporary arrays that do not depend on the rows, and those for each row.

        Each is the most at one time. The times may differ, so that their sum is a bound.
        """
        key = (remat, precision)
        if key not in self._peaks:
            small, large = (self._graph_at(remat, precision, n)[0] for n in (self.rows, 2 * self.rows))
            if parts := parts_by_rows(small, large):
                self._peaks[key] = (parts[0].peak, parts[1].peak / self.rows)
            else:
                slope = max(large.peak - small.peak, 0.0) / self.rows
                self._peaks[key] = (small.peak - slope * self.rows, slope)
        return self._peaks[key]

    def forward(self, precision: str, rows: float) -> Work:
        """Returns the forward work of all stacked layers for a batch of `rows` rows.

        If the trace unrolls the layers, it is that of the whole forward pass.
        """
        found = self.work(FORWARD, precision, rows)
        return found.stacks or found

    def _at(self, remat: str, precision: str, rows: int) -> Work:
        key = (remat, precision, rows)
        if key not in self._work:
            graph, params = self._graph_at(remat, precision, rows)
            rest = self.balance["bfloat16" if precision in QUANTIZED else precision]
            self._work[key] = measure(graph, params, self.axes, rest, self.balance[precision], self.share)
        return self._work[key]

    def _graph_at(self, remat: str, precision: str, rows: int) -> tuple[Graph, dict[int, tuple[str, tuple]]]:
        key = (remat, precision, rows)
        if key not in self._graphs:
            what = "of the forward pass" if remat == FORWARD else f"train.remat={remat}"
            self.on_progress(f"tracing {rows} rows on one device, {what}, {precision}")
            self._graphs[key] = self.graph(remat, precision, rows)
        return self._graphs[key]

    def graph(self, remat: str, precision: str, rows: int) -> tuple[Graph, dict[int, tuple[str, tuple]]]:
        """Returns the program as a graph, and input -> path and logical axes of a parameter.

        `remat` is FORWARD for the loss without its gradient.
        """
        program, policy = self.program, "none" if remat == FORWARD else remat
        layout = dataclasses.replace(
            program.spec.layout, remat=policy, precision=precision, offload_optimizer=False, used=set()
        )
        spec = dataclasses.replace(
            program.spec, layout=layout, accumulate=1, opt_shardings=None, compute_dtype=DTYPES[precision]
        )
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), program.abstract_batch.examples)
        batch = abstract_batch(example, rows, spec.batch_sharding)

        def step(params: PyTree, rest: PyTree, key: jax.Array) -> PyTree:
            state, batch = rest
            state = dataclasses.replace(state, params=params)
            if remat == FORWARD:
                return _loss(spec, state, batch, key)
            if has_own_update(spec.task):
                return own_update(spec, state, batch, key, state.step)
            return gradients(spec, program.task_metrics, state, batch, key, state.step)

        state = program.abstract_state
        args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state.params, (state, batch)))
        jaxpr = jax.make_jaxpr(with_layout(layout, step))(*args, abstract_key()).jaxpr
        graph = make_graph(jaxpr)
        first = len(jaxpr.constvars)
        paths = [path[0].key for path, _ in jax.tree.leaves_with_path(args[0])]
        names = self.model.names
        params = {
            graph.inputs[first + i]: (path, names.get(path, (None,) * len(self.model.params[path].shape)))
            for i, path in enumerate(paths)
        }
        return graph, params

    @property
    def flops(self) -> float:
        """Model FLOPs of a row."""
        return self.program.flops_per_step / self.program.batch_size

    @property
    def tokens(self) -> int:
        """Tokens of a row: the integers of the entry `tokens` of an example, as in packed rows; 0 without it."""
        examples = self.program.abstract_batch.examples
        tokens = examples.get("tokens") if isinstance(examples, Mapping) else None
        if not isinstance(tokens, jax.ShapeDtypeStruct) or tokens.ndim < 2:  # an entry may have entries of its own
            return 0
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            return 0
        return math.prod(tokens.shape[1:])


def _loss(spec: StepSpec, state: TrainState, batch: Batch, key: jax.Array) -> PyTree:
    """Returns the metrics of the loss of a Task."""
    module = spec.model.module(cast(state.params, spec.compute_dtype), state.model_state, key)
    spec.model.train(module)
    keys = jax.random.split(key, len(batch.weight))
    examples = cast(batch.examples, spec.compute_dtype, spec.task.full_precision)
    return means_of(call(spec.task.loss, module, examples, keys, context=spec.context(state.step, keys, batch.weight)))
