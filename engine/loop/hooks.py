"""Hooks: user-defined objects that the loop calls between two dispatches.

A hook reads the state and cannot change it. It may return metrics, and may end the run. What the hooks of a step have
returned is agreed among the processes once, after the last hook.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import jax

from engine.base.duration import Period, RunSize
from engine.base.errors import FieldError, TaskError
from engine.cluster import group
from engine.cluster.peer_failure import LostPeer
from engine.config.schema import Hook as HookConfig
from engine.config.target import build
from engine.loop import timeouts
from engine.loop.evaluation import check_measured
from engine.loop.events import Boundary, Event, Results
from engine.loop.phases import CALLING_HOOK, WAITING_FOR_HOOKS
from engine.metrics.results import Result, named_results, scalars
from engine.metrics.values import describe_value
from engine.training.state import TrainState

if TYPE_CHECKING:
    from engine.loop.trainer import Trainer


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


class Hook(Protocol):
    """A user-defined object that is called at the steps of its period."""

    def run(self, trainer: "Trainer", state: TrainState, step: int) -> Returned:
        """Called between two dispatches, in every process.

        Args:
            trainer: the trainer of the run.
            state: the train state, read-only. The next step reuses its memory: keep a copy, not the state itself.
            step: steps done.

        Returns:
            Metrics by name, which are recorded as "<name of the hook>/<metric>": numbers, arrays, images and whatever
            else `compute` of a metric may return. Or a `Stop`, which ends the run; or None. In a run of several
            processes the metrics of the primary count, and a Stop of any process.
        """
        ...


def build_hooks(sections: Mapping[str, HookConfig]) -> dict[str, Hook]:
    """Returns the hook of each section by name. Raises ConfigError for a target without a method `run`."""
    hooks = {}
    for name, section in sections.items():
        hook = hooks[name] = build(section, f"hooks.{name}")
        if isinstance(hook, type) or not callable(getattr(hook, "run", None)):
            problem = f"{section.target} returned {describe_value(hook)}, which has no method run(trainer, state, step)"
            raise FieldError(f"hooks.{name}.target", problem, "Name a class with this method.")
    return hooks


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
    return _read_only(jax.tree.map(lambda x: x, state))


def _read_only(tree: Any) -> Any:
    if isinstance(tree, dict):
        return ReadOnlyDict({key: _read_only(value) for key, value in tree.items()})
    if isinstance(tree, TrainState):
        fields = {field.name: _read_only(getattr(tree, field.name)) for field in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **fields)
    if isinstance(tree, tuple):
        values = [_read_only(value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return tree


@contextlib.contextmanager
def _deleted_state_explained(name: str) -> Iterator[None]:
    """Adds a note to JAX's error for an array of an earlier state, whose memory a later step has reused."""
    try:
        yield
    except RuntimeError as error:
        if "has been deleted" in str(error):
            error.add_note(
                f"The hook {name!r} has kept the state of an earlier call, whose memory a later step has reused. Keep "
                "a copy: jax.tree.map(jnp.copy, state.params)."
            )
        raise


@dataclass(eq=False)
class CallHook:
    """Calls a user-defined hook and keeps what it returned, until `HookResults` collects it."""

    name: str
    hook: Hook
    period: Period
    trainer: "Trainer"
    returned: dict[str, tuple[dict[str, Result], str]]
    """Name of a hook -> its results by full name, and its reason to stop, at this step."""
    phase = CALLING_HOOK
    ends_dispatch = True

    def next_step(self, after: int) -> float:
        return self.period.next_after(after)

    def run(self, boundary: Boundary) -> None:
        if boundary.ended == self.period.due(boundary.step):  # an early end calls the hooks that were not due
            return
        with _deleted_state_explained(self.name):
            returned = self.hook.run(self.trainer, read_only(boundary.state), boundary.step)
        self.returned[self.name] = parse(returned, self.name)


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


@dataclass(eq=False)
class HookResults:
    """Agrees among the processes on what the hooks of a step have returned, records it, and ends the run if asked."""

    hooks: Sequence[CallHook]
    returned: dict[str, tuple[dict[str, Result], str]]
    """As in `CallHook`."""
    results: Results
    watched: Mapping[str, str]
    """Metric that the config names -> its field, such as "checkpoint.best"."""
    timeout_s: float
    """Seconds for the slowest process to finish its hooks."""
    phase = WAITING_FOR_HOOKS
    ends_dispatch = True

    def next_step(self, after: int) -> float:
        return min((hook.next_step(after) for hook in self.hooks), default=math.inf)

    def run(self, boundary: Boundary) -> None:
        found = {name: value for results, _ in self.returned.values() for name, value in results.items()}
        agreed = {hook: (scalars(results), reason) for hook, (results, reason) in self.returned.items()}
        self.returned.clear()
        if agreed and group.count() > 1:
            agreed = group.decide(agreed, _merge, "hooks", self.timeout_s)
        if not group.is_primary():  # arrays and images are written by the primary only
            found = {name: value for values, _ in agreed.values() for name, value in values.items()}
        for hook, (_, reason) in agreed.items():
            if reason and not boundary.stop:
                boundary.stop = f"the hook {hook} stopped the run: {reason}"
        for hook in agreed:
            check_measured(self.watched, "hook", hook, [n for n in scalars(found) if n.startswith(f"{hook}/")])
        if found:
            self.results.add(boundary.step, found)


def _merge(
    values: Mapping[int, Mapping[str, tuple[dict[str, float], str]]], missing: Sequence[int]
) -> dict[str, tuple[dict[str, float], str]]:
    """Returns the metrics of the primary, and for each hook the first reason of any process to stop."""
    if missing:
        raise LostPeer(f"the hooks of process {missing[0]} have not returned in time. See what they wait for.")
    reasons = {
        name: next((value[name][1] for _, value in sorted(values.items()) if value[name][1]), "") for name in values[0]
    }
    return {name: (metrics, reasons[name]) for name, (metrics, _) in values[0].items()}


@dataclass(frozen=True)
class HookEvents:
    """The events of all hooks of a run."""

    events: Sequence[Event]
    measuring: Mapping[str, Period]
    """Metric of a hook that the config names -> the steps at which the hook is called."""


def hook_events(
    trainer: "Trainer", hooks: Mapping[str, Hook], size: RunSize, results: Results, watched: Mapping[str, str]
) -> HookEvents:
    """Returns the events of all hooks.

    Args:
        trainer: the trainer of the run, which hooks receive.
        hooks: the hooks by name.
        size: sizes of the run.
        results: receives the metrics of the hooks.
        watched: metric that the config names -> its field.
    """
    sections, returned = trainer.config.hooks, {}
    calls = [CallHook(name, hook, size.period(sections[name].every), trainer, returned) for name, hook in hooks.items()]
    timeout_s = timeouts.PATIENCE * trainer.config.resilience.hang.seconds
    collect = [HookResults(calls, returned, results, watched, timeout_s)] if calls else []
    measuring = {name: call.period for name in watched for call in calls if name.startswith(f"{call.name}/")}
    return HookEvents([*calls, *collect], measuring)
