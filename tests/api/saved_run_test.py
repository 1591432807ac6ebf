"""Reading the config and checkpoints of an existing run."""

import json
import os
import shutil
import sys
from typing import Any

import jax
import pytest
from flax import nnx
from safetensors.numpy import load_file

import engine
from engine.api import prepared
from engine.api.resume import newest_checkpoint
from engine.api.saved_run import SavedRun
from engine.base.errors import CheckpointError, ConfigError, RunError
from engine.checkpoint import warm_start
from engine.checkpoint.async_save import Saver
from engine.checkpoint.store import CheckpointStore
from engine.cli.main import main
from engine.cluster import group
from engine.config.schema import Init
from engine.run.directory import RunDirectory
from engine.run.lease import ALWAYS_GRANTED
from engine.storage.background import StorageTimeout
from engine.training.state import evaluation_params
from tests import runs, zoo


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "run"
    engine.train(runs.config(train__total="4 steps", checkpoint__every="2 steps"), workdir=path)
    return SavedRun(path)


def test_choose_accepts_a_number_or_latest(run):
    assert [run.choose(step) for step in (None, "latest", 4, "4", 2)] == [4, 4, 4, 4, 2]
    assert run.choose("best") == 4  # the newest, since the run selects no best checkpoint
    with pytest.raises(CheckpointError, match=r"no checkpoint '7'. Found: 2, 4, latest, best"):
        run.choose("7")


def test_one_process_of_several_may_choose_alone(run, monkeypatch):
    """Otherwise the next broadcast of a run would give the others what this one has sent."""

    def communicate(*args):
        raise AssertionError("communicates")

    monkeypatch.setattr(group, "broadcast", communicate)
    assert run.describe_choice(run.choose(None), None) == "step 4 (the newest)"


def test_choose_returns_the_best_step_by_default(tmp_path):
    settings = dict(train__total="8 steps", checkpoint__best="heldout/loss", checkpoint__best_mode="max")
    summary = engine.train(runs.config(**settings), workdir=tmp_path)
    best, _ = summary.best["heldout/loss"]
    assert SavedRun(tmp_path).choose(None) == SavedRun(tmp_path).choose("best") == best == 4
    assert SavedRun(tmp_path).choose("latest") == 8


def test_restore_returns_the_state_of_the_step(run):
    assert int(run.restore(2, prepared.program(run.config)[0]).step) == 2


def test_checkpoint_is_read_although_its_manifest_cannot_be_locked(run, monkeypatch):
    def fail(directory):
        raise StorageTimeout("no answer")

    monkeypatch.setattr("engine.api.saved_run.read_lock", fail)
    assert engine.load(run.directory.path, step=2).step == 2


def test_checkpoints_are_listed_oldest_first(run):
    assert [info.step for info in run.checkpoints()] == [2, 4]


def test_choose_without_a_checkpoint_is_an_error(run, tmp_path):
    directory = RunDirectory.open(tmp_path)
    directory.write_config_text(run.directory.read_config_text())
    directory.close()
    assert newest_checkpoint(RunDirectory(tmp_path)) is None and newest_checkpoint(run.directory) == 4
    with pytest.raises(CheckpointError, match=r"no checkpoint yet. Train first: convoy train --config=.* --workdir=.*"):
        SavedRun(tmp_path).choose(None)
    with pytest.raises(RunError, match="is not a run"):
        SavedRun(tmp_path / "nothing")


def from_file(file, n=64, seed=0):
    """The examples of tests/zoo.py, if the file exists."""
    assert os.path.exists(file)
    return zoo.source(n, seed)


@pytest.fixture(scope="module")
def without_data(tmp_path_factory):
    """A run on eight devices with averaged weights and batch statistics, whose training data is gone."""
    folder = tmp_path_factory.mktemp("loaded")
    (folder / "data").touch()
    settings = dict(train__total="4 steps", train__ema_decay=0.5, mesh__fsdp=4, task__model="cnn")
    data = {"target": "tests.api.saved_run_test.from_file", "file": str(folder / "data")}
    engine.train(runs.config(data=data, **settings), workdir=folder / "run")
    (folder / "data").unlink()
    return folder / "run"


@pytest.mark.slow
def test_load_returns_the_model_that_an_evaluation_measures(without_data):
    loaded = engine.load(without_data)
    assert (loaded.step, loaded.config.train.ema_decay, loaded.task) == (4, 0.5, zoo.Classify("cnn"))
    assert jax.tree.leaves(nnx.state(loaded.model))[0].devices() == {jax.devices()[0]}
    examples = zoo.examples(37, 9)
    means: Any = loaded.task.evaluate(loaded.model, examples)
    measured = engine.evaluate(without_data)
    assert measured["step"] == 4
    for name in ("loss", "accuracy"):
        assert float(means[name].total.sum() / means[name].weight.sum()) == pytest.approx(measured[f"heldout/{name}"])


