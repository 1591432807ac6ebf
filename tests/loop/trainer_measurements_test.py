"""What runs measure: time of steps, profiles, FLOPs and MFU."""

import contextlib
import threading
import time

import pytest

import engine
from engine.config import hardware
from engine.parallel import layout
from engine.run import goodput
from tests import runs, zoo
from tests.loop.trainer_test import trainer_of

pytestmark = pytest.mark.slow


class Slow:
    """A hook that takes a second."""

    def run(self, trainer, state, step):
        time.sleep(1)


def test_time_of_hooks_and_evaluations_is_not_step_time(tmp_path):
    hooks = {"slow": dict(target=f"{__name__}.Slow", every="4 steps")}
    begin = time.monotonic()
    engine.train(runs.config(hooks=hooks), workdir=tmp_path)
    wall = time.monotonic() - begin
    # All but one: a busy machine may interrupt a step. The time of the hook would be in two steps at least.
    assert sorted(runs.rows(tmp_path, "step_time_s").values())[-2] < 1
    (kinds,) = goodput.sums(goodput.read(tmp_path / "goodput.jsonl")).values()
    assert kinds["evaluation"].seconds > 3
    assert kinds["step"].steps == 10
    assert all(kinds[kind].seconds > 0 for kind in ("init", "compile", "step", "data wait", "save stall"))
    assert kinds["lost"].seconds == kinds["down"].seconds == 0
    assert kinds["restore"].seconds < runs.limit(2)  # the time to find out that there is no checkpoint
    assert 0.8 * wall < sum(spent.seconds for spent in kinds.values()) <= wall


def test_profile_window_is_exact_with_longer_dispatches(tmp_path):
    config = runs.config(train__steps_per_dispatch=5, evaluations={}, profile__start=3, profile__steps=2)
    engine.train(config, workdir=tmp_path)
    assert "profile: steps 3 to 5 are traced" in (tmp_path / "log.txt").read_text()


def test_unreached_profile_window_is_reported(tmp_path):
    engine.train(runs.config(evaluations={}, profile__start=70, checkpoint__every=None), workdir=tmp_path)
    assert "profile: the run ended at step 10, before profile.start=70" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(("precision", "peak"), [("float32", 1e9), ("bfloat16", 4e9)])
def test_mfu_is_the_share_of_all_devices_peak_at_the_precision(tmp_path, monkeypatch, precision, peak):
    monkeypatch.setitem(
        hardware.DEVICES, "cpu", hardware.Hardware("a CPU", 4e9, 1e9, 2**30, 1e9, hardware.Links(1e9, 1e9))
    )
    engine.train(runs.config(train__precision=precision, evaluations={}), workdir=tmp_path)
    mfu, step_time_s = runs.rows(tmp_path, "mfu")[10], runs.rows(tmp_path, "step_time_s")[10]
    first_layer, parameters = 16 * 32, 16 * 32 + 32 * 32 + 32 * 4
    flops = 2 * 16 * (3 * parameters - first_layer)  # 16 examples; the first layer has no gradient of its input
    assert mfu == pytest.approx(flops / step_time_s / (8 * peak))


class NeedsMesh(zoo.Classify):
    """A Task whose loss works on the devices of the run only."""

    def loss(self, model, batch, rng):
        assert layout.current().mesh.size == 8, "the loss needs 8 devices"  # pyright: ignore[reportOptionalMemberAccess]
        return super().loss(model, batch, rng)


def test_loss_that_cannot_be_traced_for_one_device_leaves_out_mfu(tmp_path):
    engine.train(runs.config(evaluations={}), task=NeedsMesh(), workdir=tmp_path)
    text = (tmp_path / "log.txt").read_text()
    assert (
        text.count("flop_per_s and mfu are left out")
        == text.count("failed: AssertionError: the loss needs 8 devices")
        == 1
    )
    assert runs.rows(tmp_path, "examples_per_s") and not runs.rows(tmp_path, "flop_per_s")


class Blocked(zoo.Classify):
    """A Task whose loss can only be traced for the count of FLOPs once `release` is set."""

    def __init__(self):
        super().__init__()
        self.release, self.threads = threading.Event(), set[str]()

    def loss(self, model, batch, rng):
        if layout.current().counts_flops:
            self.threads.add(threading.current_thread().name)
            assert self.release.wait(60)
        return super().loss(model, batch, rng)


def test_run_that_is_stopped_does_not_wait_for_the_count_of_flops(tmp_path):
    task = Blocked()
    trainer = trainer_of(tmp_path, runs.config(evaluations={}, log__every="2 steps"), task=task)
    with contextlib.closing(trainer.train()) as boundaries:
        assert next(boundary.step for boundary in boundaries if boundary.step >= 5) == 5
    assert "loss" in trainer.summary().metrics  # closed and written, while the count still waits
    assert "examples_per_s" in trainer.summary().rates and "flop_per_s" not in trainer.summary().rates
    assert task.threads == {"flops-count"}
    task.release.set()
