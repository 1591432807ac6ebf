"""The gradient of a step: summed over microbatches, devices and hosts, and divided once by the global weights.

With several microbatches, the weights of a sum of losses are summed in a first pass, since each gradient needs them.
Each device then adds up the gradients of its own microbatches, and the devices of the mesh axis `data` sum theirs once.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from engine.base.types import PyTree
from engine.data.batch import Batch
from engine.data.context import call
from engine.metrics.mean import divide
from engine.metrics.pairs import pairs_of
from engine.parallel.rules import STACKED
from engine.training.arrays import Arrays, cast
from engine.training.jaxprs import keep_all
from engine.training.loss import TaskLoss
from engine.training.model import with_whole_kernels
from engine.training.objective import EVERY, means_of
from engine.training.state import TrainState, param_shardings
from engine.training.step_spec import StepSpec

type Part = tuple[PyTree, ...]
"""A microbatch, the keys of its rows, and its index; of all microbatches, the arrays have one more dimension.

The gradients of the results of `Task.encode` may follow (`engine/training/encoded.py`)."""
INDEX = 2  # place of the index in a Part
type Losses = Callable[..., tuple[Arrays, tuple[jax.Array, Arrays]]]


@dataclasses.dataclass(frozen=True)
class Shared:
    """What the microbatches of a step have in common."""

    spec: StepSpec
    metric_names: tuple[str, ...]
    frozen: Arrays
    key: jax.Array
    """Random key of the step."""
    step: jax.Array
    rows: int
    """Rows of the global batch."""
    losses: Losses
    """`losses`, or another function of its arguments, whose gradient is computed."""


type OfParts = Callable[
    [Shared, Arrays, Arrays, Batch, jax.Array, Part],
    tuple[Arrays, jax.Array, Arrays],
]
"""Takes what the microbatches share, the trained parameters, the model state, the global batch, its keys and parts."""


def gradients(
    spec: StepSpec,
    metric_names: tuple[str, ...],
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
    of_parts: OfParts | None = None,
) -> tuple[Arrays, jax.Array, Arrays]:
    """Returns the gradient of the objectives, the summed metrics `[names, 2]` and the new model state.

    Args:
        spec: parts of the step.
        metric_names: names of the metrics.
        state: the state before the step.
        batch: the global batch.
        key: random key of the step.
        step: number of the step.
        of_parts: computes the three for several microbatches; by default, the losses of the microbatches are summed.
    """
    trained_paths = frozenset(spec.model.trained)
    trained = {path: x for path, x in state.params.items() if path in trained_paths}
    frozen = {path: x for path, x in state.params.items() if path not in trained_paths}
    rows = len(batch.weight)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    shared = Shared(spec, metric_names, frozen, key, step, rows, losses)
    if spec.accumulate == 1:
        grads, (sums, model_state) = _gradient(shared, None, trained, state.model_state, batch, keys, 0)
    else:
        parts = (*microbatches(spec, (batch, keys)), jnp.arange(spec.accumulate))
        compute = _of_losses if of_parts is None else of_parts
        grads, sums, model_state = compute(shared, trained, state.model_state, batch, keys, parts)
    by_name = dict(zip(metric_names, sums, strict=True))
    grads = constrain(spec, grads)
    mean = {path: _divided(spec, path, x, by_name) for path, x in grads.items()}
    if not spec.objective.single:
        completed = spec.objective.complete(by_name)
        sums = jnp.stack([completed[name] for name in metric_names])
    return mean, sums, model_state


def _of_losses(
    shared: Shared, trained: Arrays, model_state: Arrays, batch: Batch, keys: jax.Array, parts: Part
) -> tuple[Arrays, jax.Array, Arrays]:
    """Returns the gradients, the metrics and the new model state of a sum of losses of microbatches."""
    weights = sum_weights(shared, trained, model_state, parts) if shared.spec.objective.is_sum else None
    return sum_gradients(shared, weights, trained, model_state, parts)


def sum_weights(shared: Shared, trained: Arrays, model_state: Arrays, parts: Part) -> Arrays:
    """Returns the weight of each metric, summed over the microbatches.

    If the weights depend on the batch alone, XLA removes the rest of this forward pass.
    """

    def add(carry: PyTree, part: Part) -> tuple[PyTree, None]:
        sums, model_state = carry
        _, (more, model_state) = losses(shared, None, trained, model_state, *part)
        return (sums + more[:, 1], model_state), None

    first = (jnp.zeros(len(shared.metric_names)), model_state)
    (found, _), _ = jax.lax.scan(add, first, parts, unroll=shared.spec.unroll)
    return dict(zip(shared.metric_names, found, strict=True))


def sum_gradients(
    shared: Shared, weights: Arrays | None, trained: Arrays, model_state: Arrays, parts: Part
) -> tuple[Arrays, jax.Array, Arrays]:
    """Returns the gradients and the metrics, summed over the microbatches, and the new model state."""
    spec, axes = shared.spec, _summed_once(shared.spec)

    def add(shared: Shared, weights: Arrays | None, trained: Arrays, carry: PyTree, part: Part) -> tuple[PyTree, None]:
        grads, sums, model_state = carry
        more, (more_sums, model_state) = _gradient(shared, weights, trained, model_state, *part)
        return (*jax.tree.map(jnp.add, (grads, sums), (constrain(spec, more), more_sums)), model_state), None

    def total(common: PyTree, parts: Part) -> tuple[Arrays, jax.Array, Arrays]:
        frozen, key, step, weights, trained, model_state = common
        inner = dataclasses.replace(shared, frozen=frozen, key=key, step=step)
        zeros = constrain(spec, jax.tree.map(jnp.zeros_like, trained))
        first = (zeros, jnp.zeros((len(shared.metric_names), 2)), model_state)
        found = jax.lax.scan(functools.partial(add, inner, weights, trained), first, parts, unroll=spec.unroll)[0]
        return (*jax.tree.map(lambda x: _summed(x, axes), found[:2]), found[2]) if axes else found

    common = (shared.frozen, shared.key, shared.step, weights, trained, model_state)
    if not axes:
        return total(common, parts)
    rows, whole = PartitionSpec(None, axes), PartitionSpec()
    of_parts = tuple(whole if place == INDEX else rows for place in range(len(parts)))
    on_devices = jax.shard_map(
        total, mesh=spec.mesh, axis_names=set(axes), in_specs=(whole, of_parts), out_specs=whole, check_vma=False
    )
    return on_devices(common, parts)


def _summed_once(spec: StepSpec) -> tuple[str, ...]:
    """Returns the mesh axes over which the gradients of all microbatches are summed at once: `data` or none.

    Gradients that are split over other axes stay split while they are added up. Not with ZeRO-1 nor with rules that
    split parameters over `data`, where a device has no memory for the gradients of all its rows, nor for a Task whose
    result depends on the number of microbatches. A pipeline sums once in each microbatch; XLA cannot compile its
    `jax.shard_map` within another one.
    """
    has_copies = spec.mesh.shape["data"] > 1 and spec.mesh.shape["pipeline"] == 1
    exact = spec.loss_on_each_device and not spec.approximate_accumulation
    if not has_copies or not exact or spec.layout.zero1:
        return ()
    shardings = param_shardings(spec.model, spec.mesh, spec.layout.rules).values()
    return () if any("data" in jax.tree.leaves(tuple(x.spec)) for x in shardings) else ("data",)


def _summed(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Returns the sum over manual mesh axes, in float32, since XLA:CPU cannot sum half precision there."""
    return jax.lax.psum(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axes).astype(x.dtype)


