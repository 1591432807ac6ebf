"""The train step and the evaluation step: pure functions of pytrees.

Owns: microbatches, the division by the global weight, precision, the on-device guard, the average of the weights,
and K steps in one program. Does not own: compilation (`program.py`) or the loop (`trainer.py`).

Terms. *Microbatch*: a part of a batch whose gradient is summed with the others' before the one division. Rows are
dealt out in turn (row r to microbatch r mod M), so that each device's rows stay where they are. *Guard*: an update
whose loss or gradient is not finite, whose loss is a spike, or that is told to be held back leaves parameters,
optimizer, carried state and average as they were. *Spike*: a loss above `spike` times the median of the recent ones.
*Metrics* leave a step as one `[names, 2]` float32 array of (total, weight).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.metrics import Mean, by_row, divide, reduce_mean
from engine.parallel.layout import Layout
from engine.parallel.mesh import batch_sharding
from engine.training.model import Model, cast
from engine.training.state import RECENT, Shardings, State
from engine.training.task import Batch, Task

Step = Callable[[State, Batch, jax.Array], tuple[State, jax.Array]]

JUDGED_FROM = 16  # recent losses; before there are so many, none is a spike
ENGINE_METRICS = ("grad_norm", "learning_rate", "skipped")
BAD_EXAMPLES = "bad_examples"  # a further one, where batches are weighted


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What a train step is made of."""

    task: Task
    model: Model
    tx: optax.GradientTransformationExtraArgs
    learning_rate: optax.Schedule
    layout: Layout
    accumulate: int = 1
    compute_dtype: Any = jnp.float32
    ema_decay: float | None = None
    unroll: bool = False  # microbatches and K steps written out: a while loop around a convolution is slow on CPU
    grad_shardings: Shardings = dataclasses.field(default_factory=dict)  # path -> where a gradient is summed
    opt_places: tuple[Any, Any] | None = None  # the optimizer state: where it lives, and where it is worked on
    weighted: bool = False  # a batch is a pair: with the weight of its rows, 0 for what could not be read
    spike: float | None = None  # a loss this many times the running median is held back too
    branch: bool = False  # the guard branches instead of selecting each number: faster on CPU, not with convolutions

    @property
    def mesh(self) -> Mesh:
        """The mesh that the step runs on."""
        assert self.layout.mesh is not None
        return self.layout.mesh

    @property
    def batch_sharding(self) -> NamedSharding:
        """Where the rows of a batch lie."""
        return batch_sharding(self.mesh)


def make_train_step(spec: StepSpec, metric_names: tuple[str, ...]) -> Step:
    """Returns `(state, batch, held) -> (state, metrics)`; `held` (bool) holds the update back whatever the loss.

    Args:
        spec: the parts.
        metric_names: the Task's metrics in the order of the result, "loss" first; ENGINE_METRICS follow.
    """

    def step(state: State, batch: Batch, held: jax.Array) -> tuple[State, jax.Array]:
        state = _moved(spec, state, 1)
        key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])
        grads, sums, carried = _gradients(spec, metric_names, state, batch, key)
        loss, grad_norm = divide(sums[0]), optax.tree.norm(grads)
        ok = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & ~held
        recent = state["recent"]
        if spec.spike is not None:
            ok &= ~is_spike(loss, recent, spec.spike)
            recent = jnp.where(ok & (jnp.arange(RECENT) == state["step"] % RECENT), loss, recent)
        update, old = functools.partial(_update, spec, state, grads, grad_norm, carried), _guarded(state)
        if spec.branch:
            new = jax.lax.cond(ok, update, lambda: old)
        else:
            new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), update(), old)
        new = _moved(spec, new, 0) | {"step": state["step"] + 1, "rng": state["rng"], "recent": recent}
        ours = [grad_norm, spec.learning_rate(state["step"]), 1.0 - ok]
        ours = jnp.stack([*ours, (batch[1] == 0).sum()] if spec.weighted else ours)
        return new, jnp.concatenate([sums, jnp.stack([ours, jnp.ones_like(ours)], axis=1)])

    return step


