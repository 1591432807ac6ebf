"""The train state: one typed pytree that each step replaces, and the sharding of each of its arrays.

Checkpoints store the dict of `TrainState.to_tree`; its keys are the format of run directories and must not change.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn, Self

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from engine.base.types import PyTree
from engine.parallel.layout import Layout, active
from engine.parallel.memory import check_host_memory, in_host_memory
from engine.parallel.mesh import replicated
from engine.parallel.rules import Rules, partition_specs, split_over_data, state_spec
from engine.training.arrays import Arrays
from engine.training.model import Model
from engine.training.task import Task

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LOSS_WINDOW = 64  # losses
STORED_NAMES = {"model_state": "carried", "loss_window": "recent"}
"""Field -> the key under which checkpoints store it; these keys are part of the format of run directories."""

Shardings = dict[str, NamedSharding]


class _Stored:
    """Base of the dataclasses that convert to and from the dict that checkpoints store."""

    __slots__ = ()

    def to_tree(self: "DataclassInstance") -> dict[str, PyTree]:
        """Returns the dict that checkpoints store."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {STORED_NAMES.get(name, name): value for name, value in fields.items() if value is not None}

    @classmethod
    def from_tree(cls, tree: Mapping[str, PyTree]) -> Self:
        """Returns the object for a dict of `to_tree`."""
        new = {old: name for name, old in STORED_NAMES.items()}
        return cls(**{new.get(name, name): value for name, value in tree.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class Weights(_Stored):
    """The part of a train state that a forward pass needs; the fields are those of `TrainState`."""

    params: Arrays
    model_state: Arrays
    ema: Arrays | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True, eq=False)  # slots make it 40 % faster to build, which every step does
class TrainState(_Stored):
    """The arrays of a run at a step. An abstract state holds a jax.ShapeDtypeStruct or a sharding for each array."""

    step: jax.Array
    """int32 scalar: batches consumed."""
    rng: jax.Array
    """uint32 `[2]`: random key of the run."""
    params: Arrays
    """path -> parameter."""
    model_state: Arrays
    """path -> array that the forward pass updates, such as batch statistics."""
    opt_state: PyTree
    """State of the optax optimizer of the trained parameters."""
    loss_window: jax.Array
    """float32 `[LOSS_WINDOW]`: the loss of step n at n mod LOSS_WINDOW; NaN for no loss or a skipped update. It is
    stored so that spikes are detected identically after a resume. It exists without `resilience.spike`, too, so that a
    resume can turn that on."""
    ema: Arrays | None = None
    """path -> exponential moving average of a trained parameter; None without `train.ema_decay`."""

    @property
    def is_schedule_free(self) -> bool:
        """Whether an optimizer is schedule-free, so that the model is evaluated with averages."""
        return schedule_free_averages(self) is not None

    def to_checkpoint(self) -> dict[str, PyTree]:
        """Returns the dict that a checkpoint stores: with the averages of a schedule-free optimizer as `ema`.

        So whatever reads the weights of a checkpoint reads the right ones. A resume computes them again.
        """
        averages = self.ema or schedule_free_averages(self)
        return self.to_tree() if averages is None else {**self.to_tree(), "ema": averages}

    def __getitem__(self, name: str) -> NoReturn:
        new = next((new for new, old in STORED_NAMES.items() if old == name), name)
        raise TypeError(f'The train state has attributes: write state.{new} instead of state["{name}"].')


def initial_state(task: Task, model: Model, tx: optax.GradientTransformation, seed: int, ema: bool) -> TrainState:
    """Returns the state at step 0; to be traced."""
    return _state_with(*model.init(task, seed), model, tx, seed, ema)


def _state_with(
    params: Arrays, model_state: Arrays, model: Model, tx: optax.GradientTransformation, seed: int, ema: bool
) -> TrainState:
    """Returns the state at step 0 with these weights; to be traced."""
    trained = {path: params[path] for path in model.trained}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(jax.random.key(seed)),
        params=params,
        model_state=model_state,
        opt_state=tx.init(trained),
        loss_window=jnp.full(LOSS_WINDOW, jnp.nan, jnp.float32),
        ema={path: jnp.copy(params[path]) for path in model.averaged} if ema else None,
    )


def param_shardings(model: Model, mesh: Mesh, rules: Rules) -> Shardings:
    """Returns path -> sharding of a parameter.

    Raises:
        ShardingError: parameters do not fit the rules or the mesh.
    """
    specs = partition_specs(model.params, model.names, rules, mesh)
    return {path: NamedSharding(mesh, spec) for path, spec in specs.items()}


def optimizer_shardings(model: Model, params: Shardings, zero1: bool) -> Shardings:
    """Returns path -> sharding of the optimizer state of a trained parameter.

    It is the sharding of the parameter. With ZeRO-1 (Rajbhandari et al. 2020, stage 1) the state is also split over
    `data`, along the largest dimension that is divisible.
    """
    if not zero1:
        return {path: params[path] for path in model.trained}
    return {
        path: NamedSharding(
            params[path].mesh, split_over_data(params[path].spec, model.params[path].shape, params[path].mesh)
        )
        for path in model.trained
    }


