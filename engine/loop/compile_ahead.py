"""Compiles the evaluations of a run in a thread while the first steps run, so that the first evaluation does not."""

import contextlib
import threading
from collections.abc import Sequence
from types import TracebackType

from engine.cluster import identity
from engine.cluster.shutdown import RunThread
from engine.compile.compiler import ProgramCompiler
from engine.loop.evaluation import Evaluator
from engine.loop.phases import COMPILING, Phases
from engine.training.state import TrainState


class CompileAhead:
    """Compiles evaluations, in their order, in a thread. A context manager: the thread ends with its block.

    If the run ends early, the rest is left out. With several processes all are compiled: on GPUs the processes share
    the work of tuning kernels, so one that left out an evaluation would let the others wait.

    Args:
        evaluations: the evaluations.
        state: abstract train state.
        compiler: compiles the programs, or loads them.
        phase: enters a phase.
    """

    def __init__(self, evaluations: Sequence[Evaluator], state: TrainState, compiler: ProgramCompiler, phase: Phases):
        self._evaluations, self._state, self._compiler, self._phase = evaluations, state, compiler, phase
        self._ended = {evaluation.name: threading.Event() for evaluation in evaluations}
        self._stop = False
        # No daemon: the exit of Python would stop such a thread inside JAX, which crashes the process.
        self._thread = RunThread(self._run, "compile-evaluations", daemon=False)

    def __enter__(self) -> "CompileAhead":
        return self

    def start(self) -> None:
        """Starts the thread, unless it was started before."""
        if self._evaluations and self._thread.ident is None:
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop = identity.count() == 1
        if kind is None and self._thread.ident is not None:  # a run that is asked to stop may have only seconds to end
            self._thread.join()

    def wait(self, evaluation: Evaluator) -> None:
        """Waits until an evaluation is compiled, if it is to be; the stopwatch counts the time as compilation."""
        ended = self._ended.get(evaluation.name)
        if ended is not None and not ended.is_set():
            self.start()
            with self._phase(COMPILING):
                ended.wait()

    def _run(self) -> None:
        for evaluation in self._evaluations:
            if not self._stop:
                # An error of the author's code: the evaluation itself reports it.
                with contextlib.suppress(Exception, SystemExit):
                    evaluation.compile(self._state, self._compiler)
            self._ended[evaluation.name].set()
