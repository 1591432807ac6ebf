"""One window of steps that the profiler of JAX records.

Owns: when the trace begins and ends, and the sentence that says where it lies. Does not own: the config of it
(`config/schema.py`), the loop.

Terms. *Window*: updates `start` to `start + steps`, counted as completed updates, so that the window [10, 15) holds
the updates that lead from step 10 to step 15. A trace holds whole dispatches: where they are not cut at `next_edge`,
it begins at the first dispatch from `start` on and ends after the one in which the last of its steps falls.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.config.errors import RunError

Call = Callable[..., Any]


class ProfileWindow:
    """Starts and stops the trace; a window that lies before the first step of this attempt is not recorded."""

    def __init__(self, start: int | None, steps: int, directory: Path, say: Callable[[str], None]):
        """
        Args:
            start: first step of the window; None records nothing.
            steps: length of the window.
            directory: where the trace goes, in a folder named after the time.
            say: takes a sentence for the user at both ends of the window, and when it was missed.
        """
        self._start = start  # None also once the window is done or missed
        self._steps = steps
        self._directory, self._say = Path(directory), say
        self._began: int | None = None  # step at which the open trace began
        self._first = True  # `at` was not called yet

    def at(self, step: int, pending: Any = None) -> None:
        """Called before a dispatch, at `next_edge` at the latest; begins or ends the trace there.

        Args:
            step: completed updates, which is the first step of the dispatch.
            pending: arrays of the last dispatch. At both ends of the window they are waited for, so that the trace
                holds whole steps of its own and no others.

        Raises:
            RunError: the profiler cannot start.
        """
        first, self._first = self._first, False
        if self._began is not None:
            if step >= self._began + self._steps:
                self._end(step, pending)
        elif first and self._start is not None and step > self._start:
            missed, self._start = self._start, None
            self._say(
                f"profile: step {missed} lies before step {step}, where this attempt began, so nothing is traced. "
                "Set profile.start to a later step."
            )
        elif self._start is not None and step >= self._start:
            self._begin(step, pending)

    def next_edge(self, step: int) -> int | float:
        """Returns the next step after `step` at which a trace begins or ends; infinity when there is none.

        A dispatch that is cut there makes the window exact.
        """
        if self._began is not None:
            return self._began + self._steps
        if self._start is None or step > self._start:
            return math.inf
        return self._start if step < self._start else self._start + self._steps

    def marked(self, programs: Mapping[int, Call], step: int) -> Mapping[int, Call]:
        """Returns the programs, by their number of steps, so that calls in an open trace are marked as steps there.

        Args:
            programs: as they are; they are returned where no trace is open.
            step: the first one of the next call.
        """
        if self._began is None:
            return programs
        import jax

        number = [step]

        def mark(k: int, program: Call) -> Call:
            def call(*args: Any) -> Any:
                number[0] += k
                with jax.profiler.StepTraceAnnotation("train", step_num=number[0] - k):
                    return program(*args)

            return call

        return {k: mark(k, program) for k, program in programs.items()}

    def close(self, step: int, pending: Any = None) -> None:
        """Ends an open trace, when the run ends inside the window.

        Args:
            step: at which it ends.
            pending: as in `at`.
        """
        if self._began is not None:
            self._end(step, pending)
        elif self._start is not None and not self._first:
            start, self._start = self._start, None
            self._say(f"profile: the run ended at step {step}, before profile.start={start}: nothing was traced.")

    def _begin(self, step: int, pending: Any) -> None:
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

    def _end(self, step: int, pending: Any) -> None:
        import jax

        began, self._began, self._start = self._began, None, None
        try:
            jax.block_until_ready(pending)
        finally:
            jax.profiler.stop_trace()
        where = f"{self._directory} (xprof --logdir {self._directory})"
        self._say(f"profile: steps {began} to {step} are traced in {where}")