def is_spike(loss: jax.Array, recent: jax.Array, factor: float) -> jax.Array:
    """Whether a loss is above `factor` times the median of the recent ones (float32 `[RECENT]`, NaN for none).

    Below 0 the same distance is measured: the median plus (factor - 1) times its magnitude.
    """
    count = jnp.isfinite(recent).sum()
    median = jnp.sort(recent)[jnp.maximum(count - 1, 0) // 2]  # NaN comes last; the lower one of two in the middle
    return (count >= JUDGED_FROM) & (loss > median + (factor - 1) * jnp.abs(median))


def make_finite(spec: StepSpec) -> Callable[[State], dict[str, jax.Array]]:
    """Returns `state -> {path: bool}`: whether all numbers of what is trained are finite.

    Parameters that are trained, their average and the optimizer's arrays; in carried state a model's own infinity (a
    mask) is let be, NaN is not. Scalars of an optimizer may be infinite too, such as the best loss so far.
    """

    def finite(state: State) -> dict[str, jax.Array]:
        state = _moved(spec, state, 1)
        trained = {path: state["params"][path] for path in spec.model.trained}
        parts = {"params": trained, "opt_state": state["opt_state"], "ema": state.get("ema", {})}
        told = {}
        for path, x in jax.tree.leaves_with_path(parts):
            if x.ndim and jnp.issubdtype(x.dtype, jnp.inexact):
                told[jax.tree_util.keystr(path, simple=True, separator="/")] = jnp.isfinite(x).all()
        for path, x in state["carried"].items():
            if jnp.issubdtype(x.dtype, jnp.inexact):
                told[f"carried/{path}"] = ~jnp.isnan(x).any()
        return told

    return finite


def _gradients(
    spec: StepSpec, metric_names: tuple[str, ...], state: State, batch: Batch, key: jax.Array
) -> tuple[Any, jax.Array, Any]:
    """Returns the gradient of the mean loss, the summed metrics `[names, 2]` and the carried state."""
    trained_paths = frozenset(spec.model.trained)
    trained = {path: x for path, x in state["params"].items() if path in trained_paths}
    frozen = {path: x for path, x in state["params"].items() if path not in trained_paths}
    rows = jax.tree.leaves(batch)[0].shape[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))

    def total_loss(trained: Any, carried: Any, part: tuple[Batch, jax.Array, Any]) -> tuple[jax.Array, Any]:
        batch, keys, index = part
        batch, weight = batch if spec.weighted else (batch, None)
        params = cast({**trained, **frozen}, spec.compute_dtype)
        module = spec.model.module(params, carried, jax.random.fold_in(key, rows + index))
        module.train()
        loss = spec.task.loss(module, cast(batch, spec.compute_dtype, spec.task.full_precision), keys)
        means = {"loss": Mean(loss.total, loss.weight), **loss.metrics}
        sums = jnp.stack([reduce_mean(means[name], weight if by_row(means[name]) else None) for name in metric_names])
        carried = {path: x.astype(carried[path].dtype) for path, x in spec.model.carried_of(module).items()}
        return sums[0, 0], (sums, carried)

    def microbatch(carry: Any, part: tuple[Batch, jax.Array, Any]) -> tuple[Any, None]:
        grads, sums, carried = carry
        more, (more_sums, carried) = jax.grad(total_loss, has_aux=True)(trained, carried, part)
        return (*jax.tree.map(jnp.add, (grads, sums), (_place(spec, more), more_sums)), carried), None

    if spec.accumulate == 1:
        grads, (sums, carried) = jax.grad(total_loss, has_aux=True)(trained, state["carried"], (batch, keys, 0))
    else:
        parts = (*_microbatches(spec, (batch, keys)), jnp.arange(spec.accumulate))
        zeros = (
            _place(spec, jax.tree.map(jnp.zeros_like, trained)),
            jnp.zeros((len(metric_names), 2)),
            state["carried"],
        )
        (grads, sums, carried), _ = jax.lax.scan(microbatch, zeros, parts, unroll=spec.unroll)
    weight = sums[0, 1]
    return (
        jax.tree.map(lambda g: jnp.where(weight != 0, g / jnp.where(weight != 0, weight, 1), 0), _place(spec, grads)),
        sums,
        carried,
    )


