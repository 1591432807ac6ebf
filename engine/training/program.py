"""The compiled programs of a run: first state, one step, K steps, evaluation.

Each is traced and compiled once. The mathematics is in `step.py`; the trainer says when a program is called.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from engine.config.errors import ConfigError, ShardingError, did_you_mean
from engine.data.batch import Batch
from engine.metrics import Mean, by_row, check_means
from engine.parallel.layout import NAMED, active
from engine.parallel.memory import device_memory
from engine.parallel.mesh import replicated
from engine.parallel.rules import warnings
from engine.training.flops import count_flops, has_convolution
from engine.training.model import Arrays
from engine.training.state import Shardings, TrainState, abstract_state, initial_state, optimizer_shardings
from engine.training.step import (
    EvaluationStep,
    StepSpec,
    evaluate,
    make_evaluation_step,
    make_finite,
    make_steps,
    make_train_step,
)
from engine.training.task import check_loss
from engine.tuning.control_flow import step_control_flow
from engine.types import PyTree

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SPLIT_BY_LAYERS = {"pipeline": "stack of layers", "context": "attention over a sequence", "expert": "experts"}
"""Mesh axis -> the layers without which it has nothing to split."""


class CompiledSteps(Protocol):
    """A program of K steps, compiled for one form of state and batch."""

    def __call__(
        self, state: TrainState, batches: tuple[Batch, ...], skip_mask: jax.Array, /
    ) -> tuple[TrainState, jax.Array]:
        """Returns the new state and the metrics `[K, names, 2]`; the arrays of `state` are donated."""
        ...

    def as_text(self) -> str | None:
        """Returns the optimized HLO."""
        ...


class Program:
    """The step of one Task on one mesh, compiled ahead of time.

    Args:
        spec: what the step is made of.
        example: one example, as a pytree of ShapeDtypeStruct.
        batch_size: rows of the global batch.
        seed: of the first state.

    Raises:
        TaskError: the Task's loss is not what the protocol says.
        ConfigError: microbatches together with a layer that draws one mask for a whole batch; something that the
            config asks for and no layer does, or no device can.
        ShardingError: a parameter that does not fit the mesh.
    """

    def __init__(self, spec: StepSpec, example: PyTree, *, batch_size: int, seed: int):
        self.spec, self.batch_size, self.seed = spec, batch_size, seed
        self.mesh = spec.mesh
        if spec.accumulate > 1 and spec.model.shared_dropout:
            raise ConfigError(
                f"train.accumulate = {spec.accumulate}: {', '.join(spec.model.shared_dropout)} is nnx.Dropout, which "
                "draws one mask for a whole microbatch, so that accumulation would change it. "
                "Use engine.layers.Dropout, which draws by example, or accumulate=1."
            )
        self.abstract_state = abstract_state(
            spec.task, spec.model, spec.tx, seed=seed, ema=spec.ema_decay is not None, layout=spec.layout
        )
        self.abstract_batch = _abstract_batch(example, batch_size, spec.batch_sharding)
        self.task_metrics = self._trace_loss()
        self.metric_names = (*self.task_metrics, *spec.engine_metrics)
        self.compile_s = 0.0
        self.flops_per_step = 0.0
        """Of matrix products and convolutions over all devices; known once a step is traced."""
        self._steps: dict[int, CompiledSteps] = {}
        self._skip_masks: dict[tuple[bool, ...], jax.Array] = {}
        self._finite = jax.jit(make_finite(self.spec), out_shardings=replicated(self.mesh))

    def _trace_loss(self) -> tuple[str, ...]:
        """Checks the Task's loss by tracing it; returns its metrics, "loss" first, and notes a convolution."""
        spec, rows = self.spec, self.batch_size // self.spec.accumulate
        examples = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=x.sharding),
            self.abstract_batch.examples,
        )

        def loss(params: Arrays, model_state: Arrays, examples: PyTree, key: jax.Array) -> object:
            module = spec.model.module(params, model_state, key)
            module.train()
            return spec.task.loss(module, examples, jax.random.split(key, rows))

        state = self.abstract_state
        trace = jax.jit(self._laid_out(loss)).trace(state.params, state.model_state, examples, jax.random.key(0))
        check_loss(spec.task, trace.out_info, rows)
        self._loss_by_row = by_row(trace.out_info)
        self._check_used()
        unroll, branch = step_control_flow(spec.layout.platform, has_convolution(trace.jaxpr.jaxpr))
        shardings: Shardings = jax.tree.map(lambda x: x.sharding, state.params)
        self.spec = dataclasses.replace(
            spec,
            unroll=unroll,
            branch=branch,
            grad_shardings=optimizer_shardings(spec.model, shardings, spec.layout.zero1),
            opt_places=self._optimizer_places(),
        )
        return ("loss", *sorted(trace.out_info.metrics))

    def _optimizer_places(self) -> tuple[PyTree, PyTree] | None:
        """Returns the shardings of the optimizer's state at rest and at work, if it is offloaded."""
        if not self.spec.layout.offload_optimizer:
            return None
        home, memory = jax.tree.map(lambda x: x.sharding, self.abstract_state.opt_state), device_memory(self.mesh)
        return home, jax.tree.map(lambda sharding: sharding.with_memory_kind(memory), home)

    def _check_used(self) -> None:
        """Refuses what the config asks for and no layer of the model implements."""
        layout, name = self.spec.layout, type(self.spec.task).__name__
        for axis, what in SPLIT_BY_LAYERS.items():
            if self.mesh.shape[axis] > 1 and axis not in layout.used:
                raise ShardingError(
                    f"mesh.{axis} = {self.mesh.shape[axis]}: the model of {name} has no {what}, which this axis "
                    f"splits. Use mesh.{axis}=1, and data or fsdp for these devices."
                )
        if layout.remat != "none" and "remat" not in layout.used:
            raise ConfigError(
                f"train.remat = {layout.remat!r}: the model of {name} has no layer that can be computed again. Use "
                "engine.layers.Stack, or engine.layers.remat around a layer, or train.remat=none."
            )
        given = sorted(used.removeprefix(NAMED) for used in layout.used if used.startswith(NAMED))
        for value in filter(None, layout.remat.partition(":")[2].split(",")):
            if value not in given:
                raise ConfigError(
                    f"train.remat = {layout.remat!r}: the model of {name} gives no value the name {value!r}."
                    f"{did_you_mean(value, given)} Names there: {', '.join(given) or 'none'}. A layer names a value "
                    "with engine.layers.checkpoint(x, name)."
                )

    @property
    def warnings(self) -> list[str]:
        """Sentences about parameters and axes of the mesh that are legal and rarely meant."""
        model, layout = self.spec.model, self.spec.layout
        found = warnings(model.params, model.names, layout.rules, self.mesh)
        if self.spec.skip_bad and not self._loss_by_row:
            found.append(
                f"data.on_error=skip: the loss of {type(self.spec.task).__name__} is one number for a batch, so that "
                "the next good example counts in the place of a bad one. With Loss.of(values) its row has weight 0."
            )
        return found

    def _laid_out[**P, R](self, function: Callable[P, R]) -> Callable[P, R]:
        """Returns the function, traced with the layout in force."""

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with active(self.spec.layout):
                return function(*args, **kwargs)

        return call

    def init(
        self, params: Mapping[str, jax.Array] | None = None, model_state: Mapping[str, jax.Array] | None = None
    ) -> TrainState:
        """Returns the first state, each array born where it lives.

        Args:
            params: arrays by path that replace random ones, before the optimizer and the average see them.
            model_state: the same for the model state.
        """
        state = self._random_state()
        if not params and not model_state:
            return state
        params = {**state.params, **(params or {})}
        opt_state, ema = self._beside(params)
        model_state = {**state.model_state, **(model_state or {})}
        return dataclasses.replace(state, params=params, model_state=model_state, opt_state=opt_state, ema=ema)

    def _beside(self, params: Arrays) -> tuple[PyTree, Arrays | None]:
        """Returns the first state of the optimizer for these parameters, and their average."""
        spec = self.spec

        def make(trained: Arrays) -> tuple[PyTree, Arrays | None]:
            return spec.tx.init(trained), None if spec.ema_decay is None else jax.tree.map(jnp.copy, trained)

        parts = (self.abstract_state.opt_state, self.abstract_state.ema)
        shardings = jax.tree.map(lambda x: x.sharding, parts)
        trained = {path: params[path] for path in spec.model.trained}
        return jax.jit(self._laid_out(make), out_shardings=shardings)(trained)

    def _random_state(self) -> TrainState:
        spec = self.spec
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        ema = spec.ema_decay is not None
        first = functools.partial(initial_state, spec.task, spec.model, spec.tx, self.seed, ema)
        make = jax.jit(self._laid_out(first), out_shardings=shardings)
        return self._timed(lambda: make.lower().compile())()

    def steps(self, k: int) -> CompiledSteps:
        """Returns the compiled program of k steps."""
        if k not in self._steps:
            self._steps[k] = self._timed(lambda: self.trace(k).lower().compile())
        return self._steps[k]

    def skip_mask(self, flags: tuple[bool, ...]) -> jax.Array:
        """Returns, as the steps take it, which updates of a dispatch are skipped whatever their loss."""
        if flags not in self._skip_masks:
            mask = jax.make_array_from_process_local_data(replicated(self.mesh), np.array(flags))
            self._skip_masks[flags] = mask
        return self._skip_masks[flags]

    def not_finite(self, state: TrainState) -> list[str]:
        """Returns the paths of what is trained, or kept beside it, that holds numbers which are not finite; waits."""
        return [path for path, finite in self._finite(state).items() if not finite]

    def trace(self, k: int) -> jax.stages.Traced:
        """Returns the program of k steps, traced and not yet compiled."""
        step = make_train_step(self.spec, self.task_metrics)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        jitted = jax.jit(
            self._laid_out(make_steps(step, self.spec.unroll)),
            donate_argnums=0,
            out_shardings=(shardings, replicated(self.mesh)),
        )
        mask = jax.ShapeDtypeStruct((k,), jnp.bool_, sharding=replicated(self.mesh))
        traced = jitted.trace(self.abstract_state, (self.abstract_batch,) * k, mask)
        self.flops_per_step = count_flops(traced.jaxpr.jaxpr) / k
        return traced

    def evaluation(self, example: PyTree, batch_size: int) -> tuple[EvaluationStep, tuple[str, ...], bool]:
        """Returns the jitted evaluation step, the names of its metrics, and whether all of them tell rows apart."""
        spec, state = self.spec, self.abstract_state
        batch = _abstract_batch(example, batch_size, spec.batch_sharding)
        call = self._laid_out(functools.partial(evaluate, spec.task, spec.model, spec.compute_dtype))
        means: Mapping[str, Mean] = jax.eval_shape(call, state.params, state.model_state, batch)
        by_row = check_means(means, batch_size, f"{type(spec.task).__name__}.evaluate")
        names = tuple(sorted(means))
        step = make_evaluation_step(spec.task, spec.model, spec.compute_dtype, names)
        return jax.jit(self._laid_out(step), out_shardings=replicated(self.mesh)), names, by_row

    def _timed[T](self, compile_: Callable[[], T]) -> T:
        start = time.monotonic()
        compiled = compile_()
        self.compile_s += time.monotonic() - start
        return compiled


def _abstract_batch(example: PyTree, rows: int, sharding: NamedSharding) -> Batch:
    """Returns a batch of such examples, as jax.ShapeDtypeStruct with shardings."""

    def whole(x: jax.ShapeDtypeStruct) -> PyTree:
        return jax.ShapeDtypeStruct((rows, *x.shape), x.dtype, sharding=sharding)

    return Batch(jax.tree.map(whole, example), whole(jax.ShapeDtypeStruct((), jnp.float32)))
