"""Conditions and orders of lists of runs."""

import pytest

from engine.base.errors import ConfigError
from engine.experiments.query import order, select
from engine.experiments.record import RunRecord


def run(path: str, accuracy: float | None, rate: float = 0.1, **fields) -> RunRecord:
    metrics = {} if accuracy is None else {"heldout/accuracy": accuracy}
    config = {"optimizer.learning_rate": rate, "task.target": "models.a.Forecast", "train.total": "3 epochs"}
    return RunRecord(path=path, state="done", metrics=metrics, config=config, **fields)


RUNS = [run("a", 0.5, 0.1), run("b", 0.9, 0.01), run("c", None, 1e-3, step=7)]


@pytest.mark.parametrize(
    ("conditions", "paths"),
    [
        ([], "abc"),
        (["heldout/accuracy>0.5"], "b"),
        (["heldout/accuracy >= 0.5", "optimizer.learning_rate < 5e-2"], "b"),
        (["step = 7"], "c"),
        (["heldout/accuracy != 0.5"], "bc"),
        (["task.target ~ Forecast"], "abc"),
        (["train.total = 3 epochs"], "abc"),
        (["train.total > 3"], ""),
        (["best ~ on"], ""),
        (["optimizer.learning_rate ~ 0.010"], ""),
        (["optimizer.learning_rate ~ 0.01"], "b"),
        (["heldout/accuracy > 2", "optimizer.learning_rate < 1"], ""),
    ],
)
def test_runs_that_meet_every_condition_are_kept(conditions, paths):
    assert [found.path for found in select(RUNS, conditions)] == list(paths)


@pytest.mark.parametrize(
    ("name", "paths"), [("heldout/accuracy", "abc"), ("-heldout/accuracy", "bac"), ("optimizer.learning_rate", "cba")]
)
def test_runs_are_sorted_with_those_without_a_value_last(name, paths):
    assert [found.path for found in order(RUNS, name)] == list(paths)


def test_numbers_come_before_texts():
    mixed = [RunRecord(path=str(i), state="done", config={"x": x}) for i, x in enumerate(("b", 3, "a", 2.5, True))]
    assert [found.config["x"] for found in order(mixed, "x")] == [True, 2.5, 3, "a", "b"]


def test_unknown_name_is_refused_with_near_ones():
    with pytest.raises(ConfigError, match=r"no run has .learning_rate.\. Near names: optimizer\.learning_rate"):
        select(RUNS, ["learning_rate > 1"])
    with pytest.raises(ConfigError, match="--sort: no run has"):
        order(RUNS, "-acuracy")
    with pytest.raises(ConfigError, match=r"Write a setting or one of path, state, .*, heldout/accuracy"):
        order(RUNS, "xyz")


def test_malformed_condition_is_refused_with_an_example():
    for text in ("accuracy", "heldout/accuracy >> 0.5", "heldout/accuracy => 0.5"):
        with pytest.raises(ConfigError, match="not a condition"):
            select(RUNS, [text])
