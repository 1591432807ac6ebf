"""One window of steps that the profiler of JAX records.

The window `start` to `start + steps` counts completed updates: [10, 15) holds the updates that lead from step 10 to
step 15. A trace holds whole dispatches.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.config.errors import RunError
from engine.types import PyTree

type Call = Callable[..., PyTree]


class ProfileWindow:
    """Starts and stops the trace; a window that lies before the first step of this attempt is not recorded."""

    def __init__(self, start: int | None, steps: int, directory: Path, say: Callable[[str], None]):
        """
        Args:
            start: first step of the window; None records nothing.
            steps: length of the window.
            directory: where the trace goes, in a folder named after the time.
            say: called with a sentence for the user at both ends of the window, and when the window was missed.
        """
        self._start = start  # None also once the window is done or missed
        self._steps = steps
        self._directory, self._say = Path(directory), say
        self._began: int | None = None  # step at which the open trace began
        self._attempt_began = False

    def begin_attempt(self, step: int) -> None:
        """Reports a window that lies before the first step of this attempt."""
        if self._start is not None and step > self._start and not self._attempt_began:
            missed, self._start = self._start, None
            self._say(
                f"profile: step {missed} lies before step {step}, where this attempt began, so nothing is traced. "
                "Set profile.start to a later step."
            )
        self._attempt_began = True

    def next_step(self, after: int) -> float:
        """Returns the next step > `after` at which the trace begins or ends; math.inf for none."""
        if self._began is not None:
            return self._began + self._steps
        return math.inf if self._start is None or after >= self._start else self._start

    def at(self, step: int, pending: PyTree = None) -> None:
        """Begins or ends the trace, at a step of `next_step`.

        Args:
            step: completed updates, which is the first step of the next dispatch.
            pending: arrays of the last dispatch. They are waited for, so that the trace holds whole steps of its own
                and no others.

        Raises:
            RunError: the profiler cannot start.
        """
        if self._began is not None:
            if step >= self._began + self._steps:
                self._end(step, pending)
        elif self._start is not None and step >= self._start:
            self._begin(step, pending)

    def marked(self, programs: Mapping[int, Call], step: int) -> Mapping[int, Call]:
        """Returns the programs by their number of steps; while a trace is open, their calls are marked as steps in it.

        Args:
            programs: as they are; they are returned where no trace is open.
            step: the first one of the next call.
        """
        if self._began is None:
            return programs
        import jax

        number = [step]

        def mark(k: int, program: Call) -> Call:
            def call(*args: PyTree) -> PyTree:
                number[0] += k
                with jax.profiler.StepTraceAnnotation("train", step_num=number[0] - k):
                    return program(*args)

            return call

        return {k: mark(k, program) for k, program in programs.items()}

    def close(self, step: int, pending: PyTree = None) -> None:
        """Ends an open trace, when the run ends inside the window.

        Args:
            step: at which it ends.
            pending: as in `at`.
        """
        if self._began is not None:
            self._end(step, pending)
        elif self._start is not None and self._attempt_began:
            start, self._start = self._start, None
            self._say(f"profile: the run ended at step {step}, before profile.start={start}: nothing was traced.")

    def _begin(self, step: int, pending: PyTree) -> None:
        import jax

        jax.block_until_ready(pending)
        try:
            jax.profiler.start_trace(self._directory)
        except RuntimeError as error:
            raise RunError(
                f"profile: the profiler of JAX cannot start at step {step} ({error}). "
                "End the other trace of this process, or set profile.start=None."
            ) from error
        self._began = step
        self._say(f"profile: tracing from step {step} on")

    def _end(self, step: int, pending: PyTree) -> None:
        import jax

        began, self._began, self._start = self._began, None, None
        try:
            jax.block_until_ready(pending)
        finally:
            jax.profiler.stop_trace()
        where = f"{self._directory} (xprof --logdir {self._directory})"
        self._say(f"profile: steps {began} to {step} are traced in {where}")
