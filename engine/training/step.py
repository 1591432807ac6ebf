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
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from engine.data.batch import Batch
from engine.data.context import Context, call
from engine.metrics.mean import divide
from engine.metrics.metric import Metric
from engine.metrics.pairs import pairs_of
from engine.metrics.state import Reduced
from engine.parallel.layout import Layout
from engine.parallel.mesh import batch_sharding
from engine.training.model import Arrays, Model, cast
from engine.training.objective import EVERY, Objective, means_of
from engine.training.optimizer import RunOptimizer
from engine.training.state import LOSS_WINDOW, Shardings, TrainState
from engine.training.task import Task
from engine.training.update import constrain, finish, has_own_update, new_state, optimize, own_update
from engine.types import PyTree

type Step = Callable[[TrainState, Batch, jax.Array, jax.Array], tuple[TrainState, jax.Array]]
type Steps = Callable[[TrainState, tuple[Batch, ...], jax.Array, jax.Array], tuple[TrainState, jax.Array]]
type EvaluationStep = Callable[[Arrays, Arrays, Batch, np.ndarray], Reduced]

MIN_LOSSES = 16  # with fewer losses in the window, no loss is a spike
ENGINE_METRICS = ("grad_norm", "learning_rate", "skipped")
BAD_EXAMPLES = "bad_examples"  # additional metric with data.on_error=skip


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """The parts and settings of a train step."""

    task: Task
    model: Model
    optimizer: RunOptimizer
    layout: Layout
    accumulate: int = 1
    approximate_accumulation: bool = False
    compute_dtype: DTypeLike = jnp.float32
    ema_decay: float | None = None
    skip_bad: bool = False  # unreadable examples have weight 0 and are counted in a metric
    unroll: bool = False  # unroll microbatches and K steps: a while loop around a convolution is slow on CPU
    grad_shardings: Shardings = dataclasses.field(default_factory=dict)  # path -> sharding of the summed gradient
    opt_shardings: tuple[PyTree, PyTree] | None = None  # of an offloaded optimizer state: on the host, on the device
    spike: float | None = None  # skip an update whose loss is above this many times the median of the loss window
    objective: Objective = dataclasses.field(default_factory=Objective)  # names of the losses
    total_steps: int = 0  # for the context, as is the next one
    steps_per_epoch: float = 1.0
    branch: bool = False  # the guard branches instead of selecting each value: faster on CPU without convolutions

    @property
    def tx(self) -> optax.GradientTransformationExtraArgs:
        """The transformation of the trained parameters."""
        return self.optimizer.tx

    @property
    def groups(self) -> Mapping[str, str]:
        """Path of a trained parameter -> optimizer group; "" for none."""
        return self.optimizer.labels

    def with_numbers(self, numbers: jax.Array) -> "StepSpec":
        """Returns the settings with the learning rates of the optimizer as traced numbers."""
        return dataclasses.replace(self, optimizer=self.optimizer.with_numbers(numbers))

    @property
    def mesh(self) -> Mesh:
        """The mesh of the step."""
        assert self.layout.mesh is not None
        return self.layout.mesh

    @property
    def engine_metrics(self) -> tuple[str, ...]:
        """Names of the engine's metrics, which follow the Task's."""
        return (*ENGINE_METRICS, BAD_EXAMPLES) if self.skip_bad else ENGINE_METRICS

    def context(self, step: jax.Array | int, rng: jax.Array) -> Context:
        """Returns the context of a step, for the methods of the Task that ask for it."""
        epoch = jnp.asarray(step, jnp.float32) / self.steps_per_epoch
        return Context(jnp.asarray(step, jnp.int32), epoch, self.total_steps, rng)

    @property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of the rows of a batch."""
        return batch_sharding(self.mesh)


def make_train_step(settings: StepSpec, metric_names: tuple[str, ...]) -> Step:
    """Returns `(state, batch, skip, numbers) -> (state, metrics)`.

    `skip` (bool) skips the update, whatever the loss. `numbers` are those of `RunOptimizer.numbers`.

    Args:
        settings: parts and settings of the step.
        metric_names: the Task's metrics in the order of the result, "loss" first; `settings.engine_metrics` follow.
    """

    def step(state: TrainState, batch: Batch, skip: jax.Array, numbers: jax.Array) -> tuple[TrainState, jax.Array]:
        spec = settings.with_numbers(numbers)
        state = move_optimizer(spec, state, 1)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        if has_own_update(spec.task):
            after, means = own_update(spec, state, batch, key)
            pairs = pairs_of(means, None)
            sums = jnp.stack([pairs[name] for name in metric_names])
            grad_norm, update = after.grad_norm, functools.partial(new_state, spec, state, after, key)
            finite = jnp.stack([jnp.isfinite(x).all() for x in after.params.values()]).all()
        else:
            grads, sums, model_state = _gradients(spec, metric_names, state, batch, key, state.step)
            grad_norm, finite = optax.tree.norm(grads), True
            update = functools.partial(_update, spec, state, grads, grad_norm, model_state, key)
        loss = divide(sums[0])
        ok = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & ~skip & finite
        window = state.loss_window
        if spec.spike is not None:
            ok &= ~is_spike(loss, window, spec.spike)
            window = jnp.where(ok & (jnp.arange(LOSS_WINDOW) == state.step % LOSS_WINDOW), loss, window)
        if spec.branch:
            new = jax.lax.cond(ok, update, lambda: state)
        else:
            new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), update(), state)
        new = dataclasses.replace(move_optimizer(spec, new, 0), step=state.step + 1, rng=state.rng, loss_window=window)
        values = {
            "grad_norm": grad_norm,
            "learning_rate": spec.optimizer.learning_rate(state.step),
            "skipped": 1.0 - ok,
            BAD_EXAMPLES: (batch.weight == 0).sum(),
        }
        totals = jnp.stack([values[name] for name in spec.engine_metrics])
        return new, jnp.concatenate([sums, jnp.stack([totals, jnp.ones_like(totals)], axis=1)])

    return step


def is_spike(loss: jax.Array, window: jax.Array, factor: float) -> jax.Array:
    """Returns whether a loss is above `factor` times the median of the loss window (NaN entries are ignored).

    For a negative median the limit is the median plus (factor - 1) times its magnitude.
    """
    count = jnp.isfinite(window).sum()
    median = jnp.sort(window)[jnp.maximum(count - 1, 0) // 2]  # NaN sorts last; the lower of two middle values
    return (count >= MIN_LOSSES) & (loss > median + (factor - 1) * jnp.abs(median))


def make_finite(spec: StepSpec) -> Callable[[TrainState], dict[str, jax.Array]]:
    """Returns `state -> {path: bool}`: whether all values of an array are finite.

    The arrays are the trained parameters, their averages and the optimizer state. Scalars of the optimizer are not
    checked, since they may be infinite (such as the best loss so far). Model state may hold infinities (such as a mask)
    but no NaN.
    """

    def finite(state: TrainState) -> dict[str, jax.Array]:
        state = move_optimizer(spec, state, 1)
        trained = {path: state.params[path] for path in spec.model.trained}
        parts = {"params": trained, "opt_state": state.opt_state, "ema": state.ema}
        found = {}
        for path, x in jax.tree.leaves_with_path(parts):
            if x.ndim and jnp.issubdtype(x.dtype, jnp.inexact):
                found[jax.tree_util.keystr(path, simple=True, separator="/")] = jnp.isfinite(x).all()
        for path, x in state.model_state.items():
            if jnp.issubdtype(x.dtype, jnp.inexact):
                found[f"model_state/{path}"] = ~jnp.isnan(x).any()
        return found

    return finite


def make_finite_gradient(spec: StepSpec, metric_names: tuple[str, ...]) -> Callable[..., dict[str, jax.Array]]:
    """Returns `(state, batch, step) -> {path: bool}`: whether the gradient of a parameter is finite in this step."""

    def finite(state: TrainState, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), step)
        if has_own_update(spec.task):
            after, _ = own_update(spec, state, batch, key)
            return {path: jnp.isfinite(x).all() for path, x in after.params.items()}
        grads, _, _ = _gradients(spec, metric_names, state, batch, key, step)
        return {path: jnp.isfinite(grad).all() for path, grad in grads.items()}

    return finite


def _gradients(
    spec: StepSpec, metric_names: tuple[str, ...], state: TrainState, batch: Batch, key: jax.Array, step: jax.Array
) -> tuple[Arrays, jax.Array, Arrays]:
    """Returns the gradient of the objectives, the summed metrics `[names, 2]` and the new model state."""
    trained_paths = frozenset(spec.model.trained)
    trained = {path: x for path, x in state.params.items() if path in trained_paths}
    frozen = {path: x for path, x in state.params.items() if path not in trained_paths}
    rows = len(batch.weight)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    objective = spec.objective

    def losses(
        weights: Arrays | None,
        trained: Arrays,
        model_state: Arrays,
        batch: Batch,
        keys: jax.Array,
        index: jax.Array | int,
    ) -> tuple[Arrays, tuple[jax.Array, Arrays]]:
        """Returns optimizer group -> what it minimises, the metrics, and the new model state.

        A single term is not divided. The terms of a sum are divided by `weights`; None for the weights of this batch.
        """
        params = cast({**trained, **frozen}, spec.compute_dtype)
        module = spec.model.module(params, model_state, jax.random.fold_in(key, rows + index))
        module.train()
        examples = cast(batch.examples, spec.compute_dtype, spec.task.full_precision)
        means = means_of(call(spec.task.loss, module, examples, keys, context=spec.context(step, keys)))
        # Without skip_bad every weight is 1. A weighted sum would then only round differently and change old runs.
        weight = batch.weight if spec.skip_bad else None
        zero = jnp.zeros(2)  # of the metric "loss" if it is the sum of several, which `complete` computes
        found = pairs_of(means, weight)
        # Otherwise a metric gets a zero cotangent: wasted work, and NaN where its derivative is infinite.
        sums = jax.lax.stop_gradient(jnp.stack([found.get(name, zero) for name in metric_names]))
        new = {path: x.astype(model_state[path].dtype) for path, x in spec.model.model_state_of(module).items()}
        minimised = {}
        for group, (first, *rest) in objective.terms.items():
            if not rest:
                minimised[group] = found[first][0]
                continue
            pairs = {name: found[name] for name in (first, *rest)}
            known = weights or {name: jax.lax.stop_gradient(pair[1]) for name, pair in pairs.items()}
            minimised[group] = sum(divide(jnp.stack([pair[0], known[name]])) for name, pair in pairs.items())
        return minimised, (sums, new)

    def gradient(weights: Arrays | None, *args: PyTree) -> tuple[Arrays, tuple[jax.Array, Arrays]]:
        function = functools.partial(losses, weights)
        if len(objective.terms) == 1:
            (group,) = objective.terms
            return jax.grad(lambda *args: _first(function(*args), group), has_aux=True)(*args)
        trained, *rest = args
        values, pullback, aux = jax.vjp(lambda trained: function(trained, *rest), trained, has_aux=True)
        grads = {}
        for group in values:
            # The gradients of the parameters of other groups are dead code, which XLA removes.
            (found,) = pullback({name: jnp.full_like(x, name == group) for name, x in values.items()})
            grads |= {path: x for path, x in found.items() if spec.groups[path] == group}
        return grads, aux

    def add(weights: Arrays | None, carry: PyTree, part: tuple[Batch, jax.Array, jax.Array]) -> tuple[PyTree, None]:
        grads, sums, model_state = carry
        more, (more_sums, model_state) = gradient(weights, trained, model_state, *part)
        return (*jax.tree.map(jnp.add, (grads, sums), (constrain(spec, more), more_sums)), model_state), None

    def add_weights(carry: PyTree, part: tuple[Batch, jax.Array, jax.Array]) -> tuple[PyTree, None]:
        sums, model_state = carry
        _, (more, model_state) = losses(None, trained, model_state, *part)
        return (sums + more[:, 1], model_state), None

    if spec.accumulate == 1:
        grads, (sums, model_state) = gradient(None, trained, state.model_state, batch, keys, 0)
    else:
        parts = (*_microbatches(spec, (batch, keys)), jnp.arange(spec.accumulate))
        weights = None
        if objective.is_sum:
            # The gradient of a microbatch needs the weights of the whole batch. If they depend on the batch alone, XLA
            # removes the rest of this forward pass.
            first = (jnp.zeros(len(metric_names)), state.model_state)
            (found, _), _ = jax.lax.scan(add_weights, first, parts, unroll=spec.unroll)
            weights = dict(zip(metric_names, found, strict=True))
        zeros = constrain(spec, jax.tree.map(jnp.zeros_like, trained))
        first = (zeros, jnp.zeros((len(metric_names), 2)), state.model_state)
        scanned = functools.partial(add, weights)
        (grads, sums, model_state), _ = jax.lax.scan(scanned, first, parts, unroll=spec.unroll)
    by_name = dict(zip(metric_names, sums, strict=True))
    grads = constrain(spec, grads)
    mean = {path: _divided(spec, path, x, by_name) for path, x in grads.items()}
    if not objective.single:
        completed = objective.complete(by_name)
        sums = jnp.stack([completed[name] for name in metric_names])
    return mean, sums, model_state


def _first(found: tuple[Arrays, PyTree], group: str) -> tuple[jax.Array, PyTree]:
    return found[0][group], found[1]


def _divided(spec: StepSpec, path: str, grad: jax.Array, sums: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the gradient of the mean of a loss, from that of its total; a sum of losses is divided already."""
    objective = spec.objective
    first, *rest = objective.terms[EVERY if EVERY in objective.terms else spec.groups[path]]
    if rest:
        return grad
    weight = sums[first][1]
    return jnp.where(weight != 0, grad / jnp.where(weight != 0, weight, 1), 0)


