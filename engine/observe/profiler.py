"""Traces one window of steps with the JAX profiler.

The window `start` to `start + steps` counts completed updates: [10, 15) contains the updates that lead from step 10 to
step 15. A trace contains whole dispatches.
"""

import contextlib
import importlib.util
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.base.errors import RunError
from engine.base.types import PyTree
from engine.storage.plain_path import plain_path

type Call = Callable[..., PyTree]


class ProfileWindow:
    """Starts and stops the trace. A window before the first step of this attempt is not traced."""

    def __init__(self, start: int | None, steps: int, directory: Path, say: Callable[[str], None]):
        """
        Args:
            start: first step of the window; None traces nothing.
            steps: number of steps in the window.
            directory: folder of the trace; the profiler creates a subfolder named after the time.
            say: called with a sentence for the user at both ends of the window, and if the window is missed.
        """
        self._start = start  # None also after the window was traced or missed
        self._steps = steps
        self._directory, self._say = Path(directory), say
        self._began: int | None = None  # step at which the open trace started
        self._attempt_began = False
        self._stack = contextlib.ExitStack()  # closed at the end of the open trace

    def begin_attempt(self, step: int) -> None:
        """Reports a window that starts before the first step of this attempt."""
        if self._start is not None and step > self._start and not self._attempt_began:
            missed, self._start = self._start, None
            self._say(
                f"profile: nothing is traced, since this attempt started at step {step}, after profile.start={missed}. "
                "Set profile.start to a later step."
            )
        self._attempt_began = True

    def next_step(self, after: int) -> float:
        """Returns the next step > `after` at which the trace starts or ends; math.inf for none."""
        if self._began is not None:
            return self._began + self._steps
        return math.inf if self._start is None or after >= self._start else self._start

    def at(self, step: int, pending: PyTree = None) -> None:
        """Starts or ends the trace, at a step that `next_step` returned.

        Args:
            step: completed updates, which is also the first step of the next dispatch.
            pending: arrays of the last dispatch, which are waited for, so that the trace contains exactly its steps.

        Raises:
            RunError: the profiler cannot start.
        """
        if self._began is not None:
            if step >= self._began + self._steps:
                self._end(step, pending)
        elif self._start is not None and step >= self._start:
            self._begin(step, pending)

    def marked[C: Call](self, programs: Mapping[int, C], step: int) -> Mapping[int, C | Call]:
        """Returns the programs with step annotations for the open trace, or unchanged if no trace is open.

        Args:
            programs: compiled programs by their number of steps.
            step: first step of the next call.
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
        """Ends an open trace when the run ends inside the window; reports a window that was not reached.

        Args:
            step: last step of the run.
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
            self._directory.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._stack.enter_context(plain_path(self._directory)))
        except (RuntimeError, OSError) as error:
            self._stack.close()
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
            with self._stack:
                jax.profiler.stop_trace()
        self._say(f"profile: steps {began} to {step} are traced in {self._directory} ({viewer(self._directory)})")


def viewer(directory: Path) -> str:
    """Returns the command that shows a trace, and how to install it if it is not installed."""
    command = f"xprof --logdir {shlex.quote(str(directory))}"
    return command if importlib.util.find_spec("xprof") else f"to view it: pip install xprof, then {command}"
