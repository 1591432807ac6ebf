"""The training loop: order of events, periods, dispatches of K steps, resume, divergence and rollback."""

import contextlib
import dataclasses
import json
import re
import shutil
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import engine
from engine.api import prepared
from engine.api.saved_run import SavedRun
from engine.base.duration import Duration
from engine.base.errors import ConvoyError, DataError
from engine.checkpoint.store import CheckpointStore
from engine.config import hardware
from engine.config.schema import Hook, MeshSpec
from engine.loop.divergence import Diverged
from engine.loop.hooks import build_hooks
from engine.loop.trainer import Trainer
from engine.parallel import layout
from engine.parallel.mesh import make_mesh
from engine.run import goodput
from engine.run.directory import RunDirectory
from tests import runs, zoo


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of ten steps, and its summary."""
    path = tmp_path_factory.mktemp("unbroken") / "run"
    return path, engine.train(runs.config(), workdir=path)


def final_state(path):
    run = SavedRun(path)
    return run.restore(10, prepared.program(run.config)[0])


def test_run_logs_evaluates_and_saves_at_its_periods(unbroken):
    path, summary = unbroken
    assert sorted(runs.rows(path)) == list(range(1, 11))
    assert sorted(runs.rows(path, "heldout/accuracy")) == [4, 8, 10]
    assert [info.step for info in engine.checkpoints(path)] == [5, 10]
    assert (summary.state, summary.step, summary.total_steps) == ("done", 10, 10)
    assert runs.rows(path, "compile_s") == {0: summary.compile_s}
    assert summary.metrics["heldout/accuracy"] == runs.rows(path, "heldout/accuracy")[10]
    assert summary.metrics["loss"] == runs.rows(path)[10]
    assert 0 < summary.compile_s < summary.wall_s
    assert summary.rates["examples_per_s"] > 0
    assert not {"step", "attempt", "time"} & (summary.metrics.keys() | runs.status(path)["metrics"].keys())
    assert not (path / "tensorboard").exists()
    log = (path / "log.txt").read_text()
    assert "starting again" not in log
    steps = [int(step) for step in re.findall(r" step (\d+)[:/]", log)]  # of rows and of evaluations
    assert steps == sorted([*range(1, 11), 4, 8, 10])


def test_step_is_saved_before_it_is_evaluated(unbroken):
    """So an evaluation that is killed loses no step."""
    log = (unbroken[0] / "log.txt").read_text()
    assert log.index("saving checkpoint of step 10") < log.index("step 10: heldout/")


def test_resumed_run_matches_a_single_run(tmp_path):
    engine.train(runs.config(train__total="5 steps", optimizer__schedule="constant"), workdir=tmp_path / "a")
    longer = runs.config(train__total="10 steps", optimizer__schedule="constant")
    engine.train(longer, workdir=tmp_path / "a")
    engine.train(longer, workdir=tmp_path / "b")
    assert runs.rows(tmp_path / "a") == runs.rows(tmp_path / "b")
    zoo.assert_equal(final_state(tmp_path / "a"), final_state(tmp_path / "b"))


def test_resume_after_losing_the_last_checkpoint_is_bitwise_equal(unbroken, tmp_path):
    path, _ = unbroken
    shutil.copytree(path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/10")
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/checkpoints/results.json").unlink()
    engine.train(runs.config(), workdir=tmp_path / "run")
    losses = runs.rows(path)
    assert runs.rows(tmp_path / "run") == {step: losses[step] for step in range(6, 11)}
    first, second = goodput.sums(goodput.read(tmp_path / "run/goodput.jsonl")).values()
    assert (first["step"].steps, first["lost"].steps, second["step"].steps) == (5, 5, 5)
    assert second["restore"].seconds > 0 and second["down"].seconds > 0
    zoo.assert_equal(final_state(tmp_path / "run"), final_state(path))


@pytest.mark.parametrize("k", [3, 4])
def test_dispatches_of_k_steps_are_bitwise_equal_to_single_steps(unbroken, tmp_path, k):
    path, _ = unbroken
    engine.train(runs.config(train__steps_per_dispatch=k), workdir=tmp_path)
    assert runs.rows(tmp_path) == runs.rows(path)
    assert runs.rows(tmp_path, "heldout/loss") == runs.rows(path, "heldout/loss")
    assert [info.step for info in engine.checkpoints(tmp_path)] == [5, 10]
    zoo.assert_equal(final_state(tmp_path), final_state(path))


def test_finished_run_trains_nothing(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_text()
    summary = engine.train(runs.config(), workdir=tmp_path / "run")
    assert (summary.state, summary.step) == ("done", 10)
    assert summary.metrics == unbroken[1].metrics
    assert runs.status(tmp_path / "run")["metrics"] == summary.metrics
    assert (tmp_path / "run/metrics.jsonl").read_text() == before
    assert "this run is finished" in (tmp_path / "run/log.txt").read_text()


def test_row_is_the_mean_over_its_interval(unbroken, tmp_path):
    engine.train(runs.config(log__every="5 steps", train__steps_per_dispatch=2), workdir=tmp_path)
    lines = [json.loads(line) for line in (unbroken[0] / "metrics.jsonl").read_text().splitlines()]
    norms = [line["grad_norm"] for line in lines if "grad_norm" in line]
    assert runs.rows(tmp_path, "grad_norm") == pytest.approx({5: np.mean(norms[:5]), 10: np.mean(norms[5:])})
    rates = runs.rows(unbroken[0], "learning_rate")
    assert runs.rows(tmp_path, "learning_rate") == {5: rates[5], 10: rates[10]}


def rows_of_training(path):
    names = ("loss", "accuracy", "grad_norm", "skipped", "learning_rate")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: [row[name] for name in names] for row in rows if "loss" in row}


@pytest.mark.parametrize(("k", "every"), [(1, "4 steps"), (3, "4 steps"), (1, "20 steps"), (8, "3 steps")])
def test_row_interrupted_by_a_resume_equals_the_uninterrupted_row(tmp_path, k, every):
    """The run is resumed from step 6, and the result of that from step 12."""
    settings = dict(log__every=every, train__steps_per_dispatch=k, checkpoint__every="6 steps", evaluations={})
    config = runs.config(train__total="20 steps", checkpoint__keep_latest=9, **settings)
    engine.train(config, workdir=tmp_path / "run")
    whole = rows_of_training(tmp_path / "run")
    for step in (6, 12):
        for path in (tmp_path / "run/checkpoints").iterdir():
            if path.name.isdecimal() and int(path.name) > step:
                shutil.rmtree(path)
        (tmp_path / "run/metrics.jsonl").unlink()
        engine.train(config, workdir=tmp_path / "run")
        assert rows_of_training(tmp_path / "run") == {at: row for at, row in whole.items() if at > step}


def test_best_and_latest_checkpoints_are_kept(tmp_path):
    config = runs.config(
        checkpoint__best="heldout/loss",
        checkpoint__best_mode="min",
        checkpoint__keep_latest=1,
        checkpoint__every=None,
        optimizer__learning_rate=3.0,  # the loss soon grows, so that an early step is best
        optimizer__schedule="constant",
        evaluations__heldout__every="2 steps",
    )
    summary = engine.train(config, workdir=tmp_path)
    results = runs.rows(tmp_path, "heldout/loss")
    best = min(results, key=lambda step: (results[step], step))
    assert summary.best == {"heldout/loss": (best, results[best])}
    assert [info.step for info in engine.checkpoints(tmp_path)] == sorted({best, 10})
    assert engine.evaluate(tmp_path)["step"] == best
    assert engine.evaluate(tmp_path)["heldout/loss"] == pytest.approx(results[best], rel=1e-6)
    assert engine.evaluate(tmp_path, step="latest")["step"] == 10


class Recorder:
    """A user-defined hook that writes a file at each call."""

    def __init__(self, word: str = ""):
        self.word = word

    def run(self, trainer, state, step):
        (trainer.directory.path / f"{self.word}{step}").write_text(str(int(state.step)))


@pytest.mark.parametrize("k", [1, 4])
def test_hooks_are_called_at_their_period_with_the_state(tmp_path, k):
    hook = dict(target=f"{__name__}.Recorder", word="hook", every="3 steps")
    config = runs.config(hooks={"mine": hook}, train__steps_per_dispatch=k, evaluations={}, checkpoint__every=None)
    engine.train(config, workdir=tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.glob("hook*")} == {f"hook{s}": str(s) for s in (3, 6, 9, 10)}


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


def test_tensorboard_event_files_are_written_when_enabled(tmp_path):
    engine.train(runs.config(log__tensorboard=True, evaluations={}), workdir=tmp_path)
    assert list((tmp_path / "tensorboard").iterdir())


def test_sharding_rules_of_the_config_override_the_defaults():
    def spec(**rules):
        config = runs.config(task__model="decoder", mesh__fsdp=4, mesh__tensor=2, sharding__rules=rules)
        leaf: Any = prepared.program(config)[0].abstract_state.params["up/kernel"]
        return leaf.sharding.spec

    assert (spec(), spec(embed=None)) == (P("fsdp", "tensor"), P(None, "tensor"))


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


def trainer_of(path, config=None, source=None, task=None):
    """A trainer of a config, `runs.config()` by default, on one device."""
    config = config or runs.config()
    return engine.Trainer(
        task or zoo.Classify(),
        make_mesh(MeshSpec(data=1), jax.devices()[:1]),
        source or zoo.source(),
        config,
        RunDirectory.open(path),
        evaluation_sources={name: zoo.source(37, 9) for name in config.evaluations},
        hooks=build_hooks(config.hooks),
        on_row=lambda row: None,
        on_message=lambda text: None,
    )


def test_source_that_can_only_be_iterated_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"^source: found a generator without __len__ .* by index"):
        trainer_of(tmp_path, source=(example for example in ()))


def test_train_yields_each_boundary_after_its_events(tmp_path):
    trainer, seen = trainer_of(tmp_path), []
    for boundary in trainer.train():
        seen.append((boundary.step, trainer.checkpoints.results(boundary.step) != {}))
    # The boundary at step 2 is that of Prepare.
    assert seen == [(0, False), (2, False), (4, True), (5, False), (8, True), (10, True)]
    assert trainer.checkpoints.store.steps() == [5, 10]


def test_closing_the_generator_ends_the_run_without_a_save(tmp_path):
    trainer = trainer_of(tmp_path)
    with contextlib.closing(trainer.train()) as boundaries:
        assert next(boundary.step for boundary in boundaries if boundary.step > 2) == 4
    assert trainer.step == 4 and trainer.checkpoints.store.steps() == []
    trainer.directory.close()
    assert engine.train(runs.config(), workdir=tmp_path).step == 10
    assert "has completed no checkpoint; starting again from step 0" in (tmp_path / "log.txt").read_text()


def test_trainer_can_be_built_from_a_task_a_mesh_and_data(tmp_path):
    messages, phases = [], []
    trainer = engine.Trainer(
        zoo.Classify(width=64),
        make_mesh(MeshSpec(data=4, fsdp=2)),
        zoo.source(),
        runs.config(),
        RunDirectory.open(tmp_path),
        evaluation_sources={"heldout": zoo.source(37, 9)},
        hooks={},
        on_row=lambda row: None,
        on_message=messages.append,
        on_phase=phases.append,
    )
    assert trainer.run().step == 10
    assert [text.split(":")[0] for text in messages] == ["step 4", "step 8", "step 10"]  # saves are only in the log
    assert phases == ["training"] + ["evaluating", "training"] * 3


def test_error_in_user_code_is_recorded_and_raised(tmp_path):
    with pytest.raises(ConvoyError, match="Example 3"):
        engine.train(runs.config(data__target="tests.loop.trainer_test.Broken", evaluations={}), workdir=tmp_path)
    assert runs.status(tmp_path)["exit_code"] == 1
    assert "Example 3" in runs.status(tmp_path)["reason"]


class Broken:
    """A source whose fourth example cannot be read."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index == 3:
            raise OSError("bad sector")
        return {name: x[index] for name, x in zoo.examples(64).items()}


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


