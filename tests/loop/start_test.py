"""The start of an attempt: a new state, or the newest valid checkpoint; and the compiled programs."""

import contextlib
import threading

import jax
import numpy as np
import pytest

from engine.api import train as entry
from engine.base.duration import RunSize
from engine.checkpoint.checkpointer import build_checkpointer
from engine.compile.build import build_program
from engine.config.schema import MeshSpec
from engine.config.text import to_text
from engine.loop.phases import Phases
from engine.loop.start import (
    Start,
    compile_steps,
    frozen_note,
    record_inputs,
    reported_if_long,
    restore,
    say_notes,
)
from engine.loop.watchdog import Watchdog
from engine.parallel.mesh import make_mesh
from engine.run import lineage
from engine.run.directory import RunDirectory
from engine.run.lineage import CHECKPOINT, DATA, Input
from engine.training.model import describe
from tests import runs, zoo


@contextlib.contextmanager
def opened(path, messages, **settings):
    """Yields the program of a config, and a function that restores its state in a run directory."""
    config, source = runs.config(**settings), zoo.source()
    program, total = build_program(zoo.Classify(), make_mesh(MeshSpec()), source, config)
    with RunDirectory.open(path) as directory:
        size = RunSize(config.train.global_batch_size, len(source), total)
        checkpoints = build_checkpointer(config.checkpoint, to_text(config), directory, size, messages.append)
        phases = Phases(directory.stopwatch, Watchdog(60.0, 600.0, directory.stacks, directory.attempt, 1))
        with checkpoints:
            yield program, lambda: restore(checkpoints.store, program, config.init, phases, messages.append)


def test_new_run_starts_at_step_0(tmp_path):
    messages = []
    with opened(tmp_path, messages) as (_, restored):
        start = restored()
    assert (start.step, start.row, start.skipped) == (0, {}, set())
    assert messages == []


@pytest.mark.slow
def test_restore_returns_the_newest_checkpoint(tmp_path):
    entry.train(runs.config(), workdir=tmp_path)
    messages = []
    with opened(tmp_path, messages, log__every="3 steps") as (_, restored):
        start = restored()
    assert start.step == 10 and messages[0] == "resuming from step 10"
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(start.state.params))


@pytest.mark.parametrize(("position", "kinds"), [({}, [DATA]), ({"step": 1}, [CHECKPOINT, DATA])])
def test_start_from_step_0_with_random_weights_has_no_parents(tmp_path, position, kinds):
    directory, state = RunDirectory(tmp_path), zoo.program(zoo.Classify()).init()
    parent = Input(kind=CHECKPOINT, role="init", path="runs/a", step=5)
    record_inputs(Start(state, 0, {}, [parent]), directory)  # of a start that failed before its first save
    lineage.update_run(directory, [Input(kind=DATA, role="data", id="1")])
    record_inputs(Start(state, 1, position), directory)
    record = lineage.read(tmp_path / "lineage.json")
    assert record is not None and [one.kind for one in record.inputs] == kinds


def test_frozen_parts_are_named():
    model = describe(zoo.Classify("mlp", width=8), "^head|hidden/1/bias")
    assert frozen_note(model) == ("the run trains 44 of 244 parameters; frozen: hidden/0 (136), hidden/1/kernel (64)")
    assert frozen_note(describe(zoo.Classify("mlp", width=8))) == ""


@pytest.mark.parametrize("k", [1, 4])
def test_programs_of_one_and_of_k_steps_are_compiled(tmp_path, k):
    with opened(tmp_path, [], train__steps_per_dispatch=k) as (program, _):
        assert compile_steps(program, k, print).keys() == {1, k}


def test_inputs_that_bfloat16_rounds_are_named_at_the_start(tmp_path):
    messages = []
    with opened(tmp_path, messages, train__precision="bfloat16") as (program, _):
        say_notes(program, messages.append)
    assert messages[0].startswith("train.precision=bfloat16 rounds the inputs valid, x, also in evaluations, by up")


def test_compilation_is_reported_only_if_it_is_long():
    said, texts = threading.Event(), []

    def say(text):
        texts.append(text)
        said.set()

    with reported_if_long(say, 0):
        assert said.wait(60)
    assert texts == ["compiling the step, for 0 s so far; a large model takes minutes"]
    with reported_if_long(texts.append, 3600):
        pass
    assert len(texts) == 1
