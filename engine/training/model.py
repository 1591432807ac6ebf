"""A model as pure dicts of arrays, and back to an NNX module while tracing.

Owns: the classes of NNX variables and the two directions of the change. Does not own: where arrays live
(`parallel/`), or when they change (`step.py`).

Terms. Every variable of a model belongs to one class. *Trained*: `nnx.Param` that the optimizer updates. *Frozen*:
`nnx.Param` that `optimizer.trainable` leaves out. *Carried*: changed by the forward pass and kept, as
`nnx.BatchStat` and the kinds that `Task.carried` names. *Derived*: random state, made anew for each step from the
seed. Anything else is refused by name. *Path*: "encoder/0/kernel", the key of a variable in the dicts.

Why dicts: a step on dicts costs the host 82 us where `nnx.jit` costs 2,000 (37 variables, two CPU cores).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from engine.config.errors import ConfigError, TaskError
from engine.parallel.rules import STACKED
from engine.training.task import Task

Arrays = dict[str, Any]

CARRIED = (nnx.BatchStat,)
DERIVED = (nnx.RngState,)


@dataclasses.dataclass(frozen=True)
class Model:
    """The structure of a model, without values.

    `params`, `carried` and `derived` map a path to the abstract value; `names` holds the logical axes of those that
    have some; `trained` lists the paths that the optimizer updates.
    """

    graph: Any
    keys: Mapping[str, tuple]
    params: Mapping[str, jax.ShapeDtypeStruct]
    carried: Mapping[str, jax.ShapeDtypeStruct]
    derived: Mapping[str, jax.ShapeDtypeStruct]
    names: Mapping[str, tuple[str | None, ...]]
    trained: tuple[str, ...]
    carried_kinds: tuple[type[nnx.Variable], ...]
    shared_dropout: tuple[str, ...]  # paths of nnx.Dropout modules that draw one mask for a whole batch

    @property
    def stacked(self) -> dict[str, int]:
        """Path of each parameter of a stack of layers -> how many of its first dimensions hold the layers."""
        counts = {path: sum(name in STACKED for name in names) for path, names in self.names.items()}
        return {path: count for path, count in counts.items() if count}

    def module(self, params: Arrays, carried: Arrays, key: jax.Array | None) -> Any:
        """Returns the NNX module with these values; to be used while tracing.

        Args:
            params: path -> array, all parameters.
            carried: path -> array.
            key: random key that derived state comes from; None where nothing is drawn.
        """
        key = jax.random.key(0) if key is None else key
        values = {**params, **carried}
        for i, (path, spec) in enumerate(sorted(self.derived.items())):
            is_key = jnp.issubdtype(spec.dtype, jax.dtypes.prng_key)
            values[path] = jax.random.fold_in(key, i) if is_key else jnp.zeros(spec.shape, spec.dtype)
        return nnx.merge(self.graph, nnx.from_flat_state([(self.keys[path], values[path]) for path in self.keys]))

    def carried_of(self, module: Any) -> Arrays:
        """Returns the carried values of a module after its forward pass.

        Raises:
            TaskError: the forward pass made a variable that the state has no place for.
        """
        carried = dict(_flat(nnx.state(module, self.carried_kinds)))
        if new := sorted(carried.keys() - self.carried.keys()):
            raise TaskError(f"{', '.join(new)}: made in the forward pass, so it cannot be kept. Make it in __init__.")
        return carried

    def init(self, task: Task, seed: int) -> tuple[Arrays, Arrays]:
        """Returns the first parameters and carried values; to be used while tracing."""
        with nnx.use_eager_sharding(False):
            values = dict(_flat(nnx.state(task.build(nnx.Rngs(seed)))))
        return {p: values[p] for p in self.params}, {p: values[p] for p in self.carried}


def describe(task: Task, trainable: str = "") -> Model:
    """Builds a task's model abstractly (no array is made) and classes its variables.

    Args:
        task: whose `build` is traced.
        trainable: regular expression searched in each path; empty trains every parameter.

    Raises:
        TaskError: `build` returns no module, or a variable of an unknown kind.
        ConfigError: `trainable` matches nothing.
    """
    with nnx.use_eager_sharding(False):
        abstract = nnx.eval_shape(lambda: task.build(nnx.Rngs(0)))
    if not isinstance(abstract, nnx.Module):
        raise TaskError(f"{type(task).__name__}.build returned a {type(abstract).__name__}. Return an nnx.Module.")
    carried_kinds = CARRIED + tuple(task.carried)
    classes: dict[str, dict[str, jax.ShapeDtypeStruct]] = {"params": {}, "carried": {}, "derived": {}}
    graph, state = nnx.split(abstract)
    keys, names = {}, {}
    for key, variable in nnx.to_flat_state(state):
        path = "/".join(map(str, key))
        kind = _class_of(path, variable, carried_kinds)
        classes[kind][path] = jax.ShapeDtypeStruct(variable.shape, variable.dtype)
        keys[path] = key
        metadata = variable.get_metadata()
        axes = metadata.get("logical_axes", metadata.get("out_sharding"))
        if axes is not None:
            names[path] = tuple(axes)
    trained = tuple(path for path in classes["params"] if re.search(trainable, path))
    if not trained:
        raise ConfigError(
            f"optimizer.trainable = {trainable!r} matches no parameter. Parameters: {', '.join(classes['params'])}."
        )
    dropouts = tuple(
        "/".join(map(str, path))
        for path, module in nnx.iter_modules(abstract)
        if isinstance(module, nnx.Dropout) and module.rate > 0
    )
    return Model(
        graph, keys, **classes, names=names, trained=trained, carried_kinds=carried_kinds, shared_dropout=dropouts
    )


def _class_of(path: str, variable: nnx.Variable, carried_kinds: tuple[type[nnx.Variable], ...]) -> str:
    """The class of a variable, or the refusal."""
    for kinds, name in (((nnx.Param,), "params"), (carried_kinds, "carried"), (DERIVED, "derived")):
        if isinstance(variable, kinds):
            return name
    kind = type(variable).__name__
    raise TaskError(
        f"{path}: variable of kind {kind}, which the engine does not know. Known: Param (trained), "
        f"{', '.join(k.__name__ for k in carried_kinds)} (carried), RngState (derived). If the forward pass changes it "
        f"and it is to be kept, set `carried = ({kind},)` in the Task; if it is constant, keep it as a plain array."
    )


def _flat(state: Any) -> list[tuple[str, Any]]:
    """(path, array) of every variable of an NNX state."""
    return [("/".join(map(str, key)), variable.get_value()) for key, variable in nnx.to_flat_state(state)]


def cast(tree: Any, dtype: Any, keep: tuple[str, ...] = ()) -> Any:
    """Casts the floating-point leaves of a pytree to `dtype`, but for those with a name of `keep` in their path."""

    def leaf(path: Any, x: jax.Array) -> jax.Array:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        kept = not jnp.issubdtype(x.dtype, jnp.floating) or any(name in keep for name in names)
        return x if kept else x.astype(dtype)

    return jax.tree.map_with_path(leaf, tree)
