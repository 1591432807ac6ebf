"""The record of a run: its values, and what is said about a damaged directory."""

import pytest

from engine.experiments import record
from tests.experiments.made import make_run


def test_record_has_the_results_of_the_best_checkpoint_and_its_step(tmp_path):
    results = {
        0: {"heldout/loss": 0.1},
        4: {"heldout/loss": 0.5, "heldout/accuracy": 0.9},
        8: {"heldout/loss": 0.7, "heldout/accuracy": 0.8},
    }
    run = make_run(
        tmp_path / "a",
        results,
        step=10,
        total_steps=10,
        metrics={"loss": 0.1, "heldout/loss": 0.7},
        checkpoint__best="heldout/loss",
        checkpoint__best_mode="min",
    )
    found = record.read_record(run, "a")
    assert (found.state, found.step, found.best, found.problem) == ("done", 10, 4, "")
    assert found.metrics == {"loss": 0.1, "heldout/loss": 0.5, "heldout/accuracy": 0.9}


def test_values_are_metrics_settings_and_fields(tmp_path):
    run = make_run(tmp_path / "a", metrics={"loss": 0.1}, optimizer__learning_rate=0.25, init__checkpoint="runs/base")
    found = record.read_record(run, "a")
    values = [found.value(name) for name in ("loss", "optimizer.learning_rate", "train.total", "state", "best", "odd")]
    assert values == [0.1, 0.25, "10 steps", "done", None, None]
    assert found.parent == "runs/base"


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("status.json", "{", "status.json: is not the status of a run"),
        ("checkpoints/results.json", "[]", "results.json: cannot be read"),
        ("config.txt", b"\xff", "config.txt: cannot be read"),
        ("config.txt", "[1\n", "config.txt: cannot be read (it has no settings)."),
        ("config.txt", "# 3 settings\nname: a\n", "(it has 1 settings, but its first line states 3)."),
    ],
)
def test_what_cannot_be_read_is_named_and_the_rest_is_kept(tmp_path, name, text, problem):
    run = make_run(tmp_path / "a", {4: {"x": 1.0}}, train__seed=7)
    (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    found = record.read_record(run, "a")
    assert problem in found.problem
    assert found.state == (record.DAMAGED if name == "status.json" else "done")
    assert found.value("train.seed") == (None if name == "config.txt" else 7)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("None", None),
        ("True", True),
        ("'3'", "3"),
        ("5 steps", "5 steps"),
        ("{[]: 1}", "{[]: 1}"),
    ],
)
def test_text_of_a_config_is_read_as_its_value(text, value):
    assert record.plain(text) == value and type(record.plain(text)) is type(value)


def test_names_of_earlier_versions_are_those_of_today(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "config.txt").write_text("task.target: models.digits.Digits\ndata.target: mine.scans\ntask.width: 3\n")
    assert record.read_record(run, "a").config == {
        "task.target": "convoy_zoo.models.digits.Digits", "data.target": "mine.scans", "task.width": 3,
    }  # fmt: skip
