"""Hooks: user-defined objects that the loop calls between two dispatches. What they receive and return.

A hook reads the state and cannot change it. It may return metrics, and may end the run.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import jax

from engine.base.errors import FieldError, TaskError
from engine.config.schema import LAYERS, Config
from engine.config.schema import Hook as HookConfig
from engine.config.target import build
from engine.metrics.results import Result, named_results
from engine.metrics.values import describe_value
from engine.training.state import TrainState

DIAGNOSIS = "engine.diagnosis.layers.Layers"
"""The hook of `log.layers`, a class of an extension package."""


@dataclass(frozen=True)
class Stop:
    """Returned by a hook to end the run at this step: the run saves, and ends as done.

    Args:
        reason: why, for the user: "the learning rate search is complete".
        metrics: metrics of this call by name, as a hook returns them.
    """

    reason: str
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)


type Returned = Mapping[str, Any] | Stop | None
"""What a hook returns: metrics by name, or Stop, or nothing."""


class Hook[Trainer](Protocol):
    """A user-defined object that is called at the steps of its period."""

    def run(self, trainer: Trainer, state: TrainState, step: int) -> Returned:
        """Called between two dispatches, in every process.

        Args:
            trainer: the trainer of the run, an `engine.Trainer`.
            state: the train state, read-only. The next step reuses its memory: keep a copy, not the state itself.
            step: steps done.

        Returns:
            Metrics by name, which are recorded as "<name of the hook>/<metric>": numbers, arrays, images and whatever
            else `compute` of a metric may return. Or a `Stop`, which ends the run; or None. In a run of several
            processes the metrics of the primary count, and a Stop of any process.
        """
        ...


def build_hooks(sections: Mapping[str, HookConfig]) -> dict[str, Hook[Any]]:
    """Returns the hook of each section by name. Raises ConfigError for a target without a method `run`."""
    hooks = {}
    for name, section in sections.items():
        hook = hooks[name] = build(section, f"hooks.{name}")
        if isinstance(hook, type) or not callable(getattr(hook, "run", None)):
            problem = f"{section.target} returned {describe_value(hook)}, which has no method run(trainer, state, step)"
            raise FieldError(f"hooks.{name}.target", problem, "Name a class with this method.")
    return hooks


def hook_sections(config: Config) -> dict[str, HookConfig]:
    """Returns the sections of the hooks of a run by name: those of the config, and that of `log.layers`."""
    layers = config.log.layers
    return {**config.hooks, **({} if layers is None else {LAYERS: HookConfig(target=DIAGNOSIS, every=layers)})}


class ReadOnlyDict(dict[str, Any]):
    """A dict of the state that a hook receives: each change raises TypeError.

    `jax.tree.map` returns dicts of this class, since JAX combines only trees of the same classes: the parameters of
    a step and a copy of those of an earlier step. `dict`, `copy` and `pickle` give plain dicts.
    """

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(
            "a hook cannot change the train state: it is read-only. To change a copy, write dict(state.params). Code "
            "that changes the state in each step belongs to the Task."
        )

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        """Makes `copy` and `pickle` give a plain dict: by default, they fill an object of this class item by item."""
        return dict, (dict(self),)


def _flatten(values: ReadOnlyDict) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
    keys = tuple(sorted(values))
    return [(jax.tree_util.DictKey(key), values[key]) for key in keys], keys


def _unflatten(keys: tuple[str, ...], values: Iterable[Any]) -> ReadOnlyDict:
    return ReadOnlyDict(zip(keys, values, strict=True))


jax.tree_util.register_pytree_with_keys(ReadOnlyDict, _flatten, _unflatten)


def read_only(state: TrainState) -> TrainState:
    """Returns a state of the same arrays in new containers, whose dicts cannot be changed."""
    return _with_read_only_dicts(jax.tree.map(lambda x: x, state))


def _with_read_only_dicts(tree: Any) -> Any:
    if isinstance(tree, dict):
        return ReadOnlyDict({key: _with_read_only_dicts(value) for key, value in tree.items()})
    if isinstance(tree, TrainState):
        fields = {field.name: _with_read_only_dicts(getattr(tree, field.name)) for field in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **fields)
    if isinstance(tree, tuple):
        values = [_with_read_only_dicts(value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return tree


def parse(returned: object, hook: str) -> tuple[dict[str, Result], str]:
    """Returns the results by full name, and the reason to stop, in what a hook has returned.

    Raises:
        TaskError: it is neither None, a dict of metrics nor a Stop, or a metric is of another type.
    """
    where = f"hooks.{hook}: run"
    reason, metrics = (returned.reason, returned.metrics) if isinstance(returned, Stop) else ("", returned)
    if isinstance(returned, Stop) and not (isinstance(reason, str) and reason.strip()):
        raise TaskError(f"{where} returned a Stop with the reason {reason!r}. Give a sentence for the user.")
    if metrics is None:
        return {}, reason
    if not isinstance(metrics, Mapping):
        allowed = "Return a dict of name -> number, engine.Stop(reason, metrics), or nothing"
        raise TaskError(f"{where} returned {describe_value(metrics)}. {allowed}.")
    for name in metrics:
        if not isinstance(name, str) or not name or any(char.isspace() for char in name):
            raise TaskError(f"{where} returned the metric name {name!r}. Use text without spaces, such as 'norm'.")
    return named_results(hook, metrics, where), reason
