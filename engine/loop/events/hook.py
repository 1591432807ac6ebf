"""Calls of hooks. What the hooks of a step have returned is agreed among the processes once, after the last hook."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.base.duration import Period
from engine.cluster import group
from engine.cluster.peer_failure import LostPeer
from engine.loop import timeouts
from engine.loop.events.event import Boundary, Event
from engine.loop.events.results import Results, check_measured
from engine.loop.hooks import parse, read_only
from engine.loop.phases import CALLING_HOOK, WAITING_FOR_HOOKS
from engine.metrics.results import Result, scalars
from engine.training.state import TrainState


@dataclass(eq=False)
class CallHook:
    """Calls a user-defined hook and keeps what it returned, until `HookResults` collects it."""

    name: str
    call: Callable[[TrainState, int], object]
    """Calls the hook with a read-only state and the step."""
    period: Period
    returned: dict[str, tuple[dict[str, Result], str]]
    """Name of a hook -> its results by full name, and its reason to stop, at this step."""
    phase = CALLING_HOOK
    ends_dispatch = True
    runs_at_end = True

    def next_step(self, after: int) -> float:
        return self.period.next_after(after)

    def run(self, boundary: Boundary) -> None:
        is_due = self.period.due(boundary.step)
        if boundary.ended:  # the boundary is repeated: the hooks that are due have been called, the others have not
            is_due = not is_due
        if not is_due:
            return
        with _deleted_state_explained(self.name):
            returned = self.call(read_only(boundary.state), boundary.step)
        self.returned[self.name] = parse(returned, self.name)


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
    runs_at_end = True

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
            self.results.add(boundary.step, found, boundary.last)


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


def hook_events(
    calls: Mapping[str, tuple[Callable[[TrainState, int], object], Period]],
    results: Results,
    watched: Mapping[str, str],
    hang_s: float,
) -> list[Event]:
    """Returns the events of all hooks.

    Args:
        calls: name of a hook -> the function that calls it, and its period.
        results: receives the metrics of the hooks.
        watched: metric that the config names -> its field.
        hang_s: `resilience.hang` in seconds.
    """
    returned: dict[str, tuple[dict[str, Result], str]] = {}
    events = [CallHook(name, call, period, returned) for name, (call, period) in calls.items()]
    collect = HookResults(events, returned, results, watched, timeouts.PATIENCE * hang_s)
    return [*events, collect] if events else []
