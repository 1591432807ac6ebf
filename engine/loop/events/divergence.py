"""The check before each save: applies the divergence policy to bad batches and to a state that is not finite."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engine.checkpoint.checkpointer import Checkpointer
from engine.cluster import group
from engine.compile.program import Program
from engine.data.batch import Batch
from engine.loop.divergence import Divergence, End, RollBack, list_names
from engine.loop.events.event import Boundary
from engine.loop.events.save import Save
from engine.loop.phases import PREPARING, SAVING, TRAINING, Phases
from engine.observe.recorder import Recorder
from engine.training.state import TrainState

EXPLAIN_S = 60.0  # until all processes must have read a batch again


class Rollback(Exception):
    """Raised to make the trainer restore the newest checkpoint and continue from there."""


@dataclass(eq=False)
class DivergenceCheck:
    """Applies the divergence policy to bad batches, and checks that a state is finite before it is saved."""

    policy: Divergence
    save: Save
    recorder: Recorder
    program: Program
    checkpoints: Checkpointer
    phases: Phases
    read_batch: Callable[[int], Batch]
    """Returns a batch by its number, once more."""
    phase = TRAINING  # it waits for steps, so the timeout of a step applies
    ends_dispatch = False
    runs_at_end = True

    def next_step(self, after: int) -> float:
        return self.save.next_step(after)

    def run(self, boundary: Boundary) -> None:
        """
        Raises:
            Rollback: the run has to continue from its newest checkpoint.
            Diverged: the policy ends the run.
        """
        saving = self.save.is_due(boundary)
        if saving or self.policy.pending:
            self.recorder.settle()
        broken = self.program.not_finite(boundary.state) if saving else []
        if not (broken or self.policy.pending):
            return
        with self.phases(SAVING):
            self.checkpoints.settle()
        saved = group.run_on_primary(self.checkpoints.store.steps, "the checkpoints")
        ending = boundary.stopping or boundary.last
        decision = self.policy.decide(boundary.step, saved, ending, broken)
        if isinstance(decision, End):
            batch = decision.explained
            raise decision.error("" if batch is None else self._explain(boundary.state, batch))
        if isinstance(decision, RollBack):
            self.policy.roll_back(decision)
            raise Rollback

    def _explain(self, state: TrainState, batch: int) -> str:
        """Returns a sentence that names arrays of the state, or gradients of a batch, that are not finite.

        The gradient is that of the present state, which good steps may have changed since. Every process calls it.
        """
        with self.phases(PREPARING):
            if broken := self.program.not_finite(state):
                return f"Not finite in the state: {list_names(broken)}. "
            try:
                examples = self.read_batch(batch)
            except Exception:  # the run ends with the reason that is known
                examples = None
            ready = group.decide(examples is not None, _all_ready, "the batch of a bad step", EXPLAIN_S)
            if not ready or examples is None:
                return ""
            names = self.program.not_finite_gradients(state, examples, batch)
        if len(names) == len(self.program.spec.model.trained) > 1:
            return "No gradient is finite. "
        return f"Gradients that are not finite: {list_names(names)}. " if names else ""


def _all_ready(values: Mapping[int, bool], missing: Sequence[int]) -> bool:
    return not missing and all(values.values())
