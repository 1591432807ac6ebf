"""Methods of a Task with its model as pure functions of weights and inputs by name, from which programs are exported.

Importing it needs neither Orbax nor Grain, so that a converter in another environment can use it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from engine.base.errors import TaskError
from engine.base.types import PyTree
from engine.base.user_errors import location
from engine.parallel.layout import Layout, with_layout
from engine.training.arrays import cast
from engine.training.task import Task, author_errors_reported

STATE = "state/"
"""Before the names of the state that a model with memory reads and returns."""
SINGLE = "prediction"  # name of the result of a method that returns one array
TRACED = 3  # rows with which the entries that a method reads are found
_DTYPES = (
    *("bool", "bfloat16", "float16", "float32", "float64"),
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
)
"""Of outputs: those that the programs in a bundle read from files of arrays."""

PORTABLE = Layout(portable=True)

type Arrays = Mapping[str, Any]
type Specs = Mapping[str, jax.ShapeDtypeStruct]
type Function = Callable[[Arrays, Arrays], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Forward:
    """A method of a Task as a pure function `(weights, inputs) -> outputs`; each is a dict of arrays by name.

    Attributes:
        function: the function, which `jax.jit` can trace with any number of rows. Layers use their plain formula in it.
        weights: name -> array on this host, in the precision of the forward pass; without those it does not read.
        inputs: name -> shape and dtype of one row of what the method reads: entries of a batch, and the state.
        state: names of the state among the inputs, "state/memory"; outputs of these names are its next values.
    """

    function: Function
    weights: Mapping[str, np.ndarray]
    inputs: Specs
    state: tuple[str, ...] = ()

    def batched(self, rows: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the inputs `[rows, ...]`; `rows` may be symbolic."""
        return {name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for name, x in self.inputs.items()}


def forward_of(
    task: Task, model: nnx.Module, dtype: DTypeLike, example: PyTree, method: str = "predict", rows: int = TRACED
) -> Forward:
    """Returns a method of a Task, called with a model in evaluation mode, as a function.

    The variables of `Task.model_state` that the method changes, the memory of a model, become inputs and outputs.

    Args:
        task: the Task.
        model: its model, in evaluation mode.
        dtype: precision of the forward pass.
        example: one example, a pytree of jax.ShapeDtypeStruct without the batch dimension.
        method: name of the method, which is called like `predict`.
        rows: rows of the memory of the model, which are those of a training batch.

    Raises:
        TaskError: the method reads nothing of a batch, or an entry that the batch lacks; it cannot be traced, or does
            not return arrays.
    """
    call = _Call(task, model, dtype, example, method)
    weights = {
        name: cast(variable.get_value(), dtype) if isinstance(variable, nnx.Param) else variable.get_value()
        for name, (_, variable) in call.variables.items()
    }
    entries = {key(path): jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in jax.tree.leaves_with_path(example)}
    specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    kept = [name for name in call.model_state() if specs[name].shape[:1] == (rows,)]
    batch = {name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for name, x in entries.items()}
    try:
        with author_errors_reported(task, method, jax.tree.unflatten(call.structure, list(batch.values()))):
            read, needed, changed = with_layout(PORTABLE, _trace)(call, specs, batch)
    except jax.errors.JAXTypeError as error:
        raise TaskError(
            f"{type(task).__name__}.{method}: cannot be exported, since it needs the values of a batch in Python "
            f"({location(error)}). Use operations of jax.numpy there, which become part of the program."
        ) from error
    state = {f"{STATE}{name}": name for name in kept if name in changed}

    def function(weights: Arrays, inputs: Arrays) -> dict[str, Any]:
        rows = next(iter(inputs.values())).shape[0]
        zeros = {name: jnp.zeros((rows, *x.shape), x.dtype) for name, x in entries.items() if name not in read}
        unread = {name: jnp.zeros(x.shape, x.dtype) for name, x in specs.items() if name not in needed}
        values = {**unread, **weights, **{name: inputs[outer] for outer, name in state.items()}}
        outputs, after = call(values, {**zeros, **{name: x for name, x in inputs.items() if name not in state}})
        return outputs | {outer: after[name].astype(inputs[outer].dtype) for outer, name in state.items()}

    inputs = {name: x for name, x in entries.items() if name in read}
    inputs |= {outer: jax.ShapeDtypeStruct(specs[name].shape[1:], specs[name].dtype) for outer, name in state.items()}
    if not inputs:
        raise TaskError(f"{type(task).__name__}.{method}: reads nothing of a batch, so there is no program to export.")
    arrays = {name: np.asarray(x) for name, x in weights.items() if name in needed and name not in state.values()}
    return Forward(with_layout(PORTABLE, function), arrays, inputs, tuple(state))


