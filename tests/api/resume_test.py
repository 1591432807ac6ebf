"""Changes of the config and the data at a resume: forbidden, allowed with a flag, or always allowed."""

import shutil
from typing import Any

import numpy as np
import pytest
from flax import nnx

import engine
from engine.api import resume
from engine.api.prepared import prepare
from engine.api.resume import Accepted
from engine.api.saved_run import SavedRun
from engine.base.duration import UNKNOWN_LENGTH
from engine.base.errors import CheckpointError, ConfigError, DataError, RunError
from engine.config.text import to_text
from engine.parallel.mesh import make_mesh
from engine.run.directory import RunDirectory
from tests import runs, zoo

SHORT = dict(train__total="2 steps", checkpoint__every=None, evaluations={})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("resume") / "run"
    engine.train(runs.config(train__total="4 steps", train__ema_decay=0.5), workdir=path)
    return path


def test_any_change_is_allowed_before_the_first_checkpoint(tmp_path):
    directory = RunDirectory.open(tmp_path)
    directory.write_config_text(to_text(runs.config()))
    assert resume.check_config(runs.config(train__seed=7), directory, Accepted()) == []
    assert resume.check_data({}, directory, Accepted()) == ([], [])
    directory.close()


@pytest.mark.slow
def test_check_config_returns_evaluations_with_changed_data(run):
    settings = dict(train__total="4 steps", train__ema_decay=0.5)
    other = dict(
        heldout=dict(data=dict(target="tests.zoo.source", n=11)), new=dict(data=dict(target="tests.zoo.source"))
    )
    directory = RunDirectory(run)
    assert resume.check_config(runs.config(**settings), directory, Accepted()) == []
    assert resume.check_config(runs.config(**settings, evaluations=other), directory, Accepted()) == ["heldout"]


@pytest.mark.parametrize(("stored", "size"), [("64", 64), ("unknown", UNKNOWN_LENGTH)])
def test_stored_size_is_that_of_the_training_data(tmp_path, stored, size):
    directory = RunDirectory(tmp_path)
    assert resume.stored_size(directory) == 0
    directory.data.write_text(f'{{"data": {{"examples": "{stored}", "content": ""}}}}')
    assert resume.stored_size(directory) == size


def test_changed_identity_field_is_a_config_error(run):
    with pytest.raises(ConfigError) as error:
        engine.train(runs.config(train__total="4 steps", train__ema_decay=0.5, train__seed=7), workdir=run)
    assert "train.seed: 0 -> 7" in str(error.value)
    assert "--fresh" in str(error.value)
    assert runs.status(run)["state"] == "done"


@pytest.mark.slow
def test_changing_total_requires_accept_schedule_change(tmp_path):
    engine.train(runs.config(**SHORT), workdir=tmp_path)
    longer = runs.config(**{**SHORT, "train__total": "3 steps"})
    with pytest.raises(ConfigError, match=r"2 steps -> 3 steps changes the cosine.*--accept-schedule-change"):
        engine.train(longer, workdir=tmp_path)
    assert engine.train(longer, workdir=tmp_path, accept_schedule_change=True).step == 3


class Named(nnx.Module):
    """A model whose output layer is named "fc"."""

    def __init__(self, rngs):
        self.body, self.fc = nnx.Linear(zoo.SIZE, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x, rng=None):
        return self.fc(nnx.relu(self.body(x)))


class Fc(zoo.Classify):
    """A Task with this model."""

    def build(self, rngs):
        return Named(rngs)


