"""The train step and the evaluation step: pure functions of pytrees.

A step sums gradients and metrics over microbatches, devices and hosts, and divides once by the global weight. It
returns metrics as one float32 array `[names, 2]` of (total, weight). The guard skips an update, so that only `step`
changes, if the loss or the gradient is not finite, if the loss is a spike, or if the skip mask says so.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike

from engine.base.types import PyTree
from engine.data.batch import Batch
from engine.data.context import Context, call
from engine.metrics.mean import divide
from engine.metrics.metric import Metric
from engine.metrics.pairs import pairs_of
from engine.training.arrays import Arrays, cast
from engine.training.gradients import gradients
from engine.training.model import Model, with_whole_kernels
from engine.training.objective import losses_for_evaluation
from engine.training.state import LOSS_WINDOW, TrainState
from engine.training.step_spec import BAD_EXAMPLES, StepSpec
from engine.training.task import Task, has_encode
from engine.training.update import finish, has_own_update, new_state, optimize, own_update

type Step = Callable[[TrainState, Batch, jax.Array, jax.Array], tuple[TrainState, jax.Array]]
type Steps = Callable[[TrainState, tuple[Batch, ...], jax.Array, jax.Array], tuple[TrainState, jax.Array]]

MIN_LOSSES = 16  # with fewer losses in the window, no loss is a spike


def make_train_step(settings: StepSpec, metric_names: tuple[str, ...], in_loop: bool = False) -> Step:
    """Returns `(state, batch, skip, numbers) -> (state, metrics)`.

    `skip` (bool) skips the update, whatever the loss. `numbers` are those of `RunOptimizer.numbers`.

    Args:
        settings: parts and settings of the step.
        metric_names: the Task's metrics in the order of the result, "loss" first; `settings.engine_metrics` follow.
        in_loop: the step is one of several in a program, whose loop may carry its state as vectors (`packing.py`).
    """

    def step(state: TrainState, batch: Batch, skip: jax.Array, numbers: jax.Array) -> tuple[TrainState, jax.Array]:
        spec = settings.with_numbers(numbers)
        state = optimizer_to_device(spec, state)
        key = step_key(state, state.step)
        if has_own_update(spec.task):
            after, means = own_update(spec, state, batch, key, state.step)
            pairs = pairs_of(means, None)
            sums = jnp.stack([pairs[name] for name in metric_names])
            grad_norm, update = after.grad_norm, functools.partial(new_state, spec, state, after, key)
            select = functools.partial(_select, update, state)
            changed = [*after.params.values(), *(after.frozen[path] for path in spec.changed_frozen)]
            finite = jnp.stack([jnp.isfinite(x).all() for x in changed]).all()
        else:
            grads, sums, model_state = _gradients(spec, metric_names, state, batch, key, state.step)
            (grad_norm, grads), finite = _norm(spec, grads), True
            update = functools.partial(_update, spec, state, grads, grad_norm, model_state, key)
            select = functools.partial(_select, update, state)
            if in_loop and spec.packs:
                select = functools.partial(_select_on_vectors, spec, state, grads, grad_norm, model_state, key)
        loss = divide(sums[0])
        ok = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & ~skip & finite
        window = state.loss_window
        if spec.spike is not None:
            ok &= ~is_spike(loss, window, spec.spike)
            window = jnp.where(ok & (jnp.arange(LOSS_WINDOW) == state.step % LOSS_WINDOW), loss, window)
        if spec.branch:
            new = jax.lax.cond(ok, update, lambda: state)
        else:
            new = select(ok)
        new = optimizer_to_host(spec, new)
        new = dataclasses.replace(new, step=state.step + 1, rng=state.rng, loss_window=window)
        values = {
            "grad_norm": grad_norm,
            **spec.optimizer.rates(state.opt_state, state.step),
            "skipped": 1.0 - ok,
            BAD_EXAMPLES: (batch.weight == 0).sum(),
        }
        totals = jnp.stack([values[name] for name in spec.engine_metrics])
        return new, jnp.concatenate([sums, jnp.stack([totals, jnp.ones_like(totals)], axis=1)])

    return step


def _norm(spec: StepSpec, grads: Arrays) -> tuple[jax.Array, Arrays]:
    """Returns the global norm of the gradients, and the gradients."""
    if not spec.packs:
        return optax.tree.norm(grads), grads
    from engine.training.packing import norm_and_arrays

    return norm_and_arrays(grads)


def _gradients(
    spec: StepSpec, names: tuple[str, ...], state: TrainState, batch: Batch, key: jax.Array, step: jax.Array
) -> tuple[Arrays, jax.Array, Arrays]:
    """Returns as `gradients`; few Tasks have losses that compare the rows of several microbatches."""
    if spec.accumulate == 1 or not has_encode(spec.task):
        return gradients(spec, names, state, batch, key, step)
    from engine.training.encoded import encoded_gradients

    return gradients(spec, names, state, batch, key, step, encoded_gradients)


def is_spike(loss: jax.Array, window: jax.Array, factor: float) -> jax.Array:
    """Returns whether a loss is above `factor` times the median of the loss window (NaN entries are ignored).

    For a negative median the limit is the median plus (factor - 1) times its magnitude.
    """
    count = jnp.isfinite(window).sum()
    median = jnp.sort(window)[jnp.maximum(count - 1, 0) // 2]  # NaN sorts last; the lower of two middle values
    return (count >= MIN_LOSSES) & (loss > median + (factor - 1) * jnp.abs(median))


def make_finite_check(spec: StepSpec) -> Callable[[TrainState], dict[str, jax.Array]]:
    """Returns `state -> {path: bool}`: whether all values of an array are finite.

    The arrays are the parameters that the run changes, their averages and the optimizer state. Scalars of the optimizer
    are not checked, since they may be infinite (such as the best loss so far). Model state may hold infinities (such as
    a mask) but no NaN.
    """

    def finite(state: TrainState) -> dict[str, jax.Array]:
        state = optimizer_to_device(spec, state)
        changed = {path: state.params[path] for path in (*spec.model.trained, *spec.changed_frozen)}
        parts = {"params": changed, "opt_state": state.opt_state, "ema": state.ema}
        found = {}
        for path, x in jax.tree.leaves_with_path(parts):
            if x.ndim and jnp.issubdtype(x.dtype, jnp.inexact):
                found[jax.tree_util.keystr(path, simple=True, separator="/")] = jnp.isfinite(x).all()
        for path, x in state.model_state.items():
            if jnp.issubdtype(x.dtype, jnp.inexact):
                found[f"model_state/{path}"] = ~jnp.isnan(x).any()
        return found

    return finite


def step_key(state: TrainState, step: jax.Array) -> jax.Array:
    """Returns the key of the random numbers of a step."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.rng), step)