def test_run_compiles_nothing_after_the_first_saves_and_evaluations(tmp_path):
    """Everything is compiled by the second evaluation and save; later steps compile nothing."""
    compiled: list[tuple[int, object]] = []
    reached = 0

    def listen(event, duration_secs, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append((reached, kwargs.get("fun_name")))

    class Watch:
        def run(self, trainer, state, step):
            nonlocal reached
            reached = step

    config = runs.config(train__total="30 steps", evaluations__heldout__every="5 steps", checkpoint__every="5 steps")
    directory = RunDirectory.open(tmp_path / "run")
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        config = dataclasses.replace(config, hooks={"watch": Hook(every=Duration(1, "steps"))})
        found = prepared.prepare(dataclasses.replace(config, hooks={}))
        trainer = Trainer(
            found.task, found.mesh, found.source, config, directory, evaluation_sources=found.evaluation_sources,
            hooks={"watch": Watch()}, on_row=lambda row: None, on_message=lambda text: None,
        )  # fmt: skip
        trainer.run()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert [name for at, name in compiled if at > 10] == []
    assert compiled


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


@pytest.mark.parametrize("k", [1, 4])
def test_rollback_is_bitwise_equal_to_skipping_the_batches(skipping, tmp_path, k):
    config = poisoned("rollback", (7, 8, 22), train__steps_per_dispatch=k)
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


@dataclasses.dataclass
class Models:
    """A hook that keeps the predictions of the model of the state."""

    latest = np.empty(0)

    def run(self, trainer, state, step):
        x = zoo.examples(4)["x"]
        Models.latest = np.asarray(trainer.model(state)(x))


def test_hooks_get_the_model_of_a_state_with_averaged_weights(tmp_path):
    config = runs.config(train__total="3 steps", train__ema_decay=0.9, task__dropout=0.5)
    config = dataclasses.replace(config, hooks={"models": Hook(target="tests.loop.trainer_test.Models", every=None)})
    engine.train(config, workdir=tmp_path)
    np.testing.assert_allclose(Models.latest, engine.load(tmp_path).model(zoo.examples(4)["x"]), atol=1e-6)
