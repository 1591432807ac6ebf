"""Evaluations that are due."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engine.base.duration import Period
from engine.cluster import group
from engine.loop.divergence import list_names
from engine.loop.evaluation import Evaluator
from engine.loop.events.event import Boundary
from engine.loop.events.results import Results, check_measured
from engine.loop.phases import EVALUATING
from engine.loop.preemption import Preemption
from engine.metrics.results import Result, scalars


@dataclass(eq=False)
class Evaluate:
    """Runs the named evaluations that are due and records their results."""

    evaluations: Sequence[tuple[Evaluator, Period]]
    results: Results
    watched: Mapping[str, str]
    """Metric that the config names -> its field, such as "checkpoint.best"."""
    preemption: Preemption
    heartbeat: Callable[[], None]
    say: Callable[[str], None]
    ready: Callable[[Evaluator], None] = lambda evaluation: None
    """Waits until the programs of an evaluation are compiled."""
    phase = EVALUATING
    ends_dispatch = True
    runs_at_end = True

    def next_step(self, after: int) -> float:
        return min((period.next_after(after) for _, period in self.evaluations), default=math.inf)

    def run(self, boundary: Boundary) -> None:
        step = boundary.step
        new: dict[str, Result] = {}
        # An earlier attempt may have ended right after this evaluation.
        known = self.results.checkpoints.results(step) if boundary.first else {}
        for evaluation, period in self.evaluations:
            if not self._runs(period, boundary):
                continue
            if evaluation.is_known(known) and self._has_file(evaluation, step):
                self.results.latest |= known
                continue
            self.ready(evaluation)
            if (found := evaluation.run(boundary.state, self.preemption, self.heartbeat, step)) is None:
                boundary.interrupted = True
                return
            check_measured(self.watched, "evaluation", evaluation.name, scalars(found))
            new |= found
            if evaluation.unweighted:
                names = list_names(evaluation.unweighted)
                self.say(f"warning: step {step}: every weight of {names} is 0, so there is no value (NaN)")
            if (error := evaluation.figure_error) is not None:
                self.say(f"warning: step {step}: figures of {evaluation.name} are missing: {error}")
        if new:
            self.results.add(step, new, boundary.last)

    def _has_file(self, evaluation: Evaluator, step: int) -> bool:
        """Whether the metrics of examples are stored, if they are kept: a killed attempt may not have written them."""
        if not evaluation.config.per_example:
            return True
        from engine.metrics.example_file import path_of

        path = self.results.checkpoints.store.directory.parent / path_of(evaluation.name, step)
        return group.run_on_primary(path.is_file, f"the metrics of examples of {evaluation.name}")

    def _runs(self, period: Period, boundary: Boundary) -> bool:
        """Whether an evaluation runs at this boundary; if the run ends early, those that the last step would run."""
        if boundary.ended:
            has_run = period.due(boundary.step)  # it ran before the run ended at this step
            return period.at_end and not has_run
        return period.due(boundary.step)
