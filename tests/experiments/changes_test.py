"""The examples that changed most: their order, and their figures."""

from pathlib import Path

import numpy as np
import pytest

from engine.experiments.changes import changes
from engine.experiments.joined import Joined
from engine.experiments.record import RunRecord
from engine.experiments.variants import Run
from engine.metrics import Mean, Metric, Roc
from engine.metrics.slices import Examples
from tests.experiments.made import mean_of

BEFORE, AFTER = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.5, 1.0, 0.0, 4.0])


def run(folder: Path = Path("a"), **config: object) -> Run:
    return Run(folder, RunRecord(path="", state="", config=config), {}, {}, {})


def joined(before: dict[str, Metric], after: dict[str, Metric]) -> Joined:
    indices = np.arange(10, 10 + 2 * len(BEFORE), 2)
    tags = {"scene": np.array(list("xxyy"))}
    sides = [[Examples(indices, {}, metrics, tags)] for metrics in (before, after)]
    return Joined("val", (sides[0], sides[1]))


def test_largest_changes_come_first_and_unchanged_examples_are_left_out():
    found = changes(1, joined({"loss": mean_of(BEFORE)}, {"loss": mean_of(AFTER)}), [run()], [run()], 10)
    assert [(x.index, x.first, x.second, x.tags["scene"]) for x in found] == [
        (14, 2, 0, "y"),
        (16, 3, 4, "y"),
        (10, 0, 0.5, "x"),
    ]
    assert len(changes(1, joined({"loss": mean_of(BEFORE)}, {"loss": mean_of(AFTER)}), [run()], [run()], 2)) == 2


def test_example_without_a_value_is_left_out():
    values = AFTER.astype(np.float32)
    after: Mean = Mean(values, np.array([1, 1, 0, 1], np.float32))  # pyright: ignore[reportArgumentType]
    found = changes(1, joined({"loss": mean_of(BEFORE)}, {"loss": after}), [run()], [run()], 10)
    assert [x.index for x in found] == [16, 10]


@pytest.mark.parametrize(
    ("config", "metric"),
    [({}, "loss"), ({"evaluations.val.score": "error"}, "error"), ({"evaluations.val.score": "roc/auc"}, "roc/auc")],
)
def test_score_of_the_evaluation_decides(config, metric):
    """Each example of `roc` has a positive and a negative, so that it has an area by itself."""
    labels = np.array([[1, 0]] * 4)
    rocs = [Roc.of(np.stack([x, np.full(4, 0.75)], 1), labels) for x in (BEFORE, AFTER)]
    metrics = [
        {"error": mean_of(-x), "loss": mean_of(x), "roc": roc} for x, roc in zip((BEFORE, AFTER), rocs, strict=True)
    ]
    found = changes(1, joined(*metrics), [run(**config)], [run()], 10)
    assert {x.metric for x in found} == {metric}
    assert [x.index for x in found] == ([14] if metric == "roc/auc" else [14, 16, 10])


def test_metrics_without_a_mean_have_no_changes():
    roc = Roc.of(BEFORE[:, None], np.ones((4, 1)))
    assert changes(1, joined({"roc": roc}, {"roc": roc}), [run()], [run()], 10) == []


def test_figures_that_were_drawn_are_named(tmp_path):
    runs = [run(tmp_path / "a"), run(tmp_path / "b")]
    for each in runs:
        each.__dict__["files"] = {"val": Path("7.parquet")}  # a cached property
    picture = tmp_path / "b/figures/val/7/0-example-14.png"
    picture.parent.mkdir(parents=True)
    picture.touch()
    found = changes(1, joined({"loss": mean_of(BEFORE)}, {"loss": mean_of(AFTER)}), runs[:1], runs[1:], 2)
    assert [x.figures for x in found] == [("", str(picture)), ("", "")]