@pytest.mark.slow
@pytest.mark.parametrize("is_earlier", [False, True])
def test_resume_keeps_the_choice_of_muon_with_which_the_run_was_started(tmp_path, is_earlier):
    """Earlier versions chose by names, so that Muon orthogonalised the output layer, and stored nothing."""
    settings: dict[str, Any] = dict(
        task__target=f"{__name__}.Fc", optimizer__target="optax.contrib.muon", optimizer__schedule="constant",
        optimizer__ns_steps=1, optimizer__adam_learning_rate=0.02, evaluations={}, checkpoint__every="2 steps",
        optimizer__warmup="2 steps",
    )  # fmt: skip
    config, whole, path = runs.config(**settings, train__total="4 steps"), tmp_path / "whole", tmp_path / "run"
    if is_earlier:
        with RunDirectory.open(whole) as directory:
            directory.write_config_text(to_text(config))
            trainer = engine.Trainer(
                Fc(), make_mesh(config.mesh), zoo.source(), config, directory,
                evaluation_sources={}, hooks={}, on_row=lambda row: None, on_message=lambda text: None, roles="",
            )  # fmt: skip
            trainer.run()
    else:
        engine.train(config, workdir=whole)
    shutil.copytree(whole, path)
    shutil.rmtree(path / "checkpoints/4")
    assert engine.train(config, workdir=path).step == 4
    rates = runs.rows(path, "adam_learning_rate")
    assert (rates[3], rates[4]) == (pytest.approx(0.02), pytest.approx(0.02))
    directory = RunDirectory(path)
    assert directory.optimizer.exists() != is_earlier
    program, _ = prepare(config, directory=directory).build_program()
    assert ("fc/kernel" in program.spec.optimizer.roles.matrices) == is_earlier
    zoo.assert_equal(*(SavedRun(run).restore(4, program) for run in (whole, path)))
    if not is_earlier:
        assert runs.rows(whole, "adam_learning_rate")[2] == pytest.approx(0.01), "half of the warm-up"
        directory.optimizer.write_text("[]")
        with pytest.raises(RunError, match=r"optimizer.json is damaged .* Restore it from a backup, or start a new"):
            engine.train(config, workdir=path)
        directory.optimizer.unlink()
        with pytest.raises(CheckpointError, match="is not a checkpoint of this model"):
            engine.train(config, workdir=path)


class Timed(zoo.Classify):
    """A Task whose loss depends on the length of the run."""

    def loss(self, model, batch, rng, context):  # pyright: ignore[reportIncompatibleMethodOverride]
        return (1 - context.step / context.total_steps) * super().loss(model, batch, rng)


@pytest.mark.slow
def test_changing_total_requires_a_flag_for_code_that_reads_it(tmp_path):
    settings = dict(task__target=f"{__name__}.Timed", optimizer__schedule="constant", checkpoint__every=None)
    settings |= dict(evaluations={}, data__target="tests.zoo.timed")

    def train(total, **accepted):
        return engine.train(runs.config(**settings, train__total=f"{total} steps"), workdir=tmp_path, **accepted)

    train(2)
    text = "2 steps -> 3 steps changes context.total_steps, which Timed and tests.*TimedSource.transform read[.]"
    with pytest.raises(ConfigError, match=text):
        train(3)
    assert train(3, accept_schedule_change=True).step == 3
    assert train(3).step == 3


@pytest.mark.slow
def test_total_below_the_newest_checkpoint_is_refused_before_anything_is_written(tmp_path):
    settings = dict(evaluations={}, checkpoint__every="3 steps")
    engine.train(runs.config(train__total="6 steps", **settings), workdir=tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("config.txt", "data.json", "status.json", "log.txt")}
    found = {"5 steps": "5 steps", "80 examples": "80 examples, which is 5 steps", "1 epochs": "1 epoch, which is 4 st"}
    for total, text in found.items():
        with pytest.raises(ConfigError) as error:
            engine.train(runs.config(train__total=total, **settings), workdir=tmp_path, accept_schedule_change=True)
        message = f"train.total: found {text}"
        assert str(error.value).startswith(message) and "Allowed: 6 steps or more" in str(error.value)
        assert f"convoy train --config={tmp_path} --workdir={tmp_path}, or" in str(error.value)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    again = engine.train(tmp_path, workdir=tmp_path)  # the printed command
    assert (again.state, again.step) == ("done", 6)


def test_total_is_compared_with_the_size_of_the_accepted_new_data(tmp_path):
    data = write(tmp_path / "data.npz")
    settings = dict(SHORT, optimizer__schedule="constant", data=data)
    engine.train(runs.config(**{**settings, "train__total": "5 steps"}), workdir=tmp_path / "run")
    config = runs.config(**{**settings, "train__total": "1 epoch"})
    write(tmp_path / "data.npz", n=65, seed=1)
    assert engine.train(config, workdir=tmp_path / "run", accept_data_change=True).step == 5  # 65 examples: 5 steps
    write(tmp_path / "data.npz", n=64, seed=1)
    with pytest.raises(ConfigError, match=r"found 1 epoch, which is 4 steps, but .* a checkpoint of step 5\.") as error:
        engine.train(config, workdir=tmp_path / "run", accept_data_change=True)
    assert '--config.train.total="5 steps", or' in str(error.value), "the stored total is too short as well"


