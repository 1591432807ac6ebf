"""When a save is due: by steps, examples, epochs or the clock.

Owns: the answer for each step. Does not own: saves for other reasons (the end, a preemption, a best evaluation),
which the loop asks for itself.

A clock is read by the first process only, and the answer is agreed, because hosts' clocks differ and a save needs all
of them at one step. To agree costs a collective, which waits for the device; so each agreement also says at which step
the next one is, half of the way to the time that the save is expected at, and at most three times as many steps as the
attempt has done: about ten agreements a save.
"""

import time
from collections.abc import Callable

from engine.cluster import group
from engine.config.duration import Duration, Period


class SavePolicy:
    """Which steps are saved.

    Args:
        duration: the time between two saves, by data or by the clock; None is due at the last step only.
        batch_size: examples of a step.
        dataset_size: examples of an epoch.
        total_steps: the last step, which is always due.
        clock: seconds, growing.
    """

    def __init__(
        self,
        duration: Duration | None,
        batch_size: int,
        dataset_size: int,
        total_steps: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total_steps = total_steps
        self._period = self._timer = None
        if duration is not None and duration.is_clock:
            self._timer = _AgreedTimer(duration.seconds, clock)
        else:
            self._period = Period(duration, batch_size, dataset_size, total_steps)

    def due(self, step: int) -> bool:
        """Whether to save at this step; never at step 0, always at the last one.

        Every process asks at the same, growing steps, whatever the answer, since it may be a collective. Steps before
        `next_asked` may be left out.
        """
        if self._timer is not None:
            return self._timer.due(step) or 0 < step == self._total_steps
        assert self._period is not None
        return self._period.due(step)

    @property
    def is_clock(self) -> bool:
        """Whether saves depend on a clock."""
        return self._timer is not None

    def next_asked(self, step: int) -> int:
        """The first step after `step` at which `due` has to be asked; those before it are not due."""
        possible = self.next_possible(step)
        return possible if self._timer is None else min(possible, self._timer.next_look(step))

    def next_possible(self, step: int) -> int:
        """The next step that can be due, where a dispatch of several steps is cut; a clock cuts none."""
        return self._total_steps if self._period is None else self._period.next_after(step)


class _AgreedTimer:
    """Due at the first step that all processes look at after `seconds` since it was last due."""

    def __init__(self, seconds: float, clock: Callable[[], float]):
        self._seconds, self._clock = seconds, clock
        self._start = clock()  # when it was last due
        self._first = 0  # step of this attempt
        self._look_at: int | None = None  # step of the next agreement
        self._asked: int | None = None  # last step that was asked for, and its answer
        self._answer = False
        self._last_look = (0, self._start)  # step and time of the last agreement

    def due(self, step: int) -> bool:
        if step == self._asked:
            return self._answer
        if self._look_at is None:  # the first step of this attempt: nothing to save yet
            self._first, self._look_at, self._last_look = step, step + 1, (step, self._clock())
        self._asked, self._answer = step, False
        if step >= self._look_at:
            self._answer, self._look_at = self._agree(step)
        return self._answer

    def next_look(self, step: int) -> int:
        return step + 1 if self._look_at is None else max(step + 1, self._look_at)

    def _agree(self, step: int) -> tuple[bool, int]:
        """(whether it is due now, the step of the next agreement), as the first process sees it."""
        now = self._clock()
        before, then = self._last_look
        self._last_look = (step, now)
        due = now - self._start >= self._seconds
        if due:
            self._start = now
        expected = (self._start + self._seconds - now) * (step - before) / max(now - then, 1e-6)
        # Bounded by how far this attempt has come: its first steps say little, as the loop runs ahead of the device.
        ahead = max(1, min(int(expected / 2), 3 * (step - self._first)))
        due, look_at = group.broadcast((due, step + ahead), "the time of the next save")
        return due, look_at
