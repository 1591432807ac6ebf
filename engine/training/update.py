"""How a step changes the state: the optimizer, `Task.after_step`, and the update that a Task defines itself."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from engine.base.errors import ConfigError, TaskError
from engine.base.types import PyTree
from engine.data.batch import Batch
from engine.data.context import Context
from engine.metrics.mean import Mean
from engine.metrics.metric import Metric
from engine.metrics.state import check_metrics
from engine.metrics.values import describe_value
from engine.training.arrays import Arrays, cast
from engine.training.gradients import constrain
from engine.training.model import with_whole_kernels
from engine.training.objective import LOSS
from engine.training.state import TrainState
from engine.training.step_spec import StepSpec
from engine.training.task import Task
from engine.training.update_state import UpdateState

# Numbers of random keys.
AFTER_STEP, MODEL = 0, 1


@dataclasses.dataclass(frozen=True, eq=False)
class _Operations:
    """The operations of an `UpdateState` with the settings of a step, compared by identity."""

    spec: StepSpec

    def model(self, params: Arrays, model_state: Arrays, key: jax.Array) -> nnx.Module:
        spec = self.spec
        values = cast(params, spec.compute_dtype)
        module = spec.model.module(with_whole_kernels(spec.model, values), model_state, key)
        spec.model.train(module)
        return module

    def optimize(self, params: Arrays, opt_state: PyTree, grads: Arrays) -> tuple[Arrays, PyTree, jax.Array]:
        grads = constrain(self.spec, grads)
        norm = optax.tree.norm(grads)
        return (*optimize(self.spec, params, opt_state, grads, norm), norm)

    def model_state_of(self, model: nnx.Module) -> Arrays:
        return self.spec.model.model_state_of(model)


def has_own_update(task: Task) -> bool:
    """Returns whether a Task defines `update`."""
    return type(task).update is not Task.update


def check_own_update(spec: StepSpec) -> None:
    """Raises ConfigError for a setting that cannot apply to the `update` of a Task."""
    name = f"{type(spec.task).__name__}.update"
    if spec.accumulate > 1:
        raise ConfigError(
            f"train.accumulate = {spec.accumulate}: {name} computes the whole step, which the engine cannot split into "
            "microbatches. Use accumulate=1, and split the batch in the update."
        )
    reason, row = spec.ignored_rows
    if reason:
        advice = "data.on_error=stop" if spec.skip_bad else "a train.global_batch_size that leaves no row idle"
        raise ConfigError(
            f"{reason}: {name} computes the whole step, so the engine cannot leave out {row}. Use {advice}."
        )


def own_update(
    spec: StepSpec, state: TrainState, batch: Batch, key: jax.Array, step: jax.Array
) -> tuple[UpdateState, Mapping[str, Metric]]:
    """Returns the result of the `update` of a Task, checked; to be traced.

    Args:
        spec: parts of the step.
        state: the state before the step, with the optimizer state in device memory.
        batch: the global batch.
        key: random key of the step.
        step: number of the step, for the context.

    Raises:
        TaskError: the result is not a state and metrics, of which one is "loss".
    """
    rows = len(batch.weight)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    trained = {path: state.params[path] for path in spec.model.trained}
    before = UpdateState(
        params=trained,
        frozen={path: x for path, x in state.params.items() if path not in trained},
        model_state=state.model_state,
        opt_state=state.opt_state,
        grad_norm=jnp.float32(0),
        key=key_of(key, MODEL),
        static=_Operations(spec),
    )
    examples = cast(batch.examples, spec.compute_dtype, spec.task.full_precision)
    result: object = spec.task.update(before, examples, spec.context(step, keys))
    where = f"{type(spec.task).__name__}.update"
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], UpdateState):
        raise TaskError(f"{where} returned {describe_value(result)}. Return the new state and a dict of metrics.")
    after, metrics = result
    check_metrics(metrics, rows, where, collect=False)
    if LOSS not in metrics:
        raise TaskError(f"{where}: there is no metric 'loss', which the guard and the progress line need. Add it.")
    if type(metrics[LOSS]) is not Mean:
        kind = type(metrics[LOSS]).__name__
        raise TaskError(f"{where}: the metric 'loss' is a {kind}, but the guard divides it. Return Mean.of(values).")
    _check_arrays(before, after, where)
    return after, metrics


def _check_arrays(before: UpdateState, after: UpdateState, where: str) -> None:
    """Raises TaskError if an array of the state is new, is missing or has another shape or dtype."""
    leaves = [
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (before, after)
    ]
    for path in sorted(leaves[0].keys() | leaves[1].keys()):
        texts = [
            f"{jnp.result_type(found[path])}{list(jnp.shape(found[path]))}" if path in found else "nothing"
            for found in leaves
        ]
        if texts[0] != texts[1] and not path.startswith("key"):
            raise TaskError(f"{where}: {path} of the new state is {texts[1]}, it was {texts[0]}.")


def new_state(spec: StepSpec, state: TrainState, after: UpdateState, key: jax.Array) -> TrainState:
    """Returns the train state after the `update` of a Task."""
    params = {**after.params, **after.frozen}
    return finish(spec, state, params, after.model_state, after.opt_state, key)


def optimize(
    spec: StepSpec, trained: Arrays, opt_state: PyTree, grads: Arrays, grad_norm: jax.Array
) -> tuple[Arrays, PyTree]:
    """Returns the trained parameters and the optimizer state after one update."""
    if spec.layout.counts_flops:  # the model's FLOPs leave out the products of an optimizer such as Muon
        return jax.tree.map(jnp.add, trained, grads), opt_state
    params: PyTree = constrain(spec, trained)
    updates, opt_state = spec.tx.update(grads, opt_state, params, grad_norm=grad_norm)
    updated: PyTree = optax.apply_updates(params, updates)
    return updated, opt_state


def finish(
    spec: StepSpec, state: TrainState, params: Arrays, model_state: Arrays, opt_state: PyTree, key: jax.Array
) -> TrainState:
    """Returns the state with these values, after `Task.after_step`, and with the new averages."""
    if type(spec.task).after_step is not Task.after_step:
        context = spec.context(state.step, key_of(key, AFTER_STEP))
        params, model_state = _after_step(spec, params, model_state, context)
    ema: PyTree = state.ema
    if spec.ema_decay is not None:
        new, old = ({path: values[path] for path in spec.model.trained} for values in (params, ema))
        ema = ema | optax.incremental_update(new, old, 1 - spec.ema_decay)
    return dataclasses.replace(state, params=params, model_state=model_state, opt_state=opt_state, ema=ema)


def _after_step(spec: StepSpec, params: Arrays, model_state: Arrays, context: Context) -> tuple[Arrays, Arrays]:
    module = spec.model.module(params, model_state, key_of(context.rng, MODEL))
    spec.model.train(module)
    spec.task.after_step(module, context)
    return spec.model.variables_of(module, params, model_state)


def changed_by_after_step(spec: StepSpec, state: TrainState, key: jax.Array) -> list[str]:
    """Returns the paths of the frozen parameters that `Task.after_step` changes; to be traced.

    Raises:
        TaskError: it creates, removes or reshapes a variable.
    """
    if type(spec.task).after_step is Task.after_step:
        return []
    module = spec.model.module(state.params, state.model_state, key)
    before = spec.model.params_of(module)
    spec.model.train(module)
    spec.task.after_step(module, spec.context(state.step, key_of(key, AFTER_STEP)))
    spec.model.variables_of(module, state.params, state.model_state)
    return changed_frozen(spec, before, spec.model.params_of(module))


def changed_frozen(spec: StepSpec, before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Returns the paths of the frozen parameters that are other arrays than before, while a function is traced."""
    return [path for path, x in before.items() if path not in spec.model.trained and after[path] is not x]


def key_of(key: jax.Array, number: int) -> jax.Array:
    """Returns a key that no row of a batch has: their numbers are small."""
    return jax.random.fold_in(key, np.uint32(2**31 + number))