@pytest.mark.slow
def test_total_equal_to_the_newest_checkpoint_ends_the_run(tmp_path):
    settings = dict(checkpoint__every="3 steps", optimizer__schedule="constant")
    engine.train(runs.config(train__total="6 steps", **settings), workdir=tmp_path)
    for total in ("6 steps", "96 examples", "1.5 epochs"):
        summary = engine.train(runs.config(train__total=total, **settings), workdir=tmp_path)
        assert (summary.state, summary.step, summary.total_steps) == ("done", 6, 6)
        assert f"train.total: {total}\n" in (tmp_path / "config.txt").read_text()
    assert "this run is finished" in (tmp_path / "log.txt").read_text()
    shutil.rmtree(tmp_path / "checkpoints/6")
    summary = engine.train(runs.config(train__total="3 steps", **settings), workdir=tmp_path)
    assert (summary.state, summary.step, summary.total_steps) == ("done", 3, 3)
    assert 3 in runs.rows(tmp_path, "heldout/loss"), "the evaluation at the end of the shortened run"
    assert runs.status(tmp_path)["state"] == "done"


@pytest.mark.slow
def test_mesh_periods_and_logging_may_change(tmp_path):
    engine.train(runs.config(**SHORT, optimizer__schedule="constant"), workdir=tmp_path)
    config = runs.config(
        optimizer__schedule="constant",
        train__total="4 steps",
        mesh__fsdp=8,
        train__accumulate=2,
        log__every="2 steps",
        evaluations={},
    )
    assert engine.train(config, workdir=tmp_path).step == 4
    assert "train.total: 4 steps\n" in (tmp_path / "config.txt").read_text()


def test_changed_data_section_drops_results_of_the_evaluation(tmp_path):
    engine.train(runs.config(train__total="4 steps", checkpoint__best="heldout/loss"), workdir=tmp_path)
    before = runs.rows(tmp_path, "heldout/loss")[4]
    other = dict(heldout=dict(data=dict(target="tests.zoo.source", n=11, seed=3), every="4 steps"))
    summary = engine.train(
        runs.config(train__total="4 steps", checkpoint__best="heldout/loss", evaluations=other), workdir=tmp_path
    )
    after = runs.rows(tmp_path, "heldout/loss")[4]
    assert summary.best["heldout/loss"] == (4, after)
    assert after != before


def stored(path):
    """A source that reads a file."""
    with np.load(path) as arrays:
        return engine.ArraySource(dict(arrays))


def write(path, n=64, seed=0):
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **zoo.examples(n, seed))
    return dict(target="tests.api.resume_test.stored", path=str(path))


def test_changed_dataset_requires_accept_data_change(tmp_path):
    data = write(tmp_path / "data.npz")
    run, short = tmp_path / "run", {**SHORT, "optimizer__schedule": "constant", "data": data}
    engine.train(runs.config(**short), workdir=run)
    write(tmp_path / "data.npz", n=65, seed=1)
    longer = runs.config(**{**short, "train__total": "3 steps"})
    with pytest.raises(DataError) as error:
        engine.train(longer, workdir=run)
    assert f"{run} holds a run on another dataset:\n  data: examples: 64 -> 65\n  data: content: " in str(error.value)
    assert "--accept-data-change" in str(error.value)
    assert engine.train(longer, workdir=run, accept_data_change=True).step == 3
    assert "the dataset has changed (--accept-data-change): data: examples: 64 -> 65" in (run / "log.txt").read_text()
    assert engine.train(longer, workdir=run).step == 3  # the changed dataset is stored with the run


def test_changed_evaluation_content_is_reported_and_drops_results(tmp_path):
    data = write(tmp_path / "data.npz", n=37)
    config = runs.config(train__total="4 steps", evaluations__heldout__data=data, checkpoint__best="heldout/loss")
    engine.train(config, workdir=tmp_path / "run")
    before = runs.rows(tmp_path / "run", "heldout/loss")[4]
    write(tmp_path / "data.npz", n=37, seed=5)
    summary = engine.train(config, workdir=tmp_path / "run")
    after = runs.rows(tmp_path / "run", "heldout/loss")[4]
    assert summary.best["heldout/loss"] == (4, after) and after != before
    message = (
        "the dataset of heldout has changed, so its earlier results are dropped: evaluations.heldout.data: content"
    )
    assert message in (tmp_path / "run/log.txt").read_text()
