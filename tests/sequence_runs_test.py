"""Runs over drives with a model that remembers: training, evaluations and resumes are as one loop over each drive."""

import shutil
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import engine
from engine.api.explain import explain_parts
from engine.api.predictions import Predictor
from engine.api.prepared import prepare
from engine.base.errors import DataError, TaskError
from engine.config.dev_run import tiny
from engine.config.text import to_text
from engine.data.adapt import descriptions
from engine.data.batches import Batches
from engine.data.source import limited
from engine.loop.evaluation import Evaluator
from engine.loop.trainer import Trainer
from engine.metrics.example_file import read_parquet
from engine.run.directory import RunDirectory
from engine.training.state import Weights
from tests import drives, runs

DATA = {"target": "engine.Sequences", "source": {"target": "tests.drives.frames"}, "length": 4, "carry": True}
HELDOUT = {**DATA, "source": {"target": "tests.drives.frames", "seed": 9}}


def config(**settings):
    """A config: 10 drives, batches of 4 windows of 4 frames, 6 steps in an epoch, 8 steps."""
    given = {
        "task__target": "tests.drives.Track", "data": DATA, "train__global_batch_size": 4,
        "evaluations__heldout": dict(data=HELDOUT, every="4 steps", per_example=True, tags={"drive": drives.TAG}),
        "train__total": "8 steps", "checkpoint__every": "4 steps", "optimizer__schedule": "constant",
    }  # fmt: skip
    return runs.config(**{**given, **settings})


