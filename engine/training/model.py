"""Converts between an NNX module and flat dicts of arrays, which the compiled step takes and returns.

Every variable belongs to one class: `params` (`nnx.Param`, trained or frozen by `optimizer.trainable`), `model_state`
(updated by the forward pass and stored, such as `nnx.BatchStat`) or `rng_state` (created from the seed in each step,
never stored). Other kinds raise an error. A step on dicts costs the host 82 us, `nnx.jit` 2,000 us (37 variables, two
CPU cores).
"""

import dataclasses
import re
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from engine.base.errors import ConfigError, TaskError
from engine.config.target import import_error
from engine.metrics.values import describe_value
from engine.parallel import layout
from engine.parallel.rules import STACKED, partition_spec
from engine.training.arrays import AbstractArrays, Arrays
from engine.training.roles import declared_roles
from engine.training.task import Task

MODEL_STATE = (nnx.BatchStat,)
RNG_STATE = (nnx.RngState,)
TRAINED = "trained"
"""Metadata of a parameter: False freezes it, unless `optimizer.trainable` is set."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The structure of a model, without values. A path is the key of a variable, such as "encoder/0/kernel"."""

    graph: nnx.GraphDef
    keys: Mapping[str, tuple]  # path -> key in the NNX state
    params: AbstractArrays
    model_state: AbstractArrays
    rng_state: AbstractArrays
    names: Mapping[str, tuple[str | None, ...]]  # path -> logical axes of the variables that name them
    trained: tuple[str, ...]  # paths that the optimizer updates
    averaged: tuple[str, ...]  # paths that it updates in some steps of the run: those with averages
    state_kinds: tuple[type[nnx.Variable], ...]  # variable types in `model_state`
    own_state: frozenset[str]  # paths in `model_state` of other types than nnx.BatchStat
    shared_dropout: tuple[str, ...]  # paths of nnx.Dropout modules, which draw one mask for a whole batch
    convolutions: frozenset[str]  # paths of the kernels of nnx.Conv and nnx.ConvTranspose without logical axes
    frozen_norms: tuple[str, ...]  # paths of modules that use stored batch statistics in training, too
    roles: Mapping[str, str]  # path -> role of the parameters whose role is known without the loss
    init_scales: Mapping[str, float]  # path -> factor on initial weights (`mup.py`)

    @property
    def stacked(self) -> dict[str, int]:
        """Path of each parameter in stacked layers -> number of leading dimensions that index the layers."""
        counts = {path: sum(name in STACKED for name in names) for path, names in self.names.items()}
        return {path: count for path, count in counts.items() if count}

    def state_of_rows(self, rows: int) -> list[str]:
        """Returns the paths of the model state that may belong to the rows of a batch: its first dimension is `rows`.

        It does if the forward pass changes it. Batch statistics never belong to rows.
        """
        return sorted(path for path in self.own_state if self.model_state[path].shape[:1] == (rows,))

    def module(self, params: Arrays, model_state: Arrays, key: jax.Array | None) -> nnx.Module:
        """Returns the NNX module with these values; to be used while tracing.

        Args:
            params: path -> array of every parameter.
            model_state: path -> array.
            key: random key from which the random state is derived; None if the module draws nothing.
        """
        key = jax.random.key(0) if key is None else key
        values = {**params, **model_state}
        for i, (path, spec) in enumerate(sorted(self.rng_state.items())):
            is_key = jnp.issubdtype(spec.dtype, jax.dtypes.prng_key)
            values[path] = jax.random.fold_in(key, i) if is_key else jnp.zeros(spec.shape, spec.dtype)
        return nnx.merge(self.graph, nnx.from_flat_state([(self.keys[path], values[path]) for path in self.keys]))

    def train(self, module: nnx.Module) -> None:
        """Sets a module to training mode, in which `frozen_norms` neither compute nor change batch statistics."""
        module.train()
        for path, part in nnx.iter_modules(module) if self.frozen_norms else ():
            if "/".join(map(str, path)) in self.frozen_norms:
                part.set_attributes(use_running_average=True)

    def without_values(self) -> nnx.Module:
        """Returns the NNX module with shapes in place of arrays."""
        shapes = {**self.params, **self.model_state, **self.rng_state}
        return nnx.merge(self.graph, nnx.from_flat_state([(key, shapes[path]) for path, key in self.keys.items()]))

    def state_of(self, module: nnx.Module) -> Arrays:
        """Returns the model state and the random state of a module."""
        return dict(_flat(nnx.state(module, (*self.state_kinds, *RNG_STATE))))

    def params_of(self, module: nnx.Module) -> Arrays:
        """Returns the parameters of a module."""
        return dict(_flat(nnx.state(module, nnx.Param)))

    def model_state_of(self, module: nnx.Module) -> Arrays:
        """Returns the model state of a module after its forward pass.

        Raises:
            TaskError: the forward pass created a variable that the train state does not hold.
        """
        found = dict(_flat(nnx.state(module, self.state_kinds)))
        if new := sorted(found.keys() - self.model_state.keys()):
            raise TaskError(
                f"{', '.join(new)}: created in the forward pass, so it cannot be stored. Create it in __init__."
            )
        return found

    def variables_of(self, module: nnx.Module, params: Arrays, model_state: Arrays) -> tuple[Arrays, Arrays]:
        """Returns the parameters and the model state of a module whose variables a Task has changed.

        Args:
            module: the module, made by `module` with all of its variables.
            params: the parameters before, whose shapes and dtypes are kept.
            model_state: the model state before, likewise.

        Raises:
            TaskError: a variable is new, is missing or has another shape.
        """
        found = dict(_flat(nnx.state(module, (nnx.Param, *self.state_kinds))))
        before = {**params, **model_state}
        if different := sorted(found.keys() ^ before.keys()):
            raise TaskError(f"{', '.join(different)}: variables that were created or removed. Create them in __init__.")
        for path, x in found.items():
            if jnp.shape(x) != before[path].shape:
                raise TaskError(f"{path}: found shape {list(jnp.shape(x))}, it was {list(before[path].shape)}.")
        new = {path: jnp.asarray(x).astype(before[path].dtype) for path, x in found.items()}
        return {path: new[path] for path in params}, {path: new[path] for path in model_state}

    def init(self, task: Task, seed: int) -> tuple[Arrays, Arrays]:
        """Returns the initial parameters and model state; to be used while tracing."""
        with nnx.use_eager_sharding(False):
            values = dict(_flat(nnx.state(task.build(nnx.Rngs(seed)))))
        values |= {path: values[path] * scale for path, scale in self.init_scales.items()}
        return {p: values[p] for p in self.params}, {p: values[p] for p in self.model_state}


