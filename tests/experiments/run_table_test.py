"""The table of runs."""

from datetime import UTC, datetime

from engine.experiments import run_table
from engine.experiments.record import RunRecord

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BASE = {"name": "a", "checkpoint.best": "val/miss", "train.seed": 0, "log.every": "1 step", "init.checkpoint": ""}


def run(path: str, metrics: dict[str, float], **settings) -> RunRecord:
    config = BASE | {name.replace("__", "."): value for name, value in settings.items()}
    updated = "2026-01-01T11:00:00+00:00"
    return RunRecord(path=path, state="done", step=5, total_steps=9, updated=updated, metrics=metrics, config=config)


def test_table_has_progress_age_results_and_the_settings_that_differ():
    runs = [
        run("a", {"loss": 1.0, "val/ade": 2.0, "val/miss": 0.25}),
        run(
            "group/b",
            {"loss": 1.0, "val/ade": 1.5},
            train__seed=1,
            init__checkpoint="a",
            name="b",
            log__every="2 steps",
        ),
        RunRecord(path="c", state="damaged"),
    ]
    assert run_table.table(runs, NOW).splitlines() == [
        "run      state    step  age         val/miss  val/ade  train.seed  started from",
        "a        done     5/9   1 h 00 min  0.25      2        0",
        "group/b  done     5/9   1 h 00 min  -         1.5      1           a",
        "c        damaged  0     -           -         -        -",
    ]


def test_runs_without_evaluations_show_their_loss():
    assert run_table.metric_columns([run("a", {"loss": 1.0, "grad_norm": 2.0})]) == ["loss"]


def test_settings_beyond_the_columns_are_counted():
    runs = [run("a", {}, **{f"x{i}": i for i in range(9)}), run("b", {}, **{f"x{i}": -i - 1 for i in range(9)})]
    assert run_table.table(runs, NOW).splitlines()[-1] == "4 more settings differ: --json prints all."


def test_files_that_a_sweep_gives_to_its_trials_are_no_difference():
    name = "hooks__sweep__decisions"
    assert run_table.differing_settings([run("a", {}, **{name: "a.json"}), run("b", {}, **{name: "b.json"})]) == []
