"""A tracker shows the settings of a run, those that are no defaults, its code and its parent."""

from engine.run import code
from engine.trackers.run_info import read_run
from tests.trackers.made import make_run, training_row


def test_settings_hyperparameters_and_tags_come_from_the_files(tmp_path):
    directory = make_run(tmp_path / "a", train__seed=7, init__checkpoint="runs/parent", log__every="3 steps")
    found = code.Code(commit="abc123", dirty=True, packages={"jax": "1.2"}, time="now")
    directory.code.write_text(code.to_text(found))
    run = read_run(directory)
    assert (run.name, run.project) == ("a", "zoo")
    assert run.settings["train.seed"] == 7 and run.settings["log.every"] == "3 steps"
    assert run.hyperparameters["train.seed"] == 7 and "optimizer.learning_rate" in run.hyperparameters
    assert "log.every" not in run.hyperparameters and "optimizer.clip_norm" not in run.hyperparameters
    assert run.tags == {
        "config": "zoo", "directory": str(tmp_path / "a"), "version.jax": "1.2", "git.commit": "abc123",
        "git.dirty": "yes", "parent": "runs/parent",
    }  # fmt: skip


def test_run_starts_with_its_first_row(tmp_path):
    assert read_run(make_run(tmp_path / "a", training_row(1, 1.0), training_row(2, 1.0))).started == 101.125
    assert read_run(make_run(tmp_path / "b")).started > 1e9


def test_run_without_code_and_parent_has_no_such_tags(tmp_path):
    assert set(read_run(make_run(tmp_path / "a")).tags) == {"config", "directory"}