class _Call:
    """A call of the method with the variables of the model and the entries of a batch by name."""

    def __init__(self, task: Task, model: nnx.Module, dtype: DTypeLike, example: PyTree, method: str):
        self._task, self._dtype, self._method = task, dtype, method
        leaves, self.structure = jax.tree.flatten_with_path(example)
        self._entries = [key(path) for path, _ in leaves]
        # The keys of random numbers are constants of the program, which draws none in evaluation mode.
        self._definition, self._keys, state = nnx.split(model, nnx.RngState, ...)
        self.variables = {name_of(path): (path, variable) for path, variable in nnx.to_flat_state(state)}
        """Name -> path and variable of the model."""

    def __call__(self, values: Arrays, batch: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the outputs and the variables after the call."""
        state = [(path, variable.replace(values[name])) for name, (path, variable) in self.variables.items()]
        model = nnx.merge(self._definition, self._keys, nnx.from_flat_state(state))
        examples = jax.tree.unflatten(self.structure, [batch[name] for name in self._entries])
        result = getattr(self._task, self._method)(model, cast(examples, self._dtype, self._task.full_precision))
        return outputs_of(result, f"{type(self._task).__name__}.{self._method}"), values_of(model)

    def model_state(self) -> list[str]:
        """Returns the names of the variables that a method may change: those of `Task.model_state`."""
        kinds = self._task.model_state
        return [name for name, (_, variable) in self.variables.items() if kinds and isinstance(variable, kinds)]


def outputs_of(result: PyTree, where: str) -> dict[str, Any]:
    """Returns the arrays that a method returns by name. Raises TaskError if files of arrays cannot hold them."""
    found: dict[str, Any] = {}
    for path, x in jax.tree.leaves_with_path(result):
        name = key(path) or SINGLE
        dtype = (
            str(jnp.result_type(x)) if isinstance(x, bool | int | float | np.ndarray | jax.Array) else type(x).__name__
        )
        if dtype not in _DTYPES:
            raise TaskError(
                f"{where}: returns {name} of type {dtype}, which a program cannot return. Return arrays of bool, "
                "integers, or floats of 16 to 64 bits."
            )
        if name in found:
            raise TaskError(f"{where}: returns two arrays with the name {name}. Give one of them another name.")
        found[name] = x
    return found


def name_of(path: Sequence[Any]) -> str:
    """Returns the name of a variable: "hidden/0/kernel"."""
    return "/".join(map(str, path))


def values_of(model: nnx.Module) -> dict[str, Any]:
    """Returns the values of the variables of a model by name, without those of random numbers."""
    state = nnx.state(model, nnx.Not(nnx.RngState))
    return {name_of(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def key(path: Any) -> str:
    """Returns the name of an entry of a pytree: "agents/position"; "" for the whole tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _trace(call: _Call, weights: Specs, batch: Specs) -> tuple[set[str], set[str], set[str]]:
    """Returns the entries of a batch and the variables that the call reads, and the variables that it changes."""
    changed: set[str] = set()

    def function(batch: Arrays, weights: Arrays) -> tuple[Any, Any]:
        outputs, after = call(weights, batch)
        changed.update(name for name, x in weights.items() if after.get(name) is not x)
        return outputs, {name: after[name] for name in changed}

    jaxpr = jax.make_jaxpr(function)(batch, weights).jaxpr
    used = {id(x) for x in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(x) in used for x in equation.outvars):
            used |= {id(x) for x in equation.invars}
    reads = [id(x) in used for x in jaxpr.invars]  # of a dict in the order of its names
    read = {name for name, is_read in zip(sorted(batch), reads, strict=False) if is_read}
    needed = {name for name, is_read in zip(sorted(weights), reads[len(batch) :], strict=True) if is_read}
    return read, needed, changed
