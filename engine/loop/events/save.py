"""Saves of the state: when one is due, and what it stores."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engine.base import formatting
from engine.base.duration import Period
from engine.base.host import collect_as_usual
from engine.base.types import Json, PyTree
from engine.checkpoint.checkpointer import Checkpointer
from engine.checkpoint.store import StorageError
from engine.loop.divergence import Divergence
from engine.loop.events.event import Boundary
from engine.loop.phases import PREPARING, SAVING
from engine.loop.preemption import Interrupted, Preempted, Preemption
from engine.observe.recorder import Recorder
from engine.run.directory import RunDirectory


class Rebuild(Exception):
    """Raised to make the caller build the trainer again, for a checkpoint from which on other groups are frozen."""

    def __init__(self, text: str, preemption: Preemption | None = None):
        super().__init__(f"{text}. engine.train does so; in own code, build the Trainer again and call its run")
        self.preemption = preemption
        """It may have received a signal that the run has not answered."""


@dataclass(eq=False)
class Save:
    """Saves by policy, and always at the last step, on a request to stop, and with an evaluation that selects the best.

    When the run was asked to stop, it raises Interrupted or Preempted after the save; at the step `until`, Rebuild.
    """

    checkpoints: Checkpointer
    directory: RunDirectory
    divergence: Divergence
    recorder: Recorder
    preemption: Preemption
    selecting: Sequence[Period]
    """Periods of the evaluations that select the best checkpoint."""
    total_steps: int
    say: Callable[[str], None]
    until: float = math.inf
    """Step from which on a frozen group is trained: the run saves, and its trainer is built again."""
    phase = SAVING
    runs_at_end = True

    @property
    def ends_dispatch(self) -> bool:
        return not self.checkpoints.policy.is_clock

    def next_step(self, after: int) -> float:
        selecting = [period.next_after(after) for period in self.selecting]
        return min([self.checkpoints.policy.next_step(after), *selecting])

    def is_due(self, boundary: Boundary) -> bool:
        """Whether this boundary is saved."""
        return self._is_forced(boundary) or self.checkpoints.policy.due(boundary.step)

    def _is_forced(self, boundary: Boundary) -> bool:
        wanted = boundary.last or any(period.due(boundary.step) for period in self.selecting)
        return boundary.stopping or boundary.ended or (boundary.step > 0 and wanted)

    def run(self, boundary: Boundary) -> None:
        if not self.divergence.pending and self.is_due(boundary):
            row = self.recorder.unfinished()
            position = {**_position_of_all(boundary.position), "skipped": sorted(self.divergence.skipped), "row": row}
            force = self._is_forced(boundary)
            if self.checkpoints.maybe_save(boundary.step, boundary.state.to_checkpoint(), position, force):
                self.say(f"saving checkpoint of step {boundary.step}")
                self.directory.stopwatch.flush()
                self.recorder.saved()
        if boundary.stopping and boundary.step == self.until and not self.preemption.answered:
            self.checkpoints.finish()
            raise Rebuild(
                f"step {boundary.step}: a frozen group of parameters is trained from here on", self.preemption
            )
        if boundary.stopping:
            raise self._stopped(boundary.step)

    def _stopped(self, step: int) -> Interrupted | Preempted:
        kind = Interrupted if self.preemption.interrupted else Preempted
        reached = f"step {formatting.progress(step, self.total_steps)}"
        try:
            self.checkpoints.finish()
        except StorageError as error:
            return kind(f"asked to stop at {reached}. {error}")
        if not self.directory.kept:
            return kind(f"asked to stop at {reached}. This run keeps no files; to keep them, add --workdir=DIR.")
        return kind(f"asked to stop; the state of {reached} is saved in {self.directory}.")


def _position_of_all(position: Mapping[str, Json]) -> Mapping[str, Json]:
    """Returns the position in the data of all processes, on the primary; only that of streams differs among them."""
    if "streams" not in position:
        return position
    from engine.data.streams.marks import gather_marks

    return gather_marks(position)


@dataclass(eq=False)
class Prepare:
    """Starts what the first step does not need, once the second step is dispatched, so that it delays neither.

    It compiles the computations of a save, saves the parameters that never change, and starts threads that trace.
    """

    prepare: Callable[[int, Mapping[str, PyTree], Sequence[str]], None]
    first_step: int
    starts: Sequence[Callable[[], None]] = ()
    """Each starts a thread."""
    constant: Sequence[str] = ()
    """Paths of the parameters that no step of the run changes."""
    done: bool = False
    phase = PREPARING
    ends_dispatch = False
    runs_at_end = False

    def next_step(self, after: int) -> float:
        return math.inf if self.done else max(self.first_step + 2, after + 1)

    def run(self, boundary: Boundary) -> None:
        self.done = True
        collect_as_usual()
        for start in self.starts:
            start()
        self.prepare(boundary.step, boundary.state.to_checkpoint(), self.constant)