def _gradient(
    shared: Shared, weights: Arrays | None, trained: Arrays, *args: PyTree
) -> tuple[Arrays, tuple[jax.Array, Arrays]]:
    """Returns the gradient of each parameter for the objective that trains it, the metrics, and the new model state.

    `args` are the last arguments of `losses`.
    """
    spec, function = shared.spec, functools.partial(shared.losses, shared, weights)
    if spec.layout.counts_flops:
        function = keep_all(function)
    if len(spec.objective.terms) == 1:
        (group,) = spec.objective.terms
        return jax.grad(lambda *args: _first(function(*args), group), has_aux=True)(trained, *args)
    values, pullback, aux = jax.vjp(lambda trained: function(trained, *args), trained, has_aux=True)
    grads = {}
    for group in values:
        # The gradients of the parameters of other groups are dead code, which XLA removes.
        (found,) = pullback({name: jnp.full_like(x, name == group) for name, x in values.items()})
        grads |= {path: x for path, x in found.items() if spec.groups[path] == group}
    return grads, aux


def _first(found: tuple[Arrays, PyTree], group: str) -> tuple[jax.Array, PyTree]:
    return found[0][group], found[1]


def losses(
    shared: Shared,
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
    spec = shared.spec
    module, examples = called_with(shared, trained, model_state, batch, index)
    context = spec.context(shared.step, keys, batch.weight)
    result = call(spec.task.loss, module, examples, keys, context=context)
    minimised, sums = minimised_by(shared, weights, result, batch)
    new = {path: x.astype(model_state[path].dtype) for path, x in spec.model.model_state_of(module).items()}
    return minimised, (sums, new)


def called_with(
    shared: Shared, trained: Arrays, model_state: Arrays, batch: Batch, index: jax.Array | int
) -> tuple[nnx.Module, PyTree]:
    """Returns the model and the examples with which a method of the Task is called for a microbatch."""
    spec = shared.spec
    params = gather(spec, _cast(spec, {**trained, **shared.frozen}))
    params = with_whole_kernels(spec.model, params)
    module = spec.model.module(params, model_state, jax.random.fold_in(shared.key, shared.rows + index))
    spec.model.train(module)
    return module, cast(batch.examples, spec.compute_dtype, spec.task.full_precision)


def _cast(spec: StepSpec, params: Arrays) -> Arrays:
    """Returns the parameters in the precision of the computation."""
    half = jnp.dtype(spec.compute_dtype).itemsize < 4
    if not (half and spec.packs and all(jnp.issubdtype(x.dtype, jnp.floating) for x in params.values())):
        return cast(params, spec.compute_dtype)
    from engine.training.packing import cast_together

    return cast_together(params, spec.compute_dtype)


def minimised_by(shared: Shared, weights: Arrays | None, result: TaskLoss, batch: Batch) -> tuple[Arrays, jax.Array]:
    """Returns optimizer group -> what it minimises, and the metrics `[names, 2]`, of the result of a Task's loss."""
    spec, means = shared.spec, means_of(result)
    # Otherwise every weight is 1. A weighted sum would then only round differently and change old runs.
    weight = batch.weight if any(spec.ignored_rows) else None
    zero = jnp.zeros(2)  # for the metric "loss" if it is the sum of several losses, which `complete` computes
    found = pairs_of(means, weight)
    # Otherwise a metric gets a zero cotangent: wasted work, and NaN where its derivative is infinite.
    sums = jax.lax.stop_gradient(jnp.stack([found.get(name, zero) for name in shared.metric_names]))
    minimised = {}
    for group, (first, *rest) in spec.objective.terms.items():
        if not rest:
            minimised[group] = found[first][0]
            continue
        pairs = {name: found[name] for name in (first, *rest)}
        known = weights or {name: jax.lax.stop_gradient(pair[1]) for name, pair in pairs.items()}
        minimised[group] = sum(divide(jnp.stack([pair[0], known[name]])) for name, pair in pairs.items())
    return minimised, sums


def _divided(spec: StepSpec, path: str, grad: jax.Array, sums: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the gradient of the mean of a loss, from that of its total; a sum of losses is divided already."""
    objective = spec.objective
    first, *rest = objective.terms[EVERY if EVERY in objective.terms else spec.groups[path]]
    if rest:
        return grad
    weight = sums[first][1]
    return jnp.where(weight != 0, grad / jnp.where(weight != 0, weight, 1), 0)


def microbatches(spec: StepSpec, batch: PyTree) -> PyTree:
    """Reshapes leaves `[batch, ...]` to microbatches `[accumulate, batch / accumulate, ...]`.

    Row r goes to microbatch r mod accumulate, so that no row moves to another device.
    """
    sharding = NamedSharding(spec.mesh, PartitionSpec(None, *spec.batch_sharding.spec))

    def deal(x: jax.Array) -> jax.Array:
        parts = x.reshape(x.shape[0] // spec.accumulate, spec.accumulate, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, sharding)

    return jax.tree.map(deal, batch)


def constrain(spec: StepSpec, arrays: Mapping[str, jax.Array]) -> Arrays:
    """Constrains the shardings of gradients: each device sums the part that it updates, as in FSDP and ZeRO-1.

    Within a `jax.shard_map` no manual axis splits them.
    """
    if spec.mesh.size == 1:
        return dict(arrays)
    mesh = spec.layout.inner_mesh
    shardings = {path: NamedSharding(mesh, spec.grad_shardings[path].spec) for path in arrays}
    return {path: jax.lax.with_sharding_constraint(x, shardings[path]) for path, x in arrays.items()}


def gather(spec: StepSpec, params: Arrays) -> Arrays:
    """Returns parameters that `spec.splits_params` splits as the layers use them; their gradients are split again.

    On TPUs the layers gather their kernels themselves (`layers/whole_weight.py`).
    """
    # The first trace of a loss has no shardings yet. The trace that counts model FLOPs has one device.
    if not (spec.splits_params and spec.grad_shardings) or spec.mesh.size == 1:
        return params
    shardings = param_shardings(spec.model, spec.mesh, spec.layout.rules)

    def whole(path: str, x: jax.Array) -> jax.Array:
        call = jax.custom_vjp(lambda x: jax.lax.with_sharding_constraint(x, shardings[path]))
        call.defvjp(
            lambda x: (call(x), None),
            lambda _, d_x: (jax.lax.with_sharding_constraint(d_x, spec.grad_shardings[path]),),
        )
        return call(x)

    def gathered(path: str) -> bool:
        kernel = len([name for name in spec.model.names.get(path, ()) if name not in STACKED]) == 2
        return path in spec.model.trained and not (kernel and spec.layout.gathers_over_data)

    return {path: whole(path, x) if gathered(path) else x for path, x in params.items()}