def _microbatches(spec: StepSpec, batch: PyTree) -> PyTree:
    """Reshapes leaves `[batch, ...]` to microbatches `[accumulate, batch / accumulate, ...]`.

    Row r goes to microbatch r mod accumulate, so that no row moves to another device.
    """
    sharding = NamedSharding(spec.mesh, PartitionSpec(None, *spec.batch_sharding.spec))

    def deal(x: jax.Array) -> jax.Array:
        parts = x.reshape(x.shape[0] // spec.accumulate, spec.accumulate, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, sharding)

    return jax.tree.map(deal, batch)


def move_optimizer(spec: StepSpec, state: TrainState, where: int) -> TrainState:
    """Returns the state with an offloaded optimizer state in host memory (0) or device memory (1)."""
    if spec.opt_shardings is None:
        return state
    return dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, spec.opt_shardings[where]))


def _update(
    spec: StepSpec, state: TrainState, grads: Arrays, grad_norm: jax.Array, model_state: Arrays, key: jax.Array
) -> TrainState:
    """Returns the state after one update of the optimizer; `step` and `loss_window` are unchanged."""
    trained = {path: state.params[path] for path in spec.model.trained}
    trained, opt_state = optimize(spec, trained, state.opt_state, grads, grad_norm)
    return finish(spec, state, {**state.params, **trained}, model_state, opt_state, key)


def make_steps(step: Step, unroll: bool) -> Steps:
    """Returns `(state, K batches, skip mask [K], numbers) -> (state, metrics [K, names, 2])`: K steps in sequence.

    Args:
        step: a single step.
        unroll: unroll the K steps instead of scanning, for convolutions on CPU, where a while loop is slow.
    """

    def steps(
        state: TrainState, batches: tuple[Batch, ...], skip: jax.Array, numbers: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        if len(batches) > 1 and not unroll:
            stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
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


def evaluate(
    task: Task,
    model: Model,
    compute_dtype: DTypeLike,
    params: Arrays,
    model_state: Arrays,
    batch: Batch,
    context: Context,
) -> Mapping[str, Metric]:
    """Returns the Task's metrics of one batch, by name; to be traced."""
    module = model.module(cast(params, compute_dtype), model_state, None)
    module.eval()
    examples = cast(batch.examples, compute_dtype, task.full_precision)
    return call(task.evaluate, module, examples, context=context)
