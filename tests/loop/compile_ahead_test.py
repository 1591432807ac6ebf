"""Evaluations are compiled in a thread while the first steps run."""

import contextlib
import dataclasses
import threading
from types import SimpleNamespace
from typing import Any

import pytest

import engine
from engine.compile.compiler import ProgramCompiler
from engine.loop.compile_ahead import CompileAhead
from tests import runs, zoo

THREAD = "compile-evaluations"


@pytest.mark.slow
def test_evaluations_are_compiled_by_the_thread_and_only_there(tmp_path):
    with runs.compilations() as found:
        summary = engine.train(runs.config(train__total="5 steps"), workdir=tmp_path)
    assert [thread for name, thread in found if name == "jit(step)"] == [THREAD]
    assert "heldout/loss" in summary.metrics
    assert all(thread.name != THREAD for thread in threading.enumerate())


def test_evaluation_that_is_never_due_is_not_compiled(tmp_path):
    never = dict(evaluations__heldout__every="9 steps", evaluations__heldout__at_end=False)
    with runs.compilations() as found:
        engine.train(runs.config(train__total="5 steps", **never), workdir=tmp_path)
    assert THREAD not in [thread for _, thread in found]


def test_run_waits_only_for_the_evaluation_that_is_due():
    release, compiled = threading.Event(), []

    def compile_second(state, compiler):
        release.wait(30)
        compiled.append("second")

    first: Any = SimpleNamespace(name="first", compile=lambda state, compiler: compiled.append("first"))
    second: Any = SimpleNamespace(name="second", compile=compile_second)
    never: Any = SimpleNamespace(name="never due")
    state: Any = None
    phase: Any = contextlib.nullcontext
    with CompileAhead([first, second], state, ProgramCompiler(), phase) as ahead:
        ahead.wait(first)
        assert compiled == ["first"]
        release.set()
        ahead.wait(second)
        assert compiled == ["first", "second"]
        ahead.wait(never)


@dataclasses.dataclass
class Wrong(zoo.Classify):
    """A Task whose evaluation can be traced when the run is built, and fails later."""

    traced: int = 0

    def evaluate(self, model, batch):
        self.traced += 1
        if self.traced > 2:  # the program, and the check that rows are independent
            raise ValueError("traced again")
        return super().evaluate(model, batch)


def test_error_in_the_thread_is_reported_by_the_evaluation(tmp_path):
    task = Wrong()
    with pytest.raises(ValueError, match="traced again"):
        engine.train(runs.config(train__total="5 steps"), task=task, workdir=tmp_path)
    assert runs.status(tmp_path)["step"] == 4  # the first evaluation
    assert task.traced == 4
