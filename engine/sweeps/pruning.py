"""The hook of a trial that ends it: when the driver has pruned it, or when its budget of time is used up.

The driver reads the results of the trial and writes its decision to a file. The primary reads that file, and the loop
agrees among the processes on what the hook of the primary returns. The state is saved, so the run can be continued.
"""

import time
from pathlib import Path

from engine.base import json_text
from engine.cluster import group
from engine.loop.hooks import Stop
from engine.loop.trainer import Trainer
from engine.run.atomic import write_text
from engine.storage.mounts import local_path
from engine.sweeps import timeouts
from engine.sweeps.decisions import read_decision
from engine.training.state import TrainState

PRUNED = "pruned by the sweep"
"""Start of the reason to stop of a pruned trial."""
TIME_IS_UP = "the budget of time is used up"


class Pruning:
    """Ends a trial at an evaluation if the driver of the sweep decides so.

    Args:
        decisions: the file of the driver; None: nothing prunes the run, as for a pruned trial that is continued.
        seconds: time since the start of the run, compiling included, after which it ends; None: no limit.
        clock: the file in which the time of earlier attempts is kept; needed with `seconds`.
    """

    def __init__(self, decisions: str | None = None, seconds: float | None = None, clock: str | None = None):
        self._decisions = None if decisions is None else local_path(decisions)
        self._seconds, self._started = seconds, time.monotonic()
        self._clock = None if clock is None else local_path(clock)
        self._before = 0.0 if self._clock is None else _read_clock(self._clock)
        self._wait_s = timeouts.DECISION_S

    def run(self, trainer: Trainer, state: TrainState, step: int) -> Stop | None:
        """Returns a Stop for a pruned trial; called after the evaluation of the step."""
        if not group.is_primary() or step == 0 or step >= trainer.total_steps:
            return None
        if self._seconds is not None and self._clock is not None:
            spent = self._before + time.monotonic() - self._started
            self._clock.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._clock, json_text.dumps({"seconds": spent}))
            if spent >= self._seconds:
                return Stop(f"{TIME_IS_UP} ({spent:.1f} of {self._seconds:g} s)")
        if self._decisions is not None and self._is_pruned(step):
            return Stop(f"{PRUNED} at step {step}")
        return None

    def _is_pruned(self, step: int) -> bool:
        """Waits for the decision about a step. Without a driver, one wait is in vain; later ones end at once."""
        assert self._decisions is not None
        end = time.monotonic() + self._wait_s
        while True:
            decided, prune = read_decision(self._decisions)
            if prune or decided >= step:
                self._wait_s = timeouts.DECISION_S
                return prune
            if time.monotonic() >= end:
                self._wait_s = 0.0
                return False
            time.sleep(timeouts.DECISION_POLL_S)


def _read_clock(path: Path) -> float:
    try:
        return json_text.read(path, {"seconds": float})["seconds"]
    except (OSError, ValueError):
        return 0.0