def test_export_writes_the_loaded_weights_without_the_training_data(without_data, tmp_path):
    names = engine.export(without_data, tmp_path / "weights.safetensors")
    loaded = nnx.to_flat_state(nnx.state(engine.load(without_data).model, (nnx.Param, nnx.BatchStat)))
    exported = load_file(tmp_path / "weights.safetensors")
    assert sorted(names) == sorted("/".join(map(str, key)) for key, _ in loaded)
    for key, value in loaded:
        assert (exported["/".join(map(str, key))] == value.get_value()).all()


def test_load_of_another_model_names_the_arrays_that_differ(without_data, tmp_path):
    copy = shutil.copytree(without_data, tmp_path / "run")
    config = (copy / "config.txt").read_text()
    (copy / "config.txt").write_text(config.replace("task.model: cnn", "task.model: mlp"))
    with pytest.raises(CheckpointError, match=r"is not a checkpoint of this model:\nparams/head/kernel: checkpoint"):
        engine.load(copy)


def test_code_is_imported_from_the_folder_of_the_run_and_explained_when_it_is_gone(tmp_path, monkeypatch, capsys):
    folder, path = tmp_path / "project", tmp_path / "run"
    folder.mkdir()
    (folder / "elsewhere_task.py").write_text("from tests.zoo import Classify\nclass Elsewhere(Classify): pass\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        engine.train(runs.config(train__total="1 step", task__target="elsewhere_task.Elsewhere"), workdir=path)
    del sys.modules["elsewhere_task"]
    stored = json.loads((path / "code.json").read_text())
    assert stored["folders"][0] == str(folder) and stored["attempt"] == 1
    assert main(["checkpoints", str(path)]) == 0
    assert f"code: {folder}" in capsys.readouterr().out

    monkeypatch.setattr(sys, "path", list(sys.path))
    assert type(engine.load(path).task).__name__ == "Elsewhere"
    assert sys.path.pop() == str(folder)
    del sys.modules["elsewhere_task"]
    folder.rename(tmp_path / "moved")
    text = (
        rf"there is no module 'elsewhere_task' to import.* The run was started with the code in {folder}.*"
        rf"{folder} does not exist here: copy the code there, or set PYTHONPATH\."
    )
    with pytest.raises(ConfigError, match=text):
        engine.load(path)

    inside = shutil.copytree(tmp_path / "moved", path / "code")  # as a stranger could
    (path / "code.json").write_text(json.dumps({**stored, "folders": [str(inside)]}))
    with pytest.raises(ConfigError, match="there is no module 'elsewhere_task'"):
        engine.load(path)


@pytest.mark.slow
def test_schedule_free_run_evaluates_exports_predicts_and_initializes_with_its_averages(tmp_path):
    """Checkpoints of earlier versions lack them; only a resume reads those."""
    settings: dict[str, Any] = dict(
        optimizer__target="optax.contrib.schedule_free_sgd", optimizer__learning_rate=0.5, checkpoint__every="2 steps",
        optimizer__schedule="constant", evaluations__heldout__every="2 steps",
    )  # fmt: skip
    config, path = runs.config(**settings, train__total="4 steps"), tmp_path / "run"
    engine.train(config, workdir=path)
    saved, program = SavedRun(path), prepared.program(config)[0]
    state = saved.restore(4, program)
    averages = jax.device_get(evaluation_params(state, use_ema=True))
    assert state.ema is None and abs(averages["head/kernel"] - jax.device_get(state.params)["head/kernel"]).max() > 1e-3
    assert engine.evaluate(path)["heldout/loss"] == runs.rows(path, "heldout/loss")[4]
    engine.export(path, tmp_path / "weights.safetensors")
    zoo.assert_equal(load_file(tmp_path / "weights.safetensors"), averages)
    zoo.assert_equal(dict(program.spec.model.params_of(engine.load(path).model)), averages)
    start = warm_start.read_weights(Init(checkpoint=str(path)), program.abstract_state.to_tree(), {})
    zoo.assert_equal(dict(start.params), averages)
    shutil.copytree(path, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/4")
    engine.train(config, workdir=tmp_path / "again")
    zoo.assert_equal(SavedRun(tmp_path / "again").restore(4, program), state)
    # A checkpoint as earlier versions wrote it.
    store = CheckpointStore(tmp_path / "old")
    trainer = Saver(store.directory, 60.0, ALWAYS_GRANTED)
    trainer.save(4, state.to_tree(), saved._store.position(4), saved._store.config_text(4))
    trainer.wait()
    stored, partial = store.restore(4, program.abstract_state.to_tree(), partial=()), ("ema",)
    zoo.assert_equal(stored, state.to_tree())
    with pytest.raises(CheckpointError, match=r"without the averaged weights, which are .* larger train.total"):
        store.restore(4, program.evaluation.abstract_weights(averaged=True).to_tree(), partial=partial)