def make_gradient_check(spec: StepSpec, metric_names: tuple[str, ...]) -> Callable[..., dict[str, jax.Array]]:
    """Returns `(state, batch, step) -> {path: bool}`: whether the gradient of a parameter is finite in this step."""

    def finite(state: TrainState, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        key = step_key(state, step)
        if has_own_update(spec.task):
            after, _ = own_update(spec, optimizer_to_device(spec, state), batch, key, step)
            return {path: jnp.isfinite(x).all() for path, x in after.params.items()}
        grads, _, _ = _gradients(spec, metric_names, state, batch, key, step)
        return {path: jnp.isfinite(grad).all() for path, grad in grads.items()}

    return finite


def optimizer_to_device(spec: StepSpec, state: TrainState) -> TrainState:
    """Returns the state with an offloaded optimizer state in device memory."""
    return state if spec.opt_shardings is None else _move_optimizer(state, spec.opt_shardings.device)


def optimizer_to_host(spec: StepSpec, state: TrainState) -> TrainState:
    """Returns the state with an offloaded optimizer state in host memory."""
    return state if spec.opt_shardings is None else _move_optimizer(state, spec.opt_shardings.host)


def _move_optimizer(state: TrainState, shardings: PyTree) -> TrainState:
    return dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, shardings))


def _update(
    spec: StepSpec, state: TrainState, grads: Arrays, grad_norm: jax.Array, model_state: Arrays, key: jax.Array
) -> TrainState:
    """Returns the state after one update of the optimizer; `step` and `loss_window` are unchanged."""
    trained = {path: state.params[path] for path in spec.model.trained}
    trained, opt_state = optimize(spec, trained, state.opt_state, grads, grad_norm)
    return finish(spec, state, {**state.params, **trained}, model_state, opt_state, key)


