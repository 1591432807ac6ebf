"""Phases of the main thread of a run, which the stopwatch, the watchdog and the progress line share.

Phases are entered only between dispatches, so entering one may take microseconds.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

from engine.loop.watchdog import Watchdog
from engine.observe.recorder import Recorder
from engine.run.goodput import Stopwatch


@dataclass(frozen=True)
class Phase:
    """An activity of the main thread."""

    name: str
    """Name in messages of the watchdog, and on the progress line if `shown`."""
    kind: str = ""
    """Kind of time in the goodput ledger (`run/goodput.py`); "" keeps the kind of the enclosing phase."""
    timeout: Literal["step", "storage", "long", "none"] = "step"
    """Timeout of the watchdog: that of a step, that of storage, ten times `resilience.hang`, or no limit."""
    outside_rates: bool = False
    """Whether its time is excluded from the training rates. The results of earlier steps are read first."""
    shown: bool = False
    """Whether the progress line shows it."""


TRAINING = Phase("training")
SAVING = Phase("saving", "save stall", "storage")
RESTORING = Phase("restoring", "restore", "storage")
COMPILING = Phase("compiling", "compile")
PREPARING = Phase("compiling", "compile", "long", outside_rates=True)
EVALUATING = Phase("evaluating", "evaluation", "long", outside_rates=True, shown=True)
CALLING_HOOK = Phase("calling a hook", "evaluation", "long", outside_rates=True)
WAITING_FOR_HOOKS = Phase("waiting for the hooks of other processes", "evaluation", "long", outside_rates=True)
PROFILING = Phase("profiling", timeout="long")
IDLE = Phase("waiting for the caller of the loop", "evaluation", "none")


class Phases:
    """Enters phases. Until `recorder` is set, no progress is shown and no rates are measured.

    Args:
        stopwatch: measures time by kind.
        watchdog: applies the timeout.
    """

    def __init__(self, stopwatch: Stopwatch, watchdog: Watchdog):
        self._stopwatch, self._watchdog = stopwatch, watchdog
        self.recorder: Recorder | None = None
        self.name = "starting"
        """Name of the present phase."""
        self.hooks_s = 0.0
        """Seconds spent in hooks."""

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """Enters a phase; the enclosing phase continues afterwards."""
        recorder = self.recorder
        if phase.outside_rates and recorder is not None:
            recorder.settle()  # before the timeout changes, so that the timeout of a step applies to a hanging step
        start, former, self.name = time.monotonic(), self.name, phase.name
        measured = self._stopwatch.during(phase.kind) if phase.kind else nullcontext()
        with measured, self._timed_out(phase):
            if phase.shown and recorder is not None:
                recorder.phase(phase.name)
            try:
                yield
            finally:
                self.name = former
        if phase is CALLING_HOOK:
            self.hooks_s += time.monotonic() - start
        if recorder is not None:
            if phase.shown:
                recorder.phase(TRAINING.name)
            if phase.outside_rates:
                recorder.pause(time.monotonic() - start)

    def _timed_out(self, phase: Phase) -> AbstractContextManager[None]:
        if phase.timeout == "storage":
            return self._watchdog.storing(phase.name)
        if phase.timeout == "none":
            return self._watchdog.unlimited(phase.name)
        return self._watchdog.patient(phase.name) if phase.timeout == "long" else nullcontext()
