"""Saves by a policy and removal by a retention: the steps on disk after each step of a loop."""

import os
import resource
import shutil
import time

import jax.numpy as jnp
import pytest

from engine.base.duration import Duration
from engine.checkpoint import timeouts
from engine.checkpoint.checkpointer import Checkpointer
from engine.checkpoint.policy import Retention, SavePolicy
from engine.checkpoint.store import CheckpointStore, StorageError
from engine.run.lease import ALWAYS_GRANTED, LeaseLost
from engine.storage import background
from tests.checkpoint.saves import LostLease

TOTAL = 10


@pytest.fixture
def make(tmp_path):
    """Creates checkpointers in one directory, which save every three steps by default."""
    made = []

    def make(
        every="3 steps",
        keep_latest=2,
        timeout_s=60.0,
        best=None,
        best_mode="max",
        keep_best=1,
        folder=tmp_path,
        lease=ALWAYS_GRANTED,
        **options,
    ):
        duration = None if every is None else Duration.parse(every, "checkpoint.every")
        subject = Checkpointer(
            CheckpointStore(folder, lease, timeout_s=timeout_s),
            SavePolicy(duration, 16, 64, TOTAL),
            Retention(folder, keep_latest, best, best_mode, keep_best),
            "name: zoo\n",
            **options,
        )
        made.append(subject)
        return subject

    yield make
    for subject in made:
        subject.__exit__(None, None, None)


def save(subject, step, force=False, wait=True):
    """One step of a loop; with `wait`, the previous save has ended, as if steps took longer than saves."""
    if wait:
        subject._saver.wait()
    return subject.maybe_save(step, {"w": jnp.full(4, step)}, {"example": 16 * step}, force)


def test_due_steps_are_saved_with_position_and_config(make):
    subject = make(keep_latest=10)
    assert [step for step in range(TOTAL + 1) if save(subject, step)] == [3, 6, 9, 10]
    subject.finish()
    assert subject.store.steps() == [3, 6, 9, 10]
    assert subject.store.position(6) == {"example": 96}
    assert subject.store.config_text(6) == "name: zoo\n"


def test_forced_save_of_a_step_happens_once(make):
    subject = make()
    assert save(subject, 4, force=True)
    assert not save(subject, 4, force=True)
    assert not save(subject, 5)
    subject.finish()
    assert subject.store.steps() == [4]


def test_no_writes_after_the_lease_is_lost(make, tmp_path):
    subject = make(lease=LostLease())
    assert not save(subject, 1)  # no save is due
    with pytest.raises(LeaseLost):
        save(subject, 3)
    with pytest.raises(LeaseLost):
        subject.record(3, {"heldout/accuracy": 0.5})
    assert subject.store.steps() == [] and not (tmp_path / "results.json").exists()


def test_no_step_is_removed_after_the_lease_is_lost(make):
    lease = LostLease(lost=False)
    subject = make(keep_latest=1, lease=lease)
    assert save(subject, 3) and save(subject, 6)
    subject._saver.wait()
    lease.lost = True
    with pytest.raises(LeaseLost):
        subject.poll()
    assert subject.store.steps() == [3, 6]


def test_policy_is_called_at_every_step(make):
    """A policy by the clock communicates: if one process does not call it at a step, the others hang."""
    subject, steps = make(), []
    due = subject.policy.due
    subject.policy.due = lambda step: steps.append(step) or due(step)
    for step in range(5):
        save(subject, step, force=step == 2)
    assert steps == [0, 1, 2, 3, 4]


def test_old_step_is_removed_only_after_the_new_step_is_durable(make):
    subject = make(keep_latest=1)
    save(subject, 3)
    subject.finish()
    save(subject, 6)
    assert 3 in subject.store.steps()
    subject.finish()
    assert subject.store.steps() == [6]


def test_old_steps_are_removed_before_the_next_save(make):
    subject = make(keep_latest=1)
    for step in (3, 6, 9):
        save(subject, step)
    assert 3 not in subject.store.steps()


def test_best_step_by_recorded_results_is_kept(make):
    subject = make(every="1 step", keep_latest=1, best="heldout/loss", best_mode="min", keep_best=1)
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4)):
        save(subject, step)
        subject.record(step, {"heldout/loss": loss})
    subject.finish()
    assert subject.store.steps() == [2, 3]