def train(config, path, devices: int = 1) -> str:
    """Trains on the first devices, for which a program compiles faster than for all eight; returns the messages."""
    messages: list[str] = []
    RunDirectory(path).path.mkdir(exist_ok=True)
    RunDirectory(path).write_config_text(to_text(config))
    prepared = prepare(config, devices=jax.devices()[:devices])
    with RunDirectory.open(path) as directory:
        Trainer(
            prepared.task,
            prepared.mesh,
            prepared.source,
            config,
            directory,
            evaluation_sources=prepared.evaluation_sources,
            hooks={},
            on_row=lambda row: None,
            on_message=messages.append,
        ).run()
    return "\n".join(messages)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one device; its messages are in a file beside it."""
    path = tmp_path_factory.mktemp("sequences") / "run"
    path.with_name("messages").write_text(train(config(), path))
    return path


def parameters(run, step="latest"):
    path = run.parent / f"{run.name}-{step}.safetensors"
    engine.export(run, path, step=step)
    return load_file(path)


def test_a_run_says_how_its_rows_are_used(run):
    source = prepare(config(), devices=jax.devices()[:1]).source
    text = "data: one pass through 10 drives takes {} steps, in which {} of the rows are idle."
    assert descriptions({"data": source}, True, 4) == [text.format(6, "0.0%")]
    assert descriptions({"data": source}, True, 6) == [text.format(5, "20.0%")]
    assert "warning" not in run.with_name("messages").read_text()


def test_fast_dev_run_has_batches_with_fewer_drives_than_rows():
    small = tiny(config())
    prepared = prepare(small, devices=jax.devices()[:1])
    weights = Batches(limited(prepared.source, small.data.limit), small.train.global_batch_size, 0, True)[0].weight
    assert small.data.limit == 6 and weights.tolist().count(0) == 1  # windows of 3 drives, for 4 rows


def test_resume_in_the_middle_of_drives_is_bitwise_equal(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints/8")
    train(config(), again)
    assert runs.rows(again) == runs.rows(run) and len(runs.rows(run)) == 8
    whole, resumed = parameters(run), parameters(again)
    assert whole["memory"].any() and all((whole[name] == resumed[name]).all() for name in whole)


@pytest.mark.parametrize("settings", [{}, {"train__steps_per_dispatch": 2, "mesh__data": 2}])
def test_losses_are_those_of_a_loop_over_each_drive(tmp_path, settings):
    """With weights that stay, two epochs, and rows that are idle at their ends."""
    rows, steps = 6, 10
    given = {"train__global_batch_size": rows, "train__total": f"{steps} steps", "optimizer__learning_rate": 1e-30}
    task = {"target": "tests.drives.Track", "rows": rows}
    train(config(**given, task=task, evaluations={}, **settings), tmp_path / "run", 2 if settings else 1)
    source = drives.frames()
    errors = drives.by_hand(parameters(tmp_path / "run"), source)
    batches = Batches(drives.windows(), rows, 0, True)
    for step, loss in runs.rows(tmp_path / "run").items():
        batch = batches[step - 1]
        used = batch.examples["sequence"]["valid"] & (batch.weight > 0)[:, None]
        frames = np.searchsorted(
            source.arrays["drive"] * 1000 + source.arrays["time"],
            (batch.examples["drive"] * 1000 + batch.examples["time"])[used] - 1e-3,
        )
        assert loss == pytest.approx(errors[frames].mean(), rel=2e-6)


@pytest.mark.parametrize(("rows", "devices"), [(1, 1), (2, 2), (3, 1), (16, 8)])
def test_an_evaluation_is_a_loop_over_each_drive(run, tmp_path, rows, devices):
    """For any number of rows, some of which are idle, on any mesh, and for each drive."""
    source, weights = drives.frames(seed=9), parameters(run)
    errors = drives.by_hand(weights, source)
    prepared = prepare(
        config(mesh__data=devices, train__global_batch_size=8, task__rows=8), devices=jax.devices()[:devices]
    )
    weights = {name: jax.numpy.asarray(x) for name, x in weights.items() if name != "memory"}
    program, heldout = prepared.build_program()[0], prepared.evaluation_sources["heldout"]
    evaluator = Evaluator("heldout", config().evaluations["heldout"], heldout, program.evaluation, rows)
    found: Any = evaluator.run(program.init(weights), step=8)
    assert found["heldout/error"] == pytest.approx(errors.mean(), rel=1e-6)
    (tmp_path / "each.parquet").write_bytes(found["heldout/per_example"].content)
    each = read_parquet(tmp_path / "each.parquet")
    assert each.indices.tolist() == list(range(24))
    for drive in range(len(drives.SIZES)):
        own = each.tags["drive"] == drive
        total, weight = (np.asarray(getattr(each.metrics["error"], name))[own].sum() for name in ("total", "weight"))
        expected = errors[source.arrays["drive"] == drive]
        assert weight == len(expected) and total / weight == pytest.approx(expected.mean(), rel=1e-5)


def test_an_evaluation_of_the_run_is_a_loop_over_each_drive(run):
    expected = drives.by_hand(parameters(run), drives.frames(seed=9)).mean()
    assert runs.rows(run, "heldout/error")[8] == pytest.approx(expected, rel=1e-6)


def predicted(run, rows):
    """Returns the arguments of a prediction of the run on one device."""
    prepared = prepare(config(), devices=jax.devices()[:1])
    program = prepared.build_program()[0]
    return prepared.evaluation_sources["heldout"], config().data, program.evaluation, rows, "heldout"


def test_predictions_of_one_row_remember_the_drive(run):
    weights, source = parameters(run), drives.frames(seed=9)
    predictor = Predictor(*predicted(run, 1))
    params = {name: jax.numpy.asarray(x) for name, x in weights.items() if name != "memory"}
    memory = {"memory": jax.numpy.asarray(weights["memory"])}
    columns = list(predictor.run(Weights(params, memory, None)))
    found = np.concatenate([np.atleast_2d(column["error"]) for column in columns])
    rows, valid = drives.windows(seed=9).windows.rows(np.arange(24))
    np.testing.assert_allclose(found[valid], drives.by_hand(weights, source)[rows[valid]], rtol=1e-4, atol=1e-6)


def test_explain_says_how_the_rows_are_used():
    task = {"target": "tests.drives.Track", "rows": 8}
    given = config(evaluations={}, task=task, train__global_batch_size=8)
    parts = list(explain_parts(given, devices=None, collectives=False))
    assert "data: one pass through 10 drives takes 5 steps, in which 40.0% of the rows are idle." in parts


class Drawn(drives.Track):
    """It draws its predictions."""

    def figure(self, example, prediction):
        return np.zeros((4, 4, 3), np.uint8)


def test_what_cannot_continue_drives_is_refused(run, tmp_path):
    with pytest.raises(DataError, match=r"^data\.on_error=skip: .*Sequences continues drives in the rows of the batc"):
        train(config(data__on_error="skip"), tmp_path / "skip")
    total = {"task": {"target": "tests.drives.Total", "rows": 7}, "train__global_batch_size": 7}
    with pytest.raises(DataError, match=r"idle, and a metric has no entry for each row, which would leave them out"):
        train(config(**total, evaluations={"heldout": {"data": HELDOUT}}), tmp_path / "total")
    figures = {"data": HELDOUT, "figures": 2, "batch_size": 3}
    with pytest.raises(TaskError, match=r"figures: Drawn.predict carries memory from batch .* Remove figures"):
        train(config(task__target="tests.sequence_runs_test.Drawn", evaluations={"heldout": figures}), tmp_path / "two")
    with pytest.raises(DataError, match=r"predictions are in stored order, in which the rows of a batch of 4 do not"):
        Predictor(*predicted(run, 4))


def test_workers_read_the_same_rows(run, tmp_path):
    train(config(data__workers=2), tmp_path / "run")
    assert runs.rows(tmp_path / "run") == runs.rows(run)


@pytest.mark.multiprocess
def test_run_resumes_in_the_middle_of_drives_bitwise_equal_on_two_processes(tmp_path):
    """Without the last checkpoint of an unbroken run of one process."""
    given, run = config(mesh__data=2, evaluations__heldout__every="8 steps"), tmp_path / "run"
    train(given, tmp_path / "unbroken", devices=2)
    shutil.copytree(tmp_path / "unbroken", run)
    shutil.rmtree(run / "checkpoints/8")
    (run / "checkpoints/results.json").unlink(missing_ok=True)
    (run / "metrics.jsonl").unlink()
    launch = ("launch", "local", "--processes=2", "--devices-per-process=1", "--")
    done = runs.convoy(*launch, "train", f"--config={run}", f"--workdir={run}")
    assert done.returncode == 0, done.stdout + done.stderr
    unbroken = runs.rows(tmp_path / "unbroken")
    assert runs.rows(run) == {step: unbroken[step] for step in range(5, 9)}
    assert runs.rows(run, "heldout/error") == runs.rows(tmp_path / "unbroken", "heldout/error")
