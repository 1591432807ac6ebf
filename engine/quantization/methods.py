"""Runs the methods of a Task with other products: `with_products` returns a Task whose methods are rewritten.

They are traced for that: the model is split into its parameters and the rest, so that a method becomes a function of
weights by name.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from engine.base.errors import ConfigError
from engine.training.task import Task

_METHODS = ("loss", "encode", "evaluate", "predict")
"""Methods that call the model."""

type Arrays = Mapping[str, jax.Array]
type Compute = Callable[[Callable[[Arrays], Any], Arrays], Any]
"""Returns the result of a function of weights."""


def with_products(task: Task, compute: Compute) -> Task:
    """Returns a Task like `task`, of which `compute` runs the methods that call the model.

    Raises:
        ConfigError: the Task has an `update`, which calls the model in ways of its own.
    """
    kind = type(task)
    if kind.update is not Task.update:
        raise ConfigError(
            f"{kind.__name__}: defines update, whose products cannot be rounded. Quantize Tasks with loss or encode."
        )
    members = {
        name: _rewritten(kind, name, compute) for name in _METHODS if getattr(kind, name) is not getattr(Task, name)
    }
    members |= {"__slots__": (), "__module__": kind.__module__, "__doc__": kind.__doc__}
    return _as(task, type(kind.__name__, (kind,), members))


def _as(task: Task, kind: type[Task]) -> Task:
    """Returns a copy of a Task as an instance of another class."""
    found = copy.copy(task)
    object.__setattr__(found, "__class__", kind)
    return found


def _rewritten(kind: type[Task], name: str, compute: Compute) -> Callable[..., Any]:
    original = getattr(kind, name)

    @functools.wraps(original)  # a method that declares a parameter `context` receives it
    def method(self: Task, model: Any, *args: Any, **kwargs: Any) -> Any:
        plain = _as(self, kind)  # the methods that it calls are not rewritten again
        return _run(model, compute, lambda module: original(plain, module, *args, **kwargs))

    return method


def _run(model: nnx.Module, compute: Compute, method: Callable[[nnx.Module], Any]) -> Any:
    """Returns the result of a method, and changes the other variables of the model as the method does."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    variables = {_name(path): (path, variable) for path, variable in nnx.to_flat_state(params)}
    others = dict(nnx.to_flat_state(rest))
    changed: list[Any] = []

    def function(weights: Arrays) -> tuple[Any, list[jax.Array]]:
        values = [(path, variable.replace(weights[name])) for name, (path, variable) in variables.items()]
        values += [(path, variable.replace(variable.get_value())) for path, variable in others.items()]
        module = nnx.merge(graph, nnx.from_flat_state(values))
        result = method(module)
        after = {path: x.get_value() for path, x in nnx.to_flat_state(nnx.state(module)) if path in others}
        changed[:] = [path for path in others if after[path] is not others[path].get_value()]
        return result, [after[path] for path in changed]

    result, arrays = compute(function, {name: x.get_value() for name, (_, x) in variables.items()})
    if changed:
        pairs = zip(changed, arrays, strict=True)
        nnx.update(model, nnx.from_flat_state([(path, others[path].replace(array)) for path, array in pairs]))
    return result


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))
