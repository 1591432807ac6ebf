"""The compiled programs of a run: initial state, one step, and K steps.

Each is traced and compiled once. `step.py` has the mathematics; the trainer calls the programs.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.base.errors import ConfigError, ShardingError, did_you_mean
from engine.base.types import PyTree
from engine.cluster import group
from engine.compile.compiler import ProgramCompiler
from engine.compile.evaluation_program import EvaluationProgram
from engine.compile.flops import count_flops, has_callback, has_convolution, model_flops
from engine.compile.options import Value, step_control_flow, step_options
from engine.compile.shapes import ByShape, CompiledSteps, StepsOfRun
from engine.data.batch import Batch, abstract_batch
from engine.data.context import call
from engine.metrics.mean import by_row
from engine.metrics.metric import Metric
from engine.metrics.pairs import TrainingMetrics
from engine.parallel.layout import NAMED, QUANTIZED, with_layout
from engine.parallel.memory import device_memory
from engine.parallel.mesh import replicated
from engine.parallel.rules import warnings
from engine.training.arrays import Arrays, abstract_key, cast
from engine.training.objective import LOSS, Objective, check_groups, means_of, objective_of
from engine.training.state import Shardings, TrainState, abstract_state, initial_state, optimizer_shardings
from engine.training.step import (
    make_finite_check,
    make_gradient_check,
    make_steps,
    make_train_step,
    optimizer_to_device,
)
from engine.training.step_spec import OffloadShardings, StepSpec
from engine.training.task import author_errors_reported, check_loss, has_encode
from engine.training.update import (
    changed_by_after_step,
    changed_frozen,
    check_own_update,
    has_own_update,
    own_update,
)

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float8": jnp.bfloat16, "int8": jnp.bfloat16}
"""`train.precision` -> data type of the computation, in which float8 and int8 quantize products."""
SPLIT_BY_LAYERS = {"pipeline": "stack of layers", "context": "attention over a sequence", "expert": "experts"}
"""Mesh axis -> the layers that use it; without them the axis splits nothing."""


class Program:
    """The programs of one Task on one mesh, compiled ahead of time.

    Args:
        spec: parts of the train step.
        example: one example, as a pytree of ShapeDtypeStruct.
        batch_size: rows of the global batch.
        seed: seed of the initial state.
        shapes: an example in each shape that batches have, if there are several; `example` is the last of them.

    Raises:
        TaskError: the Task's loss does not return a valid `Loss`.
        ConfigError: train.accumulate is not exact for the model, or a setting is supported by no layer or no device.
        ShardingError: a parameter does not fit the mesh, or a mesh axis splits nothing.
    """

    def __init__(self, spec: StepSpec, example: PyTree, *, batch_size: int, seed: int, shapes: Sequence[PyTree] = ()):
        self.spec, self.batch_size, self.seed = spec, batch_size, seed
        self.mesh = spec.mesh
        self.abstract_state = abstract_state(
            spec.model,
            spec.tx,
            seed=seed,
            ema=spec.ema_decay is not None,
            layout=spec.layout,
            split_params=spec.splits_params,
        )
        self._abstract_batches = [
            abstract_batch(shape, batch_size, spec.batch_sharding) for shape in shapes or (example,)
        ]
        self.abstract_batch = self._abstract_batches[-1]
        self.shape_shares: Sequence[float] = [1 / len(self._abstract_batches)] * len(self._abstract_batches)
        """Share of the batches that have each shape, for the means of FLOPs."""
        self.task_metrics = self._trace_update() if has_own_update(spec.task) else self._trace_loss()
        self._trace_after_step()
        self.metric_names = (*self.task_metrics, *spec.engine_metrics)
        self.compile_s = 0.0
        self.compiler = ProgramCompiler()
        """Compiles the programs, or loads them."""
        self._hardware_flops = [0.0] * len(self._abstract_batches)
        self._steps: dict[int, CompiledSteps] = {}
        self._skip_masks: dict[tuple[bool, ...], jax.Array] = {}
        self._are_finite = jax.jit(make_finite_check(self.spec), out_shardings=replicated(self.mesh))

    def _trace_loss(self) -> tuple[str, ...]:
        """Traces and checks the Task's loss, completes `spec`, and returns the metric names, "loss" first."""
        spec, encodes = self.spec, has_encode(self.spec.task)
        rows = self.batch_size if encodes else self.batch_size // spec.accumulate  # `loss_of` sees the whole batch
        objectives, changed = list[Objective](), set[str]()  # `changed`: paths of variables

        def loss(params: Arrays, model_state: Arrays, examples: PyTree, key: jax.Array) -> dict[str, Metric]:
            module = spec.model.module(cast(params, spec.compute_dtype), model_state, key)
            spec.model.train(module)
            examples = cast(examples, spec.compute_dtype, spec.task.full_precision)
            keys = jax.random.split(key, rows := len(jax.tree.leaves(examples)[0]))
            before = spec.model.state_of(module)
            with author_errors_reported(spec.task, "loss", examples):
                result = call(spec.task.loss, module, examples, keys, context=spec.context(0, keys, jnp.ones(rows)))
            check_loss(spec.task, result, rows)  # here, as a traced function must return arrays
            objectives.append(objective_of(result))
            after = spec.model.state_of(module)
            changed.update(path for path, x in before.items() if after.get(path) is not x)
            return means_of(result)

        def traced(rows: int) -> jax.stages.Traced:
            examples = jax.tree.map(lambda x: x.update(shape=(rows, *x.shape[1:])), self.abstract_batch.examples)
            state, jitted = self.abstract_state, jax.jit(with_layout(spec.layout, loss))
            return jitted.trace(state.params, state.model_state, examples, abstract_key())

        try:
            trace = traced(rows)
        except (TypeError, ValueError):
            if spec.accumulate > 1:
                from engine.training.accumulation import check_row_state

                check_row_state(spec.model, spec.accumulate, self.batch_size, lambda rows: (traced(rows), changed)[1])
            raise
        if spec.accumulate > 1 and not spec.approximate_accumulation:
            from engine.training.accumulation import check_changed, check_dropout

            check_dropout(spec.model, spec.accumulate)
            check_changed(spec.model, changed, spec.accumulate)
        objective, means = objectives[0], dict[str, Any](trace.out_info)
        check_groups(objective, (*spec.groups.values(), *spec.optimizer.frozen), f"{type(spec.task).__name__}.loss")
        self._loss_by_row = all(by_row(means[name]) for names in objective.terms.values() for name in names)
        # One number for a batch need not be a sum over its rows. JAX 0.12 does not lower callbacks in a `jax.shard_map`
        # that leaves mesh axes to XLA.
        on_each_device = (encodes or self._loss_by_row) and not has_callback(trace.jaxpr.jaxpr)
        row_state = tuple(path for path in spec.model.state_of_rows(self.batch_size) if path in changed)
        self.spec = dataclasses.replace(spec, loss_on_each_device=on_each_device, row_state=row_state)
        self.spec = dataclasses.replace(self.spec, changed_state=frozenset(changed))
        return self._complete_spec(trace, objective)

    def _trace_update(self) -> tuple[str, ...]:
        """Traces and checks the Task's own update, likewise."""
        check_own_update(self.spec)
        self._loss_by_row = True
        grads, moments = self._grad_shardings(), self._offload_shardings()
        self.spec = dataclasses.replace(self.spec, grad_shardings=grads, opt_shardings=moments)
        changed: list[str] = []

        def update(state: TrainState, batch: Batch, key: jax.Array) -> dict[str, Metric]:
            with author_errors_reported(self.spec.task, "update", batch.examples):
                state = optimizer_to_device(self.spec, state)
                after, metrics = own_update(self.spec, state, batch, key, state.step)
            changed.extend(changed_frozen(self.spec, state.params, {**state.params, **after.frozen}))
            return dict(metrics)

        traced = jax.jit(with_layout(self.spec.layout, update))
        trace = traced.trace(self.abstract_state, self.abstract_batch, abstract_key())
        self.spec = dataclasses.replace(self.spec, changed_frozen=tuple(changed))
        return self._complete_spec(trace, self.spec.objective)

    def _trace_after_step(self) -> None:
        """Traces `Task.after_step`, and adds the frozen parameters that it changes to `spec`."""
        changed: list[str] = []

        def after_step(state: TrainState, key: jax.Array) -> None:
            changed.extend(changed_by_after_step(self.spec, state, key))

        jax.eval_shape(with_layout(self.spec.layout, after_step), self.abstract_state, abstract_key())
        found = dict.fromkeys((*self.spec.changed_frozen, *changed))
        self.spec = dataclasses.replace(self.spec, changed_frozen=tuple(found))

    @property
    def reads_total_steps(self) -> bool:
        """Whether the loss, `after_step` or the update of the Task reads `context.total_steps`."""
        return bool(self.spec.reads)

    def _complete_spec(self, trace: jax.stages.Traced, objective: Objective) -> tuple[str, ...]:
        """Completes `spec` for a traced function that returns metrics; returns the metric names, "loss" first."""
        self._check_used()
        unroll, branch = step_control_flow(self.spec.layout.platform, has_convolution(trace.jaxpr.jaxpr))
        self.spec = dataclasses.replace(
            self.spec,
            objective=objective,
            unroll=unroll,
            branch=branch,
            grad_shardings=self._grad_shardings(),
            opt_shardings=self._offload_shardings(),
        )
        self.training_metrics = TrainingMetrics(trace.out_info)
        return (LOSS, *(row for row in self.training_metrics.rows if row != LOSS))

    def _grad_shardings(self) -> Shardings:
        shardings: Shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state.params)
        return optimizer_shardings(self.spec.model, shardings, self.spec.layout.zero1)

    def _offload_shardings(self) -> OffloadShardings | None:
        """Returns the shardings of the optimizer state in host and in device memory; None if it is not offloaded."""
        if not self.spec.layout.offload_optimizer:
            return None
        on_host, memory = jax.tree.map(lambda x: x.sharding, self.abstract_state.opt_state), device_memory(self.mesh)
        on_device = jax.tree.map(lambda sharding: sharding.with_memory_kind(memory), on_host)
        return OffloadShardings(on_host, on_device)

    def _check_used(self) -> None:
        """Raises ShardingError or ConfigError for a mesh axis or remat setting that no layer of the model supports."""
        layout, name = self.spec.layout, type(self.spec.task).__name__
        for axis, what in SPLIT_BY_LAYERS.items():
            if self.mesh.shape[axis] > 1 and axis not in layout.used:
                raise ShardingError(
                    f"mesh.{axis} = {self.mesh.shape[axis]}: the model of {name} has no {what}, which this axis "
                    f"splits. Use mesh.{axis}=1, and data or fsdp for these devices."
                )
        if layout.remat != "none" and "remat" not in layout.used:
            raise ConfigError(
                f"train.remat = {layout.remat!r}: the model of {name} has no layer that supports remat. Use "
                "engine.layers.Stack, or engine.layers.remat around a layer, or train.remat=none."
            )
        if layout.quantizes and QUANTIZED not in layout.used:
            raise ConfigError(
                f"train.precision = {layout.precision}: the model of {name} has no product that it quantizes. It "
                "quantizes those of engine.layers.Dense and Experts whose sizes are multiples of 16. Use them, or "
                "train.precision=bfloat16."
            )
        given = sorted(used.removeprefix(NAMED) for used in layout.used if used.startswith(NAMED))
        for value in filter(None, layout.remat.partition(":")[2].split(",")):
            if value not in given:
                raise ConfigError(
                    f"train.remat = {layout.remat!r}: the model of {name} has no value named {value!r}."
                    f"{did_you_mean(value, given)} Named values: {', '.join(given) or 'none'}. A layer names a value "
                    "with engine.layers.checkpoint(x, name)."
                )

    @property
    def flops_per_step(self) -> float:
        """Model FLOPs of a step over all devices (`model_flops`); the first call traces the loss once more."""
        return self._mean_over_shapes(self._model_flops)

    @functools.cached_property
    def _model_flops(self) -> list[int]:
        return [model_flops(self.spec, self.task_metrics, self.abstract_state, b) for b in self._abstract_batches]

    @property
    def hardware_flops_per_step(self) -> float:
        """FLOPs of matrix products and convolutions that a step executes over all devices; 0 until it is traced."""
        return self._mean_over_shapes(self._hardware_flops)

    def _mean_over_shapes(self, values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(self.shape_shares, values, strict=True))

    @property
    def evaluation(self) -> EvaluationProgram:
        """The program of the evaluations of this Task."""
        spec = self.spec
        return EvaluationProgram(
            spec.task,
            spec.model,
            spec.layout,
            spec.compute_dtype,
            seed=self.seed,
            total_steps=spec.total_steps,
            steps_per_epoch=spec.steps_per_epoch,
            rows=self.batch_size,
        )

    @property
    def warnings(self) -> list[str]:
        """Warnings about valid settings of the mesh, the rules and the data that are rarely intended."""
        model, layout = self.spec.model, self.spec.layout
        found = [*warnings(model.params, model.names, layout.rules, self.mesh), *self.spec.data_warnings]
        if any(ignored := self.spec.ignored_rows) and not self._loss_by_row and not has_encode(self.spec.task):
            found.append(
                f"{ignored[0]}: the loss of {type(self.spec.task).__name__} is one number per batch, so {ignored[1]} "
                "counts like an example. With Loss.of(values) its row has weight 0."
            )
        if self.abstract_state.ema is not None and self.abstract_state.is_schedule_free:
            found.append(
                f"train.ema_decay = {self.spec.ema_decay}: evaluations and exports use this average of the training "
                "weights, and not the average of the schedule-free optimizer. Leave train.ema_decay unset."
            )
        return found

    def init(
        self, params: Mapping[str, jax.Array] | None = None, model_state: Mapping[str, jax.Array] | None = None
    ) -> TrainState:
        """Returns the initial state; each array is created with its final sharding.

        Args:
            params: path -> array that replaces the random one, also in the initial optimizer state and average.
            model_state: path -> array that replaces the initial model state.
        """
        make = self.compile_first_state()
        group.meet("the initial state")  # compiled (`parallel/connect.py`)
        state = make()
        if not params and not model_state:
            return state
        params = {**state.params, **(params or {})}
        opt_state, ema = self.compile_optimizer_state()({path: params[path] for path in self.spec.model.averaged})
        model_state = {**state.model_state, **(model_state or {})}
        return dataclasses.replace(state, params=params, model_state=model_state, opt_state=opt_state, ema=ema)

    def compile_optimizer_state(self) -> jax.stages.Compiled:
        """Returns the compiled program that makes, of `Model.averaged`, the optimizer state and their average."""
        spec = self.spec

        def make(params: Arrays) -> tuple[PyTree, Arrays | None]:
            trained = {path: params[path] for path in spec.model.trained}
            return spec.tx.init(trained), None if spec.ema_decay is None else jax.tree.map(jnp.copy, params)

        parts = (self.abstract_state.opt_state, self.abstract_state.ema)
        shardings = jax.tree.map(lambda x: x.sharding, parts)
        params = {path: self.abstract_state.params[path] for path in spec.model.averaged}
        jitted = jax.jit(with_layout(self.spec.layout, make), out_shardings=shardings)
        return self._compile("optimizer state of init.checkpoint", lambda: jitted.lower(params))

    def compile_first_state(self) -> jax.stages.Compiled:
        """Returns the compiled program that makes the initial state with random weights."""
        spec = self.spec
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        ema = spec.ema_decay is not None
        first = functools.partial(initial_state, spec.task, spec.model, spec.tx, self.seed, ema)
        make = jax.jit(with_layout(self.spec.layout, first), out_shardings=shardings)
        return self._compile("first state", make.lower)

    def compile_finite(self) -> None:
        """Compiles the check of `not_finite`."""
        self._are_finite.lower(self.abstract_state).compile()

    def steps(self, k: int) -> CompiledSteps:
        """Returns the compiled program of k steps."""
        if k not in self._steps:
            numbers = self._replicated(self.spec.optimizer.numbers)
            compiled = [StepsOfRun(program, numbers) for program in self.compile_steps(k)]
            self._steps[k] = compiled[0] if len(compiled) == 1 else ByShape(self._abstract_batches, compiled)
        return self._steps[k]

    def compile_steps(self, k: int) -> list[jax.stages.Compiled]:
        """Returns the compiled program of k steps for each shape of the batches."""
        name, shapes = "step" if k == 1 else f"{k} steps", len(self._abstract_batches)
        return [
            self._compile(
                f"{name} of length {shape + 1}" if shapes > 1 else name,
                lambda shape=shape: self.trace(k, shape).lower(),
                step_options(self.spec.compiler_options, self.spec.packs),
            )
            for shape in range(shapes)
        ]

    def skip_mask(self, flags: tuple[bool, ...]) -> jax.Array:
        """Returns, as a device array, which updates of a dispatch are skipped whatever their loss."""
        if flags not in self._skip_masks:
            self._skip_masks[flags] = self._replicated(np.array(flags))
        return self._skip_masks[flags]

    def _replicated(self, values: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(replicated(self.mesh), values)

    def not_finite(self, state: TrainState) -> list[str]:
        """Returns the paths of arrays of a state with values that are not finite; waits for the device."""
        return [path for path, finite in self._are_finite(state).items() if not finite]

    def not_finite_gradients(self, state: TrainState, batch: Batch, step: int) -> list[str]:
        """Returns the paths of parameters whose gradient is not finite with this state, batch and step. Compiles."""
        are_finite = jax.jit(with_layout(self.spec.layout, make_gradient_check(self.spec, self.task_metrics)))
        return [path for path, finite in are_finite(state, batch, jnp.asarray(step)).items() if not finite]

    def trace(self, k: int, shape: int = -1) -> jax.stages.Traced:
        """Returns the traced, not yet compiled, program of k steps; of several shapes, that of one, the largest."""
        step = make_train_step(self.spec, self.task_metrics, k > 1)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        jitted = jax.jit(
            with_layout(self.spec.layout, make_steps(step, self.spec.unroll, self.spec.packs)),
            donate_argnums=0,
            out_shardings=(shardings, replicated(self.mesh)),
            compiler_options=step_options(self.spec.compiler_options, self.spec.packs),
        )
        mask = jax.ShapeDtypeStruct((k,), jnp.bool_, sharding=replicated(self.mesh))
        count = len(self.spec.optimizer.numbers)
        numbers = jax.ShapeDtypeStruct((count,), jnp.float32, sharding=replicated(self.mesh))
        traced = jitted.trace(self.abstract_state, (self._abstract_batches[shape],) * k, mask, numbers)
        self._hardware_flops[shape] = count_flops(traced.jaxpr.jaxpr) / k
        return traced

    def _compile(
        self, name: str, lower: Callable[[], jax.stages.Lowered], options: Mapping[str, Value] | None = None
    ) -> jax.stages.Compiled:
        start = time.monotonic()
        compiled = self.compiler.compile(name + self.spec.suffix, lower(), self.mesh, options)
        self.compile_s += time.monotonic() - start
        return compiled
