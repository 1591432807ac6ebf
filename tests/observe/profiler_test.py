import gzip
import json
import math

import jax
import jax.numpy as jnp
import pytest

from engine.base.errors import RunError
from engine.observe.profiler import ProfileWindow, viewer


@jax.jit
def one_step(x):
    return jnp.tanh(x @ x)


def steps_of(k):
    """Returns a program of k steps."""

    def program(x):
        for _ in range(k):
            x = one_step(x)
        return x

    return program


class Window(ProfileWindow):
    """A window that records its messages."""

    def __init__(self, start, steps, directory):
        self.messages = []
        super().__init__(start, steps, directory, self.messages.append)


def run(window, total, k=1, start=0, exact=False):
    """Dispatches k steps at a time, like the trainer; returns the messages of the window.

    With `exact`, dispatches end at the edges of the window.
    """
    step, due, x = start, window.next_step(start - 1), jnp.ones((8, 8))
    programs = marked = {1: steps_of(1), k: steps_of(k)}
    window.begin_attempt(start)
    while step < total:
        if step >= due:
            window.at(step, x)
            marked, due = window.marked(programs, step), window.next_step(step)
        n = 1 if exact and step + k > due else k
        x = marked[n](x)
        step += n
    if step >= due:
        window.at(step, x)
    window.close(step, x)
    return window.messages


def traced_steps(directory):
    """Returns the step numbers with which the dispatches in the trace are annotated."""
    (path,) = directory.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted({int(event["args"]["step_num"]) for event in events if event.get("name") == "train"})


@pytest.mark.parametrize("installed", [True, False])
def test_command_that_shows_a_trace_is_printed_only_if_it_is_installed(tmp_path, installed, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if installed else None)
    command = f"xprof --logdir {tmp_path}"
    assert viewer(tmp_path) == (command if installed else f"to view it: pip install xprof, then {command}")


def test_window_traces_its_steps_and_reports_the_folder(tmp_path):
    messages = run(Window(start=3, steps=2, directory=tmp_path), total=8)
    assert traced_steps(tmp_path) == [3, 4]
    assert messages[0] == "profile: tracing from step 3 on"
    assert messages[1] == f"profile: steps 3 to 5 are traced in {tmp_path} ({viewer(tmp_path)})"
    assert len(messages) == 2


def test_window_extends_to_whole_dispatches_in_a_folder_that_is_not_utf8(tmp_path):
    messages = run(Window(start=3, steps=5, directory=tmp_path / "\udcff"), total=16, k=4)
    assert traced_steps(tmp_path) == [4, 8]
    assert "steps 4 to 12 are traced" in messages[1]


def test_window_is_exact_when_dispatches_end_at_its_edges(tmp_path):
    messages = run(Window(start=3, steps=5, directory=tmp_path), total=16, k=4, exact=True)
    assert traced_steps(tmp_path) == [3, 7]
    assert "steps 3 to 8 are traced" in messages[1]


def test_next_step_is_the_start_then_the_end_of_the_window(tmp_path):
    window = Window(start=3, steps=5, directory=tmp_path)
    assert [window.next_step(after) for after in (-1, 2, 3)] == [3, 3, math.inf]
    window.at(3)
    assert window.next_step(3) == 8
    window.close(8)
    assert Window(start=None, steps=5, directory=tmp_path).next_step(0) == math.inf


def test_run_ending_inside_the_window_stops_the_trace(tmp_path):
    window = Window(start=3, steps=100, directory=tmp_path)
    messages = run(window, total=6)
    assert traced_steps(tmp_path) == [3, 4, 5]
    assert "steps 3 to 6 are traced" in messages[1]
    window.close(6)
    assert len(messages) == 2
    jax.profiler.start_trace(tmp_path / "free")  # the profiler is free again
    jax.profiler.stop_trace()


def test_window_before_the_first_step_of_the_attempt_is_reported_as_missed(tmp_path):
    messages = run(Window(start=3, steps=5, directory=tmp_path), start=4, total=8)
    assert messages == [
        "profile: nothing is traced, since this attempt started at step 4, after profile.start=3. "
        "Set profile.start to a later step."
    ]
    assert list(tmp_path.iterdir()) == []


def test_window_after_the_last_step_is_reported_as_missed(tmp_path):
    messages = run(Window(start=30, steps=5, directory=tmp_path), total=4)
    assert messages == ["profile: the run ended at step 4, before profile.start=30: nothing was traced."]


def test_window_none_traces_nothing(tmp_path):
    assert run(Window(start=None, steps=5, directory=tmp_path), total=4) == []


def test_second_concurrent_trace_is_a_run_error(tmp_path):
    jax.profiler.start_trace(tmp_path / "other")
    try:
        with pytest.raises(RunError, match=r"profiler of JAX cannot start at step 0 .* End the other trace"):
            Window(start=0, steps=1, directory=tmp_path / "mine").at(0)
    finally:
        jax.profiler.stop_trace()
