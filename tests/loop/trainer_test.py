"""The training loop: order of events, periods, dispatches of K steps, and resume."""

import contextlib
import dataclasses
import json
import re
import shutil
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
from engine.config.schema import Hook, MeshSpec
from engine.loop.hooks import build_hooks
from engine.loop.trainer import Trainer
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


def test_dispatches_of_k_steps_are_bitwise_equal_to_single_steps(unbroken, tmp_path):
    path, _ = unbroken
    engine.train(runs.config(train__steps_per_dispatch=3), workdir=tmp_path)
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


@pytest.mark.parametrize(("k", "every"), [(3, "4 steps"), (1, "20 steps"), (8, "3 steps")])
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


def test_hooks_are_called_at_their_period_with_the_state(tmp_path):
    hook = dict(target=f"{__name__}.Recorder", word="hook", every="3 steps")
    config = runs.config(hooks={"mine": hook}, train__steps_per_dispatch=4, evaluations={}, checkpoint__every=None)
    engine.train(config, workdir=tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.glob("hook*")} == {f"hook{s}": str(s) for s in (3, 6, 9, 10)}


def test_tensorboard_event_files_are_written_when_enabled(tmp_path):
    engine.train(runs.config(log__tensorboard=True, evaluations={}), workdir=tmp_path)
    assert list((tmp_path / "tensorboard").iterdir())


def test_sharding_rules_of_the_config_override_the_defaults():
    def spec(**rules):
        config = runs.config(task__model="decoder", mesh__fsdp=4, mesh__tensor=2, sharding__rules=rules)
        leaf: Any = prepared.program(config)[0].abstract_state.params["up/kernel"]
        return leaf.sharding.spec

    assert (spec(), spec(embed=None)) == (P("fsdp", "tensor"), P(None, "tensor"))


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


def test_run_compiles_nothing_after_the_first_saves_and_evaluations(tmp_path):
    """Everything is compiled by the second evaluation, save and replica check; later steps compile nothing."""
    compiled: list[tuple[int, object]] = []
    reached = 0

    def listen(event, duration_secs, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append((reached, kwargs.get("fun_name")))

    class Watch:
        def run(self, trainer, state, step):
            nonlocal reached
            reached = step
            if step == 10:
                trainer.checkpoints.settle()  # the thread of the first save compiles, too, to read it back

    every = dict.fromkeys(("evaluations__heldout__every", "checkpoint__every", "resilience__replica_check"), "5 steps")
    config = runs.config(train__total="30 steps", **every)
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
