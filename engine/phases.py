"""Phases: what the main thread of a run does, for the stopwatch, the watchdog and the progress line together.

A phase is entered at boundaries of the loop only, so it may cost microseconds.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

from engine.observe.recorder import Recorder
from engine.resilience.watchdog import Watchdog
from engine.run.goodput import Stopwatch


@dataclass(frozen=True)
class Phase:
    """Something that the main thread does."""

    name: str
    """In the watchdog's messages, and on the progress line if `shown`."""
    kind: str = ""
    """What its seconds count as (`run/goodput.py`); "": as what they counted before."""
    bound: Literal["step", "storage", "patient"] = "step"
    """Which bound the watchdog applies: that of a step, of storage, or ten times `resilience.hang`."""
    outside_rates: bool = False
    """Whether its seconds are no part of the training rates. The results of earlier steps are read first."""
    shown: bool = False


TRAINING = Phase("training")
SAVING = Phase("saving", "save stall", "storage")
RESTORING = Phase("restoring", "restore", "storage")
COMPILING = Phase("compiling", "compile")
PREPARING = Phase("compiling", "compile", "patient", outside_rates=True)
EVALUATING = Phase("evaluating", "evaluation", "patient", outside_rates=True, shown=True)
CALLING_HOOK = Phase("calling a hook", "evaluation", "patient", outside_rates=True)
PROFILING = Phase("profiling", bound="patient")


class Phases:
    """Enters phases. Before `recorder` is set, nothing is shown and no rates are kept.

    Args:
        stopwatch: counts seconds by kind.
        watchdog: applies the bound.
    """

    def __init__(self, stopwatch: Stopwatch, watchdog: Watchdog):
        self._stopwatch, self._watchdog = stopwatch, watchdog
        self.recorder: Recorder | None = None

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """Enters a phase; the former one continues afterwards."""
        recorder = self.recorder
        if phase.outside_rates and recorder is not None:
            recorder.settle()  # before the watchdog's bound changes: a step that hangs has the bound of a step
        start = time.monotonic()
        counted = self._stopwatch.during(phase.kind) if phase.kind else nullcontext()
        with counted, self._bounded(phase):
            if phase.shown and recorder is not None:
                recorder.phase(phase.name)
            yield
        if recorder is not None:
            if phase.shown:
                recorder.phase(TRAINING.name)
            if phase.outside_rates:
                recorder.pause(time.monotonic() - start)

    def _bounded(self, phase: Phase) -> AbstractContextManager[None]:
        if phase.bound == "storage":
            return self._watchdog.storing(phase.name)
        return self._watchdog.patient(phase.name) if phase.bound == "patient" else nullcontext()