def describe(task: Task, trainable: str = "") -> Model:
    """Traces a Task's `build` (no array is allocated) and classifies the variables of its model.

    Args:
        task: the Task.
        trainable: regular expression searched in each path; an empty one trains every parameter but those that the
            model marks: `nnx.Param(value, trained=False)`.

    Raises:
        TaskError: `build` does not return an nnx.Module, or the model has a variable of an unknown kind or a trained
            parameter that is not of floating point.
        ConfigError: `trainable` matches nothing, or `build` raises an ImportError.
    """
    abstract = _abstract_module(task)
    state_kinds = MODEL_STATE + tuple(task.model_state)
    classes: dict[str, AbstractArrays] = {"params": {}, "model_state": {}, "rng_state": {}}
    graph, state = nnx.split(abstract)
    keys, names, own_state, frozen, parameters = {}, {}, set(), set(), {}
    for key, variable in nnx.to_flat_state(state):
        path = "/".join(map(str, key))
        classes[_class_of(path, variable, state_kinds)][path] = jax.ShapeDtypeStruct(variable.shape, variable.dtype)
        keys[path] = key
        if path in classes["params"]:
            parameters[path] = variable
        if path in classes["model_state"] and not isinstance(variable, MODEL_STATE):
            own_state.add(path)
        metadata = variable.get_metadata()
        if not metadata.get(TRAINED, True):
            frozen.add(path)
        axes = metadata.get("logical_axes", metadata.get("out_sharding"))
        if axes is not None:
            names[path] = tuple(axes)
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(abstract)}
    dropouts = (path for path, module in modules.items() if isinstance(module, nnx.Dropout) and module.rate > 0)
    convolutions = {path for path, module in modules.items() if isinstance(module, (nnx.Conv, nnx.ConvTranspose))}
    kernels = (f"{path}/kernel".removeprefix("/") for path in convolutions)
    trained = _trained(classes["params"], trainable, frozen)
    return Model(
        graph,
        keys,
        **classes,
        names=names,
        trained=trained,
        averaged=trained,
        state_kinds=state_kinds,
        own_state=frozenset(own_state),
        shared_dropout=tuple(dropouts),
        convolutions=frozenset(path for path in kernels if path in classes["params"] and path not in names),
        frozen_norms=(),
        roles=declared_roles(parameters, modules),
        init_scales={},
    )