def abstract_state(
    model: Model,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    ema: bool,
    layout: Layout,
    split_params: bool = False,
) -> TrainState:
    """Returns the state as jax.ShapeDtypeStruct with shardings, which init, step and restore all use.

    It does not trace `Task.build` again: `model` has the shapes of the weights.

    Args:
        model: the model.
        tx: the optimizer.
        seed: seed of the initial state.
        ema: whether the state has averages of the trained parameters.
        layout: the layout, with a mesh.
        split_params: with ZeRO-1, split the trained parameters like their optimizer state.

    Raises:
        ShardingError: a parameter does not fit the rules or the mesh.
        ConfigError: train.offload_optimizer is set, and the devices have no host memory.
    """
    mesh = layout.mesh
    assert mesh is not None
    with active(layout):
        shapes = jax.eval_shape(
            lambda *x: _state_with(x[0], x[1], model, tx, seed, ema), model.params, model.model_state
        )
    whole = replicated(mesh)
    by_param = param_shardings(model, mesh, layout.rules)
    by_update = optimizer_shardings(model, by_param, layout.zero1)
    # Optimizer state is split like its parameter; jit alone would put all of it on one device. The state of a
    # group has a MaskedNode, which holds nothing, for each parameter of the other groups.
    opt_state = _map_params(
        tx,
        _state_sharding,
        shapes.opt_state,
        {path: model.params[path] for path in model.trained},
        by_update,
        otherwise=lambda _: whole,
    )
    if layout.offload_optimizer:
        check_host_memory(mesh, "train.offload_optimizer")
        opt_state = jax.tree.map(in_host_memory, opt_state)
    of_params = {**by_param, **by_update} if split_params else by_param
    shardings = dataclasses.replace(
        jax.tree.map(lambda _: whole, shapes),
        params=of_params,
        opt_state=opt_state,
        ema={path: of_params[path] for path in model.averaged} if ema else None,
    )
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _map_params(
    tx: optax.GradientTransformation,
    function: Callable[..., object],
    opt_state: PyTree,
    *params: Mapping[str, object],
    otherwise: Callable[[object], object],
) -> PyTree:
    """Returns an optimizer state mapped as by `optax.tree_utils.tree_map_params`, without allocating or compiling.

    That function calls `tx.init`, which would compile a program for each number that it creates.
    """
    found: list[PyTree] = []

    def trace() -> None:
        found.append(
            optax.tree_utils.tree_map_params(
                tx, function, opt_state, *params, transform_non_params=otherwise, is_leaf=_is_masked
            )
        )

    jax.eval_shape(trace)
    return found[0]


def _state_sharding(
    leaf: jax.ShapeDtypeStruct | optax.MaskedNode, param: jax.ShapeDtypeStruct, sharding: NamedSharding
) -> NamedSharding | optax.MaskedNode:
    """Returns the sharding of an array of the optimizer state; `sharding` is that of an array like the parameter."""
    if isinstance(leaf, optax.MaskedNode):
        return leaf
    return NamedSharding(sharding.mesh, state_spec(leaf.shape, param.shape, sharding.spec, sharding.mesh))


def _is_masked(leaf: object) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def evaluation_params(state: TrainState | Weights, use_ema: bool) -> Arrays:
    """Returns all parameters; with `use_ema`, trained parameters are replaced by their averages, if these exist.

    These are the averages of `train.ema_decay`, or else of a schedule-free optimizer.
    """
    if not use_ema:
        return state.params
    averages = state.ema
    if averages is None and isinstance(state, TrainState):
        averages = schedule_free_averages(state)
    return state.params if averages is None else {**state.params, **averages}


def schedule_free_averages(state: TrainState) -> Arrays | None:
    """Returns path -> average of each parameter of a schedule-free optimizer; None if there is no such optimizer.

    Defazio et al. 2024, arXiv:2405.15682: the gradient is taken at y, which the state holds as parameters, and the
    model is evaluated at the average x = (y - (1 - b1) z) / b1. An abstract state has abstract averages.
    """
    kind = optax.contrib.ScheduleFreeState
    found: Arrays = {}
    for node in jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, kind)):
        if isinstance(node, kind):
            parts: PyTree = node
            z = {path: x for path, x in parts.z.items() if not _is_masked(x)}
            found |= _average({path: state.params[path] for path in z}, z, parts.b1)
    return found or None


def _average(y: Arrays, z: Arrays, b1: jax.Array) -> Arrays:
    """Returns the averages x, sharded as the parameters y; z may be split further, or lie in host memory."""
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in y.values()):
        return y
    shardings = {path: x.sharding for path, x in y.items()}
    kind = next(iter(shardings.values())).memory_kind
    z, b1 = jax.device_put((z, b1), jax.tree.map(lambda x: x.sharding.with_memory_kind(kind), (z, b1)))
    return jax.jit(_averages, out_shardings=shardings)(y, z, b1)


def _averages(y: Arrays, z: Arrays, b1: jax.Array) -> Arrays:
    state: PyTree = SimpleNamespace(z=z, b1=b1)
    found: PyTree = optax.contrib.schedule_free_eval_params(state, y)
    return {path: x.astype(y[path].dtype) for path, x in found.items()}
