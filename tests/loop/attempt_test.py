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
from engine.data.source import ArraySource
from engine.loop.attempt import Attempt, reported_if_long
from engine.loop.phases import Phases
from engine.loop.watchdog import Watchdog
from engine.parallel.mesh import make_mesh
from engine.run.directory import RunDirectory
from tests import runs, zoo


@contextlib.contextmanager
def opened(path, messages, source=None, **settings):
    config, source = runs.config(**settings), source or zoo.source()
    program, total = build_program(zoo.Classify(), make_mesh(MeshSpec()), source, config)
    with RunDirectory.open(path) as directory:
        size = RunSize(config.train.global_batch_size, len(source), total)
        checkpoints = build_checkpointer(config.checkpoint, to_text(config), directory, size, messages.append)
        phases = Phases(directory.stopwatch, Watchdog(60.0, 600.0, directory.stacks, directory.attempt, 1))
        with checkpoints, Attempt(program, source, config, directory, checkpoints, phases, messages.append) as attempt:
            yield attempt


def test_new_run_starts_at_step_0(tmp_path):
    messages = []
    with opened(tmp_path, messages) as attempt:
        _, step = attempt.restore()
    assert step == 0 and attempt.unfinished == {} and attempt.skipped == set()
    assert messages == []


def test_restore_returns_the_newest_checkpoint(tmp_path):
    entry.train(runs.config(), workdir=tmp_path)
    messages = []
    with opened(tmp_path, messages, log__every="3 steps") as attempt:
        state, step = attempt.restore()
        assert attempt.compile("this run is finished") == {}
    assert step == 10 and messages[0] == "resuming from step 10"
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize("k", [1, 4])
def test_programs_of_one_and_of_k_steps_are_compiled(tmp_path, k):
    with opened(tmp_path, [], train__steps_per_dispatch=k) as attempt:
        assert attempt.compile().keys() == {1, k}


def test_inputs_that_bfloat16_rounds_are_named_at_the_start(tmp_path):
    messages = []
    with opened(tmp_path, messages, train__precision="bfloat16") as attempt:
        attempt.compile("this run is finished")
    assert messages[0].startswith("train.precision=bfloat16 rounds the inputs valid, x, also in evaluations, by up")


class Scheduled(ArraySource):
    """Examples that depend on the number of steps of the run."""

    def transform(self, example, rng, context):
        return {**example, "x": example["x"] * context.total_steps + rng.random()}


def test_batch_that_is_read_once_more_is_the_same(tmp_path):
    with opened(tmp_path, [], Scheduled(zoo.examples(64))) as attempt:
        with attempt.open_feed(3, 10) as feed:
            (batch,) = feed.next(1)
        jax.tree.map(np.testing.assert_array_equal, attempt.read_batch(3, 10).examples, batch.examples)


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