def _abstract_module(task: Task) -> nnx.Module:
    with nnx.use_eager_sharding(False):
        try:
            abstract: object = nnx.eval_shape(lambda: task.build(nnx.Rngs(0)))
        except ImportError as error:
            raise import_error(error, f"{type(task).__name__}.build", "task.target") from error
    if not isinstance(abstract, nnx.Module):
        raise TaskError(f"{type(task).__name__}.build returned {describe_value(abstract)}. Return an nnx.Module.")
    return abstract


def _trained(params: AbstractArrays, trainable: str, frozen: Collection[str]) -> tuple[str, ...]:
    """Returns the paths that `optimizer.trainable` matches; if it is empty, those that the model does not freeze."""
    trained = tuple(path for path in params if (re.search(trainable, path) if trainable else path not in frozen))
    if not trained:
        raise ConfigError(f"optimizer.trainable = {trainable!r} matches no parameter. Parameters: {', '.join(params)}.")
    whole = [path for path in trained if not jnp.issubdtype(params[path].dtype, jnp.inexact)]
    if whole:
        raise TaskError(
            f"{', '.join(whole)}: an nnx.Param of type {params[whole[0]].dtype}, which has no gradient. Use a plain "
            "array for a constant, or leave it out of optimizer.trainable."
        )
    return trained


def _class_of(path: str, variable: nnx.Variable, state_kinds: tuple[type[nnx.Variable], ...]) -> str:
    """Returns the class of a variable: params, model_state or rng_state. Raises TaskError for an unknown kind."""
    for kinds, name in (((nnx.Param,), "params"), (state_kinds, "model_state"), (RNG_STATE, "rng_state")):
        if isinstance(variable, kinds):
            return name
    kind = type(variable).__name__
    raise TaskError(
        f"{path}: unknown variable type {kind}. Known: Param (trained), {', '.join(k.__name__ for k in state_kinds)} "
        f"(stored between steps), RngState (created from the seed). If the forward pass updates it, or if checkpoints "
        f"must have it, set `model_state = ({kind},)` in the Task; if it is constant, store it as a plain array."
    )


def _flat(state: nnx.State) -> list[tuple[str, jax.Array]]:
    """Returns (path, array) of every variable of an NNX state."""
    return [("/".join(map(str, key)), variable.get_value()) for key, variable in nnx.to_flat_state(state)]


def with_whole_kernels(model: Model, params: Arrays) -> Arrays:
    """Returns parameters with kernels of convolutions whole on each device; the gradients of these are split again.

    A kernel without logical axes is split over `fsdp`, the devices that also split the rows (`parallel/rules.py`). Left
    alone, XLA may split the channels of a convolution and gather the rows of all devices, which are much larger.

    Args:
        model: the model.
        params: path -> parameter, as a traced array.
    """
    here = layout.current()
    if here.mesh is None or here.size("fsdp") == 1:
        return params
    found = dict(params)
    for path in sorted(model.convolutions):  # in any other order, processes would compile different programs
        found[path] = _whole(params[path], partition_spec(path, params[path].shape, None, here.rules, here.mesh))
    return found


def _whole(x: jax.Array, own: PartitionSpec) -> jax.Array:
    mesh = layout.current().inner_mesh

    def constrained(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return constrained(x, PartitionSpec())
    call = jax.custom_vjp(lambda x: constrained(x, PartitionSpec()))
    call.defvjp(lambda x: (call(x), None), lambda _, d_x: (constrained(d_x, own),))
    return call(x)
