"""Methods of a trained Task as pure functions of weights and inputs by name, from which programs are exported."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from engine.api.saved_run import LoadedRun
from engine.base.types import PyTree
from engine.compile.build import build_evaluation_program
from engine.config.schema import MeshSpec
from engine.parallel.mesh import make_mesh
from engine.training.arrays import cast

SINGLE = "prediction"  # name of the result of a method that returns one array
TRACED = 2  # rows with which the entries that the Task reads are found

type Arrays = Mapping[str, Any]
type Specs = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Forward:
    """A method of a Task as a pure function `(weights, inputs) -> outputs`; each is a dict of arrays by name.

    Attributes:
        function: the function, which can be traced by `jax.jit`.
        weights: name -> array on this host, in the precision of the forward pass.
        inputs: name -> shape and dtype of one row of the entries of a batch that the method reads.
    """

    function: Callable[[Arrays, Arrays], dict[str, Any]]
    weights: Mapping[str, np.ndarray]
    inputs: Specs

    def batched(self, rows: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the inputs `[rows, ...]`; `rows` may be symbolic."""
        return {name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for name, x in self.inputs.items()}


def predict_of(found: LoadedRun, example: PyTree) -> Forward:
    """Returns `Task.predict` of a trained model as a function.

    Args:
        found: the trained model.
        example: one example, a pytree of jax.ShapeDtypeStruct.
    """
    predict, weights = _by_name(found, example)
    entries = {_key(path): jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in jax.tree.leaves_with_path(example)}
    specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    batch = {name: jax.ShapeDtypeStruct((TRACED, *x.shape), x.dtype) for name, x in entries.items()}
    read = _read_by(predict, specs, batch)

    def function(weights: Arrays, inputs: Arrays) -> dict[str, Any]:
        rows = next(iter(inputs.values())).shape[0]
        zeros = {name: jnp.zeros((rows, *x.shape), x.dtype) for name, x in entries.items() if name not in read}
        return predict(weights, {**inputs, **zeros})

    arrays = {name: np.asarray(x) for name, x in weights.items()}
    return Forward(function, arrays, {name: x for name, x in entries.items() if name in read})


def _by_name(
    found: LoadedRun, example: PyTree
) -> tuple[Callable[[Arrays, Arrays], dict[str, Any]], dict[str, jax.Array]]:
    """Returns the predictions as a function of weights and of the entries of a batch, and the weights; all by name."""
    mesh = make_mesh(MeshSpec(), jax.local_devices()[:1])
    task, config = found.task, found.config
    dtype = build_evaluation_program(
        task, mesh, config.train, config.sharding, config.optimizer.trainable
    ).compute_dtype
    leaves, structure = jax.tree.flatten_with_path(example)
    # The keys of random numbers are constants of the program, which draws none in evaluation mode.
    definition, keys, state = nnx.split(found.model, nnx.RngState, ...)
    variables = {name_of(path): (path, variable) for path, variable in nnx.to_flat_state(state)}

    def predict(weights: Arrays, batch: Arrays) -> dict[str, Any]:
        values = [(path, variable.replace(weights[name])) for name, (path, variable) in variables.items()]
        model = nnx.merge(definition, keys, nnx.from_flat_state(values))
        examples = jax.tree.unflatten(structure, [batch[_key(path)] for path, _ in leaves])
        result = task.predict(model, cast(examples, dtype, task.full_precision))
        return {_key(path) or SINGLE: x for path, x in jax.tree.leaves_with_path(result)}

    return predict, {name: cast(variable.get_value(), dtype) for name, (_, variable) in variables.items()}


def name_of(path: Sequence[Any]) -> str:
    """Returns the name of a variable: "hidden/0/kernel"."""
    return "/".join(map(str, path))


def _key(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _read_by(predict: Callable[[Arrays, Arrays], Arrays], weights: Specs, batch: Specs) -> set[str]:
    """Returns the names of the entries of a batch that the predictions depend on."""
    jaxpr = jax.make_jaxpr(lambda batch, weights: predict(weights, batch))(batch, weights).jaxpr
    used = {id(x) for equation in jaxpr.eqns for x in equation.invars} | {id(x) for x in jaxpr.outvars}
    return {name for name, x in zip(sorted(batch), jaxpr.invars[: len(batch)], strict=True) if id(x) in used}
