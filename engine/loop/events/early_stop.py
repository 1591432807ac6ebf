"""The end of a run by the conditions of the config section `stop`."""

from dataclasses import dataclass

from engine.base.duration import Period
from engine.checkpoint.checkpointer import Checkpointer
from engine.cluster import group
from engine.config.schema import Stop as StopConfig
from engine.loop.events.event import Boundary
from engine.loop.phases import TRAINING
from engine.loop.stopping import reason_to_stop


@dataclass(eq=False)
class EarlyStop:
    """Ends the run when a condition of the config section `stop` holds."""

    config: StopConfig
    measured: Period
    """The steps at which an evaluation or a hook measures the metric."""
    checkpoints: Checkpointer
    phase = TRAINING
    ends_dispatch = True
    runs_at_end = False

    def next_step(self, after: int) -> float:
        return self.measured.next_after(after)

    def run(self, boundary: Boundary) -> None:
        history = self.checkpoints.retention.history(self.config.metric or "", boundary.step)
        if boundary.step in history and not boundary.stop:
            # The primary decides: hosts with different processors may compute different last bits of the metric.
            boundary.stop = group.broadcast(reason_to_stop(self.config, history), "early stopping")