def _place(spec: StepSpec, arrays: Any) -> Any:
    """Says where gradients lie: each device sums the part that it updates, which is what FSDP and ZeRO-1 are."""
    if spec.mesh.size == 1:
        return arrays
    return {path: jax.lax.with_sharding_constraint(x, spec.grad_shardings[path]) for path, x in arrays.items()}


def _microbatches(spec: StepSpec, batch: Any) -> Any:
    """Deals the rows of `[batch, ...]` leaves out to `[accumulate, batch / accumulate, ...]`."""
    sharding = NamedSharding(spec.mesh, PartitionSpec(None, *spec.batch_sharding.spec))

    def deal(x: jax.Array) -> jax.Array:
        parts = x.reshape(x.shape[0] // spec.accumulate, spec.accumulate, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, sharding)

    return jax.tree.map(deal, batch)


def _moved(spec: StepSpec, state: State, place: int) -> State:
    """The state with the optimizer's part in one of its places; it is the same where it has only one."""
    if spec.opt_places is None:
        return state
    return {**state, "opt_state": jax.device_put(state["opt_state"], spec.opt_places[place])}


def _guarded(state: State) -> State:
    """The parts of the state that the guard may hold back."""
    return {name: value for name, value in state.items() if name not in ("step", "rng", "recent")}


def _update(spec: StepSpec, state: State, grads: Any, grad_norm: jax.Array, carried: Any) -> State:
    """What the optimizer makes of a gradient, for the parts of the state that `_guarded` gives."""
    trained: Any = _place(spec, {path: state["params"][path] for path in spec.model.trained})
    updates, opt_state = spec.tx.update(grads, state["opt_state"], trained, grad_norm=grad_norm)
    trained = optax.apply_updates(trained, updates)
    new = {"params": {**state["params"], **trained}, "carried": carried, "opt_state": opt_state}
    if spec.ema_decay is not None:
        new["ema"] = optax.incremental_update(trained, state["ema"], 1 - spec.ema_decay)
    return new


def make_steps(step: Step, unroll: bool) -> Callable[[State, tuple[Batch, ...], jax.Array], tuple[State, jax.Array]]:
    """Returns `(state, K batches, held [K]) -> (state, metrics [K, names, 2])`: K steps, one after the other.

    Args:
        step: one step.
        unroll: write the K steps out instead of scanning, where a while loop is slow (convolutions on CPU).
    """

    def steps(state: State, batches: tuple[Batch, ...], held: jax.Array) -> tuple[State, jax.Array]:
        if len(batches) > 1 and not unroll:
            stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
            return jax.lax.scan(lambda state, xs: step(state, *xs), state, (stacked, held))
        metrics = []
        for i, batch in enumerate(batches):
            if metrics:
                # A wall between steps: fusion across it would round differently from single steps.
                state, metrics[-1] = jax.lax.optimization_barrier((state, metrics[-1]))
            state, values = step(state, batch, held[i])
            metrics.append(values)
        return state, jnp.stack(metrics)

    return steps


def make_evaluation_step(
    task: Task, model: Model, compute_dtype: Any, metric_names: tuple[str, ...], by_row: bool
) -> Callable[[Any, Any, Batch, jax.Array], jax.Array]:
    """Returns `(params, carried, batch, rows [batch]) -> metrics [names, 2]`; rows of weight 0 count nothing."""

    def step(params: Any, carried: Any, batch: Batch, rows: jax.Array) -> jax.Array:
        means = evaluate(task, model, compute_dtype, params, carried, batch)
        return jnp.stack([reduce_mean(means[name], rows if by_row else None) for name in metric_names])

    return step


def evaluate(task: Task, model: Model, compute_dtype: Any, params: Any, carried: Any, batch: Batch) -> Any:
    """The Task's metrics of one batch, by name; to be traced."""
    module = model.module(cast(params, compute_dtype), carried, None)
    module.eval()
    return task.evaluate(module, cast(batch, compute_dtype, task.full_precision))
