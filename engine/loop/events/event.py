"""The protocol of events, the boundaries at which they run, and the schedule of their steps."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.base.types import Json
from engine.loop.phases import Phase
from engine.training.state import TrainState


@dataclass
class Boundary:
    """A point between two dispatches. All steps before `step` are complete or in flight."""

    step: int
    state: TrainState
    position: Mapping[str, Json]
    """Position in the data: the next batch and the next example."""
    first: bool
    """Whether the run starts or resumes here."""
    last: bool
    """Whether `step` is the last step of the run."""
    stopping: bool
    """Whether the run saves and ends here: it was asked to stop, or its trainer is built again (`StepSpec.until`)."""
    interrupted: bool = False
    """Set by an event that aborted because the run was asked to stop; the boundary is repeated with `stopping`."""
    stop: str = ""
    """Set by an event that ends the run before its last step: why. The boundary is repeated with `ended` and `last`."""
    ended: bool = False
    """Whether the run ends at this step because of `stop`."""


class Event(Protocol):
    """Something that happens at certain steps of a run."""

    @property
    def phase(self) -> Phase:
        """Phase of the main thread while the event runs."""
        ...

    @property
    def ends_dispatch(self) -> bool:
        """Whether a dispatch of several steps must end at its step. False for an event that depends on a clock."""
        ...

    @property
    def runs_at_end(self) -> bool:
        """Whether it also runs at the step at which a hook or the config section `stop` ends the run."""
        ...

    def next_step(self, after: int) -> float:
        """Returns the first step > `after` at which the event is due; math.inf for never."""
        ...

    def run(self, boundary: Boundary) -> None:
        """Runs the event. Every process of a run calls it at the same steps."""
        ...


class EventSchedule:
    """The next step of each event.

    Args:
        events: the events, in the order in which they run at a step.
        step: step of the first boundary.
    """

    def __init__(self, events: Sequence[Event], step: int):
        self._next = {event: event.next_step(step - 1) for event in events}

    def due(self, boundary: Boundary) -> Iterator[Event]:
        """Yields the events that are due, in order, until one is interrupted."""
        for event, step in self._next.items():
            if step <= boundary.step and not boundary.interrupted:
                yield event

    def bring_forward(self, step: int, *kinds: type) -> None:
        """Makes the events of these classes due at a step."""
        self._next |= {event: step for event in self._next if isinstance(event, kinds)}

    def end_at(self, step: int) -> None:
        """Makes the events due at a step that run at the end of a run, and no others."""
        self._next = {event: step if event.runs_at_end else math.inf for event in self._next}

    def advance(self, step: int, total_steps: float) -> tuple[float, float]:
        """Returns the next step > `step` with an event, and the next that ends a dispatch; at most `total_steps`."""
        self._next = {event: event.next_step(step) for event in self._next}
        ends = [at for event, at in self._next.items() if event.ends_dispatch]
        return min([total_steps, *self._next.values()]), min([total_steps, *ends])
