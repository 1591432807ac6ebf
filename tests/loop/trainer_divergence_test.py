"""Runs whose loss, gradient or state is not finite: they stop, skip batches, or roll back."""

import json
import shutil

import jax
import numpy as np
import pytest

import engine
from engine.api import prepared
from engine.api.saved_run import SavedRun
from engine.checkpoint.store import CheckpointStore
from engine.loop.divergence import Diverged
from tests import runs, zoo

pytestmark = pytest.mark.slow


class Bad(zoo.Classify):
    """Its loss is NaN for examples with a large first value, which some batch contains."""

    def loss(self, model, batch, rng):
        loss = super().loss(model, batch, rng)
        return engine.Loss(loss.total * jax.numpy.where(batch["x"][:, 0] > 2.0, jax.numpy.nan, 1), loss.weight)


class Masked(zoo.Classify):
    """Masks every example."""

    def loss(self, model, batch, rng):
        loss = super().loss(model, batch, rng)
        return engine.Loss(loss.total, loss.weight * 0)


def test_weights_that_are_all_zero_are_said(tmp_path):
    engine.train(runs.config(task__target=f"{__name__}.Masked", train__total="6 steps"), workdir=tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert "warning: step 1: every weight of the loss is 0 in this batch" in log
    assert "warning: step 4: every weight of the loss was 0 for a whole epoch" in log
    assert "warning: step 4: every weight of heldout/loss is 0, so there is no value (NaN)" in log


class Root(zoo.Classify):
    """Its loss is finite, but the square root of 0 has no finite gradient."""

    def loss(self, model, batch, rng):
        loss = super().loss(model, batch, rng)
        return engine.Loss(loss.total + jax.numpy.sqrt((model.head.bias[...] ** 2).sum()), loss.weight)


def test_gradient_that_is_not_finite_is_named_with_its_parameter(tmp_path):
    with pytest.raises(Diverged) as error:
        engine.train(runs.config(task__target=f"{__name__}.Root", evaluations={}, log__examples=True), workdir=tmp_path)
    assert str(error.value).startswith(
        "step 1: the gradient of a finite loss is not finite; the update was skipped. "
        "Gradients that are not finite: head/bias. Check the data of that step"
    )
    steps = [json.loads(line)["step"] for line in (tmp_path / "examples/0-of-1.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))  # the batch that was read again is not logged again


def test_non_finite_loss_stops_the_run_with_its_step(tmp_path):
    with pytest.raises(Diverged, match=r"step \d+: the loss is not finite") as error:
        engine.train(runs.config(task__target=f"{__name__}.Bad", evaluations={}), workdir=tmp_path)
    assert error.value.exit_code == 43
    assert runs.status(tmp_path)["state"] == "failed"
    assert runs.status(tmp_path)["exit_code"] == 43
    skipped = runs.rows(tmp_path, "skipped")
    assert str(error.value).startswith(f"step {min(s for s, n in skipped.items() if n)}:")


class Late(zoo.Classify):
    """Its loss is always NaN."""

    def loss(self, model, batch, rng):
        return engine.Loss(super().loss(model, batch, rng).total * jax.numpy.nan, jax.numpy.ones(len(batch["x"])))


def test_run_that_diverged_in_its_last_steps_diverges_again_on_restart(tmp_path):
    config = runs.config(task__target=f"{__name__}.Late", train__total="3 steps", log__every="3 steps", evaluations={})
    for _ in range(2):
        with pytest.raises(Diverged, match="step 1:"):
            engine.train(config, workdir=tmp_path)
    assert engine.checkpoints(tmp_path) == []


class Poison:
    """Examples of the zoo, in order; those of some batches of 16 are NaN, or multiplied by a factor."""

    def __init__(self, bad=(), factor: float | None = None):
        self.arrays = zoo.examples(512)
        for batch in bad:
            self.arrays["x"][16 * batch : 16 * batch + 16] *= np.nan if factor is None else factor

    def __len__(self):
        return 512

    def __getitem__(self, index):
        return {name: x[index] for name, x in self.arrays.items()}


def poisoned(policy, bad, factor=None, **settings):
    data = dict(target=f"{__name__}.Poison", shuffle=False, bad=bad, factor=factor)
    fields = dict(train__total="32 steps", evaluations={}, optimizer__schedule="constant", data=data)
    return runs.config(**{**fields, "resilience__divergence": policy, **settings})


def state_at(path, step):
    run = SavedRun(path)
    return run.restore(step, prepared.program(run.config)[0])


def position(path, step):
    return CheckpointStore(path / "checkpoints").position(step)


@pytest.fixture(scope="module")
def skipping(tmp_path_factory):
    path = tmp_path_factory.mktemp("skipping") / "run"
    engine.train(poisoned("skip", (7, 8, 22)), workdir=path)
    return path


def test_skipped_batches_are_counted_logged_and_saved(skipping):
    assert [step for step, n in runs.rows(skipping, "skipped").items() if n] == [8, 9, 23]
    assert runs.rows(skipping, "batch")[32] == 31
    assert position(skipping, 32) == {"next_batch": 32, "next_example": 512, "skipped": [7, 8, 22], "row": {}}
    assert (
        "warning: step 8: the loss is not finite; the update of batch 7 is skipped"
        in (skipping / "log.txt").read_text()
    )
    assert int(state_at(skipping, 32).step) == 32


def test_rollback_is_bitwise_equal_to_skipping_the_batches(skipping, tmp_path):
    config = poisoned("rollback", (7, 8, 22), train__steps_per_dispatch=4)
    engine.train(config, workdir=tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert "rolling back to step 5 to continue without batches 7, 8" in log
    assert "rolling back to step 20 to continue without batch 22" in log
    assert runs.rows(tmp_path) == runs.rows(skipping)
    assert position(tmp_path, 32) == position(skipping, 32)
    zoo.assert_equal(state_at(tmp_path, 32), state_at(skipping, 32))


def test_row_interrupted_by_a_rollback_equals_the_row_of_skipping(tmp_path):
    for policy in ("rollback", "skip"):
        engine.train(poisoned(policy, (7, 8, 22), log__every="4 steps"), workdir=tmp_path / policy)
    assert runs.rows(tmp_path / "rollback") == runs.rows(tmp_path / "skip")


def test_rollback_undoes_a_finite_update_that_broke_the_state(tmp_path):
    """The loss and gradient of batch 12 are finite, but no loss is finite with the state after its update."""
    settings: dict = dict(optimizer=dict(target="optax.sgd", learning_rate=1.0, clip_norm=None, schedule="constant"))
    engine.train(poisoned("rollback", (12,), 1e14, **settings), workdir=tmp_path / "a")
    assert "rolling back to step 10 to continue without batch 12" in (tmp_path / "a/log.txt").read_text()
    engine.train(poisoned("skip", (12,), **settings), workdir=tmp_path / "b")
    assert position(tmp_path / "a", 32)["skipped"] == [12]
    zoo.assert_equal(state_at(tmp_path / "a", 32), state_at(tmp_path / "b", 32))


def test_spike_is_skipped_and_resume_uses_the_same_loss_window(tmp_path):
    config = poisoned("skip", (20, 26), 1e3, resilience__spike=4.0)
    engine.train(config, workdir=tmp_path / "a")
    assert position(tmp_path / "a", 32)["skipped"] == [20, 26]
    assert "warning: step 21: the loss is a spike" in (tmp_path / "a/log.txt").read_text()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b/checkpoints/32")
    (tmp_path / "b/metrics.jsonl").unlink()
    engine.train(config, workdir=tmp_path / "b")
    assert position(tmp_path / "b", 32) == position(tmp_path / "a", 32)
    zoo.assert_equal(state_at(tmp_path / "b", 32), state_at(tmp_path / "a", 32))


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_every_saved_state_is_finite(tmp_path, policy):
    """Saves at each step: no state is saved after an update that is not finite or was skipped against the policy."""
    config = poisoned(policy, (7,), checkpoint__every="1 step", checkpoint__keep_latest=40)
    if policy == "rollback":
        engine.train(config, workdir=tmp_path)
        assert position(tmp_path, 8)["skipped"] == [7]
    else:
        with pytest.raises(Diverged, match="step 8"):
            engine.train(config, workdir=tmp_path)
        assert [info.step for info in engine.checkpoints(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


def test_state_that_overflows_in_the_last_update_is_not_saved(tmp_path):
    huge = dict(target="optax.sgd", learning_rate=1e30, clip_norm=None, schedule="constant")
    config = poisoned("stop", (0,), 1e12, optimizer=huge, train__total="1 step")
    with pytest.raises(Diverged, match=r"step 1: params/\S+, .* have values that are not finite\."):
        engine.train(config, workdir=tmp_path)
    assert engine.checkpoints(tmp_path) == []