def _select(update: Callable[[], TrainState], state: TrainState, ok: jax.Array) -> TrainState:
    """Returns the state after an update, or the same state if not `ok`."""
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), update(), state)


def _select_on_vectors(
    spec: StepSpec,
    state: TrainState,
    grads: Arrays,
    grad_norm: jax.Array,
    model_state: Arrays,
    key: jax.Array,
    ok: jax.Array,
) -> TrainState:
    """Returns as `_select`, computed on vectors of small arrays."""
    from engine.training.vectors import on_vectors

    def select(state: TrainState, grads: Arrays, model_state: Arrays) -> TrainState:
        return _select(functools.partial(_update, spec, state, grads, grad_norm, model_state, key), state, ok)

    return on_vectors(select, state, grads, model_state)


def make_steps(step: Step, unroll: bool, packs: bool = False) -> Steps:
    """Returns `(state, K batches, skip mask [K], numbers) -> (state, metrics [K, names, 2])`: K steps in sequence.

    Args:
        step: a single step.
        unroll: unroll the K steps instead of scanning, for convolutions on CPU, where a while loop is slow.
        packs: the loop over the steps carries the small arrays of the state as few vectors (`packing.py`).
    """

    def steps(
        state: TrainState, batches: tuple[Batch, ...], skip: jax.Array, numbers: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        if len(batches) > 1 and not unroll:
            stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
            if packs:
                return _scan_packed(step, state, (stacked, skip), numbers)
            return jax.lax.scan(lambda state, xs: step(state, *xs, numbers), state, (stacked, skip))
        metrics = []
        for i, batch in enumerate(batches):
            if metrics:
                # Without a barrier XLA would fuse across steps and round differently from single steps.
                state, metrics[-1] = jax.lax.optimization_barrier((state, metrics[-1]))
            state, values = step(state, batch, skip[i], numbers)
            metrics.append(values)
        return state, jnp.stack(metrics)

    return steps


def _scan_packed(
    step: Step, state: TrainState, inputs: tuple[Batch, jax.Array], numbers: jax.Array
) -> tuple[TrainState, jax.Array]:
    from engine.training.packing import Packed, Packing

    packing = Packing.of(state)

    def body(packed: Packed, xs: tuple[Batch, jax.Array]) -> tuple[Packed, jax.Array]:
        state, metrics = step(packing.unpack(packed), *xs, numbers)
        return packing.pack(state), metrics

    packed, metrics = jax.lax.scan(body, packing.pack(state), inputs)
    return packing.unpack(packed), metrics


def _in_evaluation(
    task: Task, model: Model, compute_dtype: DTypeLike, params: Arrays, model_state: Arrays, batch: Batch
) -> tuple[nnx.Module, PyTree]:
    """Returns the module in evaluation mode and the examples of a batch, both in the precision of the computation."""
    module = model.module(with_whole_kernels(model, cast(params, compute_dtype)), model_state, None)
    module.eval()
    return module, cast(batch.examples, compute_dtype, task.full_precision)


def evaluate(
    task: Task,
    model: Model,
    compute_dtype: DTypeLike,
    params: Arrays,
    model_state: Arrays,
    batch: Batch,
    context: Context,
) -> tuple[Mapping[str, Metric | None], Arrays]:
    """Returns the Task's metrics of one batch, by name, and the model state that it leaves; to be traced.

    The state has only the arrays that belong to rows and that the evaluation has changed (`Model.state_of_rows`).
    """
    module, examples = _in_evaluation(task, model, compute_dtype, params, model_state, batch)
    metrics = call(task.evaluate, module, examples, context=context)
    after, paths = model.state_of(module), model.state_of_rows(len(batch.weight))
    changed = {path: after[path] for path in paths if after.get(path) is not model_state[path]}
    return metrics, {path: x.astype(model_state[path].dtype) for path, x in changed.items()}


def evaluate_loss(
    task: Task,
    model: Model,
    compute_dtype: DTypeLike,
    params: Arrays,
    model_state: Arrays,
    batch: Batch,
    context: Context,
) -> dict[str, Metric]:
    """Returns the losses of one batch for an evaluation (`losses_for_evaluation`); to be traced."""
    module, examples = _in_evaluation(task, model, compute_dtype, params, model_state, batch)
    return losses_for_evaluation(call(task.loss, module, examples, None, context=context))
