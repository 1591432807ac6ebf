"""The train state: one dict of arrays that a step maps to the next, and where each of them lives.

Owns: what is in the state, its abstract form with shardings, and its first value. Does not own: how it changes
(`step.py`) or how it is stored (`checkpoint/`).

The keys: `step` (int32, batches consumed), `rng` (uint32 `[2]`, the run's random key), `params` and `carried` (path ->
array), `opt_state` (optax's pytree over the trained parameters), `ema` (path -> array of the trained
parameters) where an average is kept, and `recent` (float32 `[RECENT]`, the losses of recent steps whose update was
made, that of step n at n mod RECENT, NaN where there is none): what a spike is measured by must resume bit for bit.
It is always there, so that a run may begin to look for spikes when it is resumed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.parallel.layout import Layout, active
from engine.parallel.memory import HOST_MEMORY, check_host_memory
from engine.parallel.mesh import replicated
from engine.parallel.rules import Rules, partition_specs
from engine.training.model import Model
from engine.training.task import Task

State = dict[str, Any]
RECENT = 64  # losses
Shardings = dict[str, NamedSharding]


def initial_state(task: Task, model: Model, tx: optax.GradientTransformation, seed: int, ema: bool) -> State:
    """Returns the state of step 0; to be traced."""
    params, carried = model.init(task, seed)
    trained = {path: params[path] for path in model.trained}
    state = {
        "step": jnp.zeros((), jnp.int32),
        "rng": jax.random.key_data(jax.random.key(seed)),
        "params": params,
        "carried": carried,
        "opt_state": tx.init(trained),
        "recent": jnp.full(RECENT, jnp.nan, jnp.float32),
    }
    if ema:
        state["ema"] = jax.tree.map(jnp.copy, trained)
    return state


def param_shardings(model: Model, mesh: Mesh, rules: Rules) -> Shardings:
    """Returns path -> where a parameter lives.

    Raises:
        ShardingError: parameters that do not fit the rules or the mesh.
    """
    specs = partition_specs(model.params, model.names, rules, mesh)
    return {path: NamedSharding(mesh, spec) for path, spec in specs.items()}


def optimizer_shardings(model: Model, params: Shardings, zero1: bool) -> Shardings:
    """Returns path -> where what belongs to a trained parameter lives in the optimizer's state.

    As the parameter does; with ZeRO-1 (Rajbhandari et al. 2020, stage 1) split over `data` too, along the largest
    dimension that divides.
    """
    if not zero1:
        return {path: params[path] for path in model.trained}
    return {path: _split_over_data(params[path], model.params[path].shape) for path in model.trained}


def _split_over_data(sharding: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    mesh, spec = sharding.mesh, [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    shard = sharding.shard_shape(tuple(shape))
    fits = [i for i, size in enumerate(shard) if size % mesh.shape["data"] == 0]
    if not fits:
        return sharding
    split = max(fits, key=lambda i: shard[i])
    spec[split] = (*jax.tree.leaves(spec[split]), "data")
    return NamedSharding(mesh, PartitionSpec(*spec))


def abstract_state(
    task: Task, model: Model, tx: optax.GradientTransformation, *, seed: int, ema: bool, layout: Layout
) -> State:
    """Returns the state as jax.ShapeDtypeStruct with shardings: what init, step and restore agree on.

    Raises:
        ShardingError: a parameter that does not fit the rules or the mesh.
        ConfigError: the optimizer's state is to be in host memory, and there is none.
    """
    mesh = layout.mesh
    assert mesh is not None
    with active(layout):
        shapes = jax.eval_shape(lambda: initial_state(task, model, tx, seed, ema))
    whole = replicated(mesh)
    by_param = param_shardings(model, mesh, layout.rules)
    shardings = jax.tree.map(lambda _: whole, shapes)
    shardings["params"] = by_param
    trained = {path: by_param[path] for path in model.trained}
    if ema:
        shardings["ema"] = trained
    beside = optimizer_shardings(model, by_param, layout.zero1)
    # Optimizer state follows the parameter that it belongs to; jit alone would put all of it on one device. With
    # groups, the state of one has a MaskedNode, which holds nothing, for each parameter of the others.
    shardings["opt_state"] = optax.tree_utils.tree_map_params(
        tx,
        lambda leaf, spec, sharding: leaf if _is_masked(leaf) else sharding if leaf.shape == spec.shape else whole,
        shapes["opt_state"],
        {path: model.params[path] for path in model.trained},
        beside,
        transform_non_params=lambda _: whole,
        is_leaf=_is_masked,
    )
    if layout.offload_optimizer:
        check_host_memory(mesh, "train.offload_optimizer")
        shardings["opt_state"] = jax.tree.map(lambda s: s.with_memory_kind(HOST_MEMORY), shardings["opt_state"])
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def evaluation_params(state: State, use_ema: bool) -> dict[str, jax.Array]:
    """Returns all parameters, the averaged ones in place of the trained where asked for and kept."""
    return {**state["params"], **state["ema"]} if use_ema and "ema" in state else state["params"]
