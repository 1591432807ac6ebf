"""Saving by a policy and keeping by a retention: what is on disk after each step of a loop."""

import resource
import time

import jax.numpy as jnp
import pytest

from engine.checkpoint.checkpointer import Checkpointer
from engine.checkpoint.policy import SavePolicy
from engine.checkpoint.retention import Retention
from engine.checkpoint.store import CheckpointStore
from engine.config.duration import Duration
from engine.config.errors import CheckpointError
from engine.run.lease import LeaseLost

TOTAL = 10


@pytest.fixture
def make(tmp_path):
    """Makes checkpointers in one directory; saves every three steps by default."""
    made = []

    def make(every="3 steps", keep_latest=2, may_write=lambda: None, **best):
        duration = None if every is None else Duration.parse(every, "checkpoint.every")
        subject = Checkpointer(
            CheckpointStore(tmp_path), SavePolicy(duration, 16, 64, TOTAL), Retention(tmp_path, keep_latest, **best),
            "name: zoo\n", may_write,
        )  # fmt: skip
        made.append(subject)
        return subject

    yield make
    for subject in made:
        subject.store.close()


def save(subject, step, force=False):
    return subject.maybe_save(step, {"w": jnp.full(4, step)}, {"example": 16 * step}, force)


def test_steps_that_are_due_are_saved_with_position_and_config(make):
    subject = make(keep_latest=10)
    assert [step for step in range(TOTAL + 1) if save(subject, step)] == [3, 6, 9, 10]
    subject.finish()
    assert subject.store.steps() == [3, 6, 9, 10]
    assert subject.store.position(6) == {"example": 96}
    assert subject.store.config_text(6) == "name: zoo\n"


def test_a_step_is_saved_by_force_between_two_that_are_due_and_only_once(make):
    subject = make()
    assert save(subject, 4, force=True)
    assert not save(subject, 4, force=True)
    assert not save(subject, 5)
    subject.finish()
    assert subject.store.steps() == [4]


def test_nothing_is_written_where_this_job_may_not_any_more(make, tmp_path):
    def taken():
        raise LeaseLost("another job has taken over this run.")

    subject = make(may_write=taken)
    assert not save(subject, 1)  # nothing is due
    with pytest.raises(LeaseLost):
        save(subject, 3)
    with pytest.raises(LeaseLost):
        subject.record(3, {"heldout/accuracy": 0.5})
    assert subject.store.steps() == [] and not (tmp_path / "results.json").exists()


def test_the_policy_is_asked_at_every_step(make):
    """A policy by the clock agrees with other processes: a step at which one of them does not ask hangs."""
    subject, asked = make(), []
    due = subject.policy.due
    subject.policy.due = lambda step: asked.append(step) or due(step)
    for step in range(5):
        save(subject, step, force=step == 2)
    assert asked == [0, 1, 2, 3, 4]


def test_an_older_step_goes_only_after_the_newer_one_is_durable(make):
    subject = make(keep_latest=1)
    save(subject, 3)
    subject.finish()
    save(subject, 6)
    assert 3 in subject.store.steps()
    subject.finish()
    assert subject.store.steps() == [6]


def test_what_need_not_stay_goes_before_the_next_save(make):
    subject = make(keep_latest=1)
    for step in (3, 6, 9):
        save(subject, step)
    assert 3 not in subject.store.steps()


def test_the_best_stays_by_the_results_that_were_recorded(make):
    subject = make(every="1 step", keep_latest=1, best="heldout/loss", best_mode="min", keep_best=1)
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4)):
        save(subject, step)
        subject.record(step, {"heldout/loss": loss})
    subject.finish()
    assert subject.store.steps() == [2, 3]


def test_results_of_an_earlier_attempt_are_known(make):
    make().record(3, {"heldout/loss": 0.5})
    assert make().results(3) == {"heldout/loss": 0.5}
    assert make().results(6) == {}


@pytest.fixture
def full_disk():
    """No file may grow beyond a kilobyte: a full disk, as the process sees it."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores the signal that goes with it
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.faults
def test_a_save_that_failed_is_told_at_a_later_step_though_none_is_due(make, full_disk):
    subject = make(every=None)
    subject.maybe_save(3, {"w": jnp.arange(10_000.0)}, {"example": 48}, force=True)
    deadline = time.monotonic() + 60
    with pytest.raises(CheckpointError, match="step 3 could not be saved"):
        while time.monotonic() < deadline:
            assert not save(subject, 4)
