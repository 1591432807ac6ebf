"""`Context`, what a Task may know about the step besides its batch.

A method of a Task gets it if it declares a parameter `context`.
"""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Context:
    """The step of a run and its random keys."""

    step: Any
    """int32 scalar: steps that were taken before, so 0 in the first step of a run."""
    epoch: Any
    """float32 scalar: passes over the training data before this step; 2.5 in the middle of the third epoch."""
    total_steps: int
    """Number of steps of the whole run."""
    rng: Any
    """Random keys `[batch]`, one per example, in evaluations, too. In `after_step`, one key. In the `transform` of a
    source, the numpy.random.Generator of the example."""
    mask: Any = None
    """bool `[batch]` in `loss` and `evaluate`: False for a row that is padding or could not be read. None elsewhere."""


@dataclasses.dataclass(frozen=True)
class WatchedContext(Context):
    """A context that records which code reads its `total_steps`, which a longer run changes."""

    reads: list[str] = dataclasses.field(default_factory=list)
    """Receives "total_steps" at each reading."""

    def __getattribute__(self, name: str) -> Any:
        if name == "total_steps":
            object.__getattribute__(self, "reads").append(name)
        return object.__getattribute__(self, name)


def names_total_steps(function: Callable[..., Any]) -> bool:
    """Returns whether the code of a function that declares a parameter `context` names `total_steps`."""
    codes = [code] if (code := getattr(function, "__code__", None)) and wants_context(function) else []
    for code in codes:
        if "total_steps" in code.co_names:
            return True
        codes += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
    return False


def wants_context(function: Callable[..., Any]) -> bool:
    """Returns whether a function declares a parameter `context`."""
    return _declares(getattr(function, "__func__", function))  # bound methods of one class share their answer


@functools.lru_cache
def _declares(function: Callable[..., Any]) -> bool:
    try:
        return "context" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return False


def call(function: Callable[..., Any], *args: Any, context: Context | None) -> Any:
    """Calls a method of a Task, with the context if it declares one, and makes it the current context meanwhile."""
    with _current(context):
        return function(*args, context=context) if wants_context(function) else function(*args)


def current() -> Context | None:
    """Returns the context of the method of a Task that is being called."""
    return _CONTEXT.get()


_CONTEXT: contextvars.ContextVar[Context | None] = contextvars.ContextVar("context", default=None)


@contextlib.contextmanager
def _current(context: Context | None) -> Iterator[None]:
    token = _CONTEXT.set(context)
    try:
        yield
    finally:
        _CONTEXT.reset(token)
