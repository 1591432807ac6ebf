"""The results of evaluations and hooks."""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from engine.base import formatting
from engine.base.errors import TaskError, did_you_mean
from engine.checkpoint.checkpointer import Checkpointer
from engine.loop.divergence import list_names
from engine.metrics.results import MAX_NUMBERS, Result, Table, scalars, table_text, titled, too_large
from engine.observe.recorder import Recorder
from engine.run.log import logger


@dataclass(eq=False)
class Results:
    """The results of evaluations and hooks: prints them, writes them to the metric files and stores them by step."""

    checkpoints: Checkpointer
    recorder: Recorder
    say: Callable[[str], None]
    latest: dict[str, float]
    """Latest value of each metric that is a number."""
    watched: Collection[str] = ()
    """Metrics that the config names, which a line shows first."""
    verbose: bool = False
    """Whether all numbers and tables are printed at each step (`log.verbose`); else tables at the last one. All tables
    are in the log."""
    warned: set[str] = field(default_factory=set)
    """Results that are too large for metrics.jsonl, as reported."""

    def add(self, step: int, results: Mapping[str, Result], last: bool = False) -> None:
        """Adds the results of a step, by full name; `last` if the run ends there. Every process adds the same."""
        values = scalars(results)
        self.latest |= values
        self.recorder.note(step, results)
        self.checkpoints.record(step, values)
        text = formatting.table(values) if self.verbose else formatting.line(values, self.watched)
        self._say(f"step {step}:{text if text.startswith('\n') else f' {text}'}")
        for name, result in results.items():
            if isinstance(result, Table):
                text = f"step {step}: {titled(name, result)}:{table_text(result)}"
                self._say(text, self.say if self.verbose or last else logger.info)
        if large := [name for name in too_large(results) if name not in self.warned]:
            self.warned.update(large)
            self._say(f"warning: {list_names(large)}: above {MAX_NUMBERS} numbers or rows, so not in metrics.jsonl")

    def _say(self, text: str, say: Callable[[str], None] | None = None) -> None:
        """Shows a sentence after the rows of the steps before it, which a thread writes."""
        self.recorder.call(functools.partial(say or self.say, text))


def check_measured(watched: Mapping[str, str], kind: str, name: str, found: Collection[str]) -> None:
    """Checks that an evaluation or a hook has given each of its numbers that the config names.

    Args:
        watched: metric -> the config field that names it.
        kind: "evaluation" or "hook".
        name: its name.
        found: full names of the numbers that it has given.

    Raises:
        TaskError: a number is missing.
    """
    for metric, setting in watched.items():
        if metric.partition("/")[0] == name and metric not in found:
            raise TaskError(
                f"{setting} = {metric!r}: the {kind} {name} has not returned this metric.{did_you_mean(metric, found)} "
                f"It returned: {', '.join(found) or 'none'}."
            )
