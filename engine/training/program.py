"""The compiled programs of a run: first state, one step, K steps, evaluation.

Owns: tracing and compiling each once, its time, its FLOPs, and what differs on CPU. Does not own:
the mathematics (`step.py`) or when a program is called (`trainer.py`).
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from engine.config.errors import ConfigError, ShardingError, did_you_mean
from engine.metrics import by_row, check_means
from engine.parallel.layout import NAMED, active
from engine.parallel.memory import device_memory
from engine.parallel.mesh import replicated
from engine.parallel.rules import warnings
from engine.training.flops import count_flops, has_convolution
from engine.training.state import State, abstract_state, initial_state, optimizer_shardings
from engine.training.step import (
    BAD_EXAMPLES,
    ENGINE_METRICS,
    StepSpec,
    evaluate,
    make_evaluation_step,
    make_finite,
    make_steps,
    make_train_step,
)
from engine.training.task import check_loss
from engine.tuning.control_flow import step_control_flow

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SPLIT_BY_LAYERS = {"pipeline": "stack of layers", "context": "attention over a sequence", "expert": "experts"}
"""Mesh axis -> the layers without which it has nothing to split."""


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

    def __init__(self, spec: StepSpec, example: Any, *, batch_size: int, seed: int):
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
        self.abstract_batch = self._batch_of(example, batch_size, spec.batch_sharding)
        if spec.weighted:
            weight = jax.ShapeDtypeStruct((batch_size,), jnp.float32, sharding=spec.batch_sharding)
            self.abstract_batch = (self.abstract_batch, weight)
        self.task_metrics = self._trace_loss()
        self.metric_names = (*self.task_metrics, *ENGINE_METRICS, *([BAD_EXAMPLES] if spec.weighted else ()))
        self.compile_s = 0.0
        self.flops_per_step = 0.0
        """Of matrix products and convolutions over all devices; known once a step is traced."""
        self._steps: dict[int, Any] = {}
        self._held: dict[tuple[bool, ...], jax.Array] = {}
        self._finite = jax.jit(make_finite(self.spec), out_shardings=replicated(self.mesh))

    def _batch_of(self, example: Any, rows: int, sharding: NamedSharding) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype, sharding=sharding), example)

    def _trace_loss(self) -> tuple[str, ...]:
        """Checks the Task's loss by tracing it; returns its metrics, "loss" first, and notes a convolution."""
        spec, rows = self.spec, self.batch_size // self.spec.accumulate
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=x.sharding), self.abstract_batch
        )

        def loss(params: Any, carried: Any, batch: Any, key: Any) -> Any:
            module = spec.model.module(params, carried, key)
            module.train()
            return spec.task.loss(module, batch[0] if spec.weighted else batch, jax.random.split(key, rows))

        state = self.abstract_state
        trace = jax.jit(self._laid_out(loss)).trace(state["params"], state["carried"], batch, jax.random.key(0))
        check_loss(spec.task, trace.out_info, rows)
        self._tells_rows_apart = by_row(trace.out_info)
        self._check_used()
        unroll, branch = step_control_flow(spec.layout.platform, has_convolution(trace.jaxpr.jaxpr))
        places = {path: x.sharding for path, x in state["params"].items()}
        self.spec = dataclasses.replace(
            spec,
            unroll=unroll,
            branch=branch,
            grad_shardings=optimizer_shardings(spec.model, places, spec.layout.zero1),
            opt_places=self._optimizer_places(),
        )
        return ("loss", *sorted(trace.out_info.metrics))

    def _optimizer_places(self) -> tuple[Any, Any] | None:
        """Where the optimizer's state lives and where it is worked on, if it is offloaded."""
        if not self.spec.layout.offload_optimizer:
            return None
        home, memory = jax.tree.map(lambda x: x.sharding, self.abstract_state["opt_state"]), device_memory(self.mesh)
        return home, jax.tree.map(lambda sharding: sharding.with_memory_kind(memory), home)

    def _check_used(self) -> None:
        """Refuses what the config asks for and no layer of the model makes anything of."""
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
        if self.spec.weighted and not self._tells_rows_apart:
            found.append(
                f"data.on_error=skip: the loss of {type(self.spec.task).__name__} is one number for a batch, so that "
                "the next good example counts in the place of a bad one. With Loss.of(values) its row has weight 0."
            )
        return found

    def _laid_out(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, traced with the layout in force."""

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            with active(self.spec.layout):
                return function(*args)

        return call

    def init(
        self, params: Mapping[str, jax.Array] | None = None, carried: Mapping[str, jax.Array] | None = None
    ) -> State:
        """Returns the first state, each array born where it lives.

        Args:
            params: arrays by path that take the place of random ones, before the optimizer and the average see them.
            carried: the same of the carried values.
        """
        state = self._random_state()
        if params or carried:
            state["params"] |= params or {}
            state["carried"] |= carried or {}
            state |= self._beside(state["params"])
        return state

    def _beside(self, params: Mapping[str, jax.Array]) -> State:
        """What the first state holds of trained parameters: the optimizer's state and their average."""
        spec = self.spec

        def make(trained: Any) -> State:
            average = {"ema": jax.tree.map(jnp.copy, trained)} if spec.ema_decay is not None else {}
            return {"opt_state": spec.tx.init(trained), **average}

        keys = ("opt_state", "ema") if spec.ema_decay is not None else ("opt_state",)
        shardings = jax.tree.map(lambda x: x.sharding, {key: self.abstract_state[key] for key in keys})
        trained = {path: params[path] for path in spec.model.trained}
        return jax.jit(self._laid_out(make), out_shardings=shardings)(trained)

    def _random_state(self) -> State:
        spec = self.spec
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        ema = spec.ema_decay is not None
        first = functools.partial(initial_state, spec.task, spec.model, spec.tx, self.seed, ema)
        make = jax.jit(self._laid_out(first), out_shardings=shardings)
        return self._timed(lambda: make.lower().compile())()

    def steps(self, k: int) -> Any:
        """Returns the compiled `(state, k batches, held) -> (state, metrics [k, names, 2])`; the state is donated.

        `held` is what the method of this name makes.
        """
        if k not in self._steps:
            self._steps[k] = self._timed(lambda: self.trace(k).lower().compile())
        return self._steps[k]

    def held(self, flags: tuple[bool, ...]) -> jax.Array:
        """Returns which updates of a dispatch are held back whatever their loss, as the steps take it."""
        if flags not in self._held:
            self._held[flags] = jax.make_array_from_process_local_data(replicated(self.mesh), np.array(flags))
        return self._held[flags]

    def not_finite(self, state: State) -> list[str]:
        """Returns the paths of what is trained, or kept beside it, that holds numbers which are not finite; waits."""
        return [path for path, finite in self._finite(state).items() if not finite]

    def trace(self, k: int) -> Any:
        """Returns the program of k steps, traced and not yet compiled."""
        step = make_train_step(self.spec, self.task_metrics)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        jitted = jax.jit(
            self._laid_out(make_steps(step, self.spec.unroll)),
            donate_argnums=0,
            out_shardings=(shardings, replicated(self.mesh)),
        )
        held = jax.ShapeDtypeStruct((k,), jnp.bool_, sharding=replicated(self.mesh))
        traced = jitted.trace(self.abstract_state, (self.abstract_batch,) * k, held)
        self.flops_per_step = count_flops(traced.jaxpr.jaxpr) / k
        return traced

    def evaluation(self, example: Any, batch_size: int) -> tuple[Any, tuple[str, ...], bool]:
        """Returns the evaluation step, the names of its metrics, and whether they tell rows apart.

        The step is a jitted `(params, carried, batch, rows) -> metrics [names, 2]`.
        """
        spec = self.spec
        batch = self._batch_of(example, batch_size, spec.batch_sharding)
        call = self._laid_out(functools.partial(evaluate, spec.task, spec.model, spec.compute_dtype))
        means = jax.eval_shape(call, self.abstract_state["params"], self.abstract_state["carried"], batch)
        by_row = check_means(means, batch_size, f"{type(spec.task).__name__}.evaluate")
        names = tuple(sorted(means))
        step = make_evaluation_step(spec.task, spec.model, spec.compute_dtype, names, by_row)
        return jax.jit(self._laid_out(step), out_shardings=replicated(self.mesh)), names, by_row

    def _timed(self, compile_: Any) -> Any:
        start = time.monotonic()
        compiled = compile_()
        self.compile_s += time.monotonic() - start
        return compiled
