"""Reading the config and checkpoints of an existing run."""

import pytest

import engine
from engine import entry
from engine.config.errors import CheckpointError, RunError
from engine.run.directory import RunDirectory
from engine.saved_run import SavedRun, newest_checkpoint
from tests import runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "run"
    engine.train(runs.config(train__total="4 steps", checkpoint__every="2 steps"), workdir=path)
    return SavedRun(path)


def test_choose_accepts_a_number_or_latest(run):
    assert [run.choose(step) for step in (None, "latest", 4, "4", 2)] == [4, 4, 4, 4, 2]
    with pytest.raises(CheckpointError, match=r"no checkpoint '7'. Found: 2, 4, latest, best"):
        run.choose("7")


def test_choose_returns_the_best_step_by_default(tmp_path):
    settings = dict(train__total="8 steps", checkpoint__best="heldout/loss", checkpoint__best_mode="max")
    summary = engine.train(runs.config(**settings), workdir=tmp_path)
    best, _ = summary.best["heldout/loss"]
    assert SavedRun(tmp_path).choose(None) == SavedRun(tmp_path).choose("best") == best == 4
    assert SavedRun(tmp_path).choose("latest") == 8


def test_restore_returns_the_state_of_the_step(run):
    assert int(run.restore(2, entry.program(run.config)[0]).step) == 2


def test_checkpoints_are_listed_oldest_first(run):
    assert [info.step for info in run.checkpoints()] == [2, 4]


def test_choose_without_a_checkpoint_is_an_error(run, tmp_path):
    directory = RunDirectory.open(tmp_path)
    directory.write_config_text(run.directory.read_config_text())
    directory.close()
    assert newest_checkpoint(RunDirectory(tmp_path)) is None and newest_checkpoint(run.directory) == 4
    with pytest.raises(CheckpointError, match=r"no checkpoint yet. Train first: convoy train --config="):
        SavedRun(tmp_path).choose(None)
    with pytest.raises(RunError, match="is not a run"):
        SavedRun(tmp_path / "nothing")