def test_results_of_an_earlier_attempt_are_loaded(make):
    make().record(3, {"heldout/loss": 0.5})
    assert make().results(3) == {"heldout/loss": 0.5}
    assert make().results(6) == {}


@pytest.fixture
def full_disk():
    """Limits files to a kilobyte, which simulates a full disk; returns a function that removes the limit."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores the signal that goes with it
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, former)
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def big(subject, step, force=False):
    return subject.maybe_save(step, {"w": jnp.arange(10_000.0)}, {"example": 16 * step}, force)


@pytest.mark.faults
def test_failed_save_is_reported_once_and_the_next_save_works(make, full_disk):
    messages = []
    subject = make(every=None, say=messages.append)
    assert big(subject, 3, force=True)
    deadline = time.monotonic() + 60
    while not subject.has_events and time.monotonic() < deadline:
        time.sleep(0.01)
    subject.poll()
    assert not subject.has_events
    full_disk()
    assert big(subject, 5, force=True)
    subject.finish()
    assert subject.store.steps() == [5]
    assert (
        len(messages) == 1
        and "step 3 could not be saved" in messages[0]
        and "No checkpoint exists yet. Tr" in messages[0]
    )


@pytest.mark.faults
def test_failed_save_raises_with_on_failure_stop(make, full_disk):
    subject = make(every=None, on_failure="stop")
    big(subject, 3, force=True)
    deadline = time.monotonic() + 60
    with pytest.raises(StorageError, match=r"step 3 could not be saved .* This run stops") as error:
        while time.monotonic() < deadline:
            assert not save(subject, 4)
    assert error.value.exit_code == 42


def test_save_fails_if_the_run_directory_has_disappeared(make, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    subject = make(every=None, folder=run / "checkpoints")
    assert save(subject, 3, force=True)
    subject._saver.wait()
    run.rename(tmp_path / "elsewhere")
    save(subject, 6, force=True)
    with pytest.raises(StorageError, match=r"No such file or directory"):
        subject.finish()
    assert not run.exists()


@pytest.mark.faults
def test_finish_raises_if_the_last_save_failed(make, full_disk):
    messages = []
    subject = make(every=None, say=messages.append)
    big(subject, TOTAL)
    with pytest.raises(StorageError, match=r"step 10 could not be saved .* the last save") as error:
        subject.finish()
    assert error.value.exit_code == 42 and messages == []


@pytest.mark.slow
def test_due_save_is_skipped_and_forced_save_waits_while_a_save_is_in_flight(make, tmp_path, monkeypatch):
    """The save of step 3 hangs, because one of its files is a pipe that no process reads."""
    monkeypatch.setattr(timeouts, "RECENT_S", 0.5)  # tests/zoo.py makes it longer
    messages = []
    subject = make(say=messages.append, timeout_s=3.0)
    pipe = tmp_path / "3.1.saving" / "position" / "position.json"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    try:
        assert save(subject, 3)
        assert not save(subject, 6, wait=False)
        assert subject.skipped == 1 and "step 6 is not saved, since step 3 is still being written" in messages[0]
        assert save(subject, 7, force=True, wait=False)  # after the deadline of step 3
        assert (
            len(messages) == 2
            and "step 3 could not be saved (not written within checkpoint.timeout, 3 s" in messages[1]
        )
    finally:
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    while background.hanging():
        time.sleep(0.01)
    os.close(reader)
    assert save(subject, 9)
    subject.finish()
    assert subject.store.steps() == [9]


@pytest.mark.parametrize("what", ["manifest.json", "state/_METADATA", "."])
def test_finish_fails_if_the_newest_checkpoint_was_removed(make, tmp_path, what):
    subject = make()
    save(subject, 3)
    subject.finish()
    found = tmp_path / "3" / what
    shutil.rmtree(found) if found.is_dir() else found.unlink()
    with pytest.raises(StorageError, match=f"{tmp_path}/3: the newest checkpoint was removed or changed") as raised:
        subject.finish()
    assert raised.value.everywhere
