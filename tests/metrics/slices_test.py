"""Metrics of slices are those of their examples alone, and the worst examples are exact for any split into batches."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import TaskError
from engine.metrics import AveragePrecision, DetectionScore, Mean, Metric, Quantiles, RootMeanSquare, Sum, collected
from engine.metrics.results import scalars
from engine.metrics.slices import COUNT, Ranking, SlicedMerger, SlicedStates, rank_slices
from engine.metrics.state import compute
from tests.properties import examples

SIZE = 8  # rows of a batch


class Kept(Metric):
    """A collected field."""

    values: jax.Array = collected()

    def compute(self):
        return {"all": np.sort(self.values), "largest": self.values.max(initial=-np.inf)}


def metrics(x: Any) -> dict[str, Metric]:
    return {"loss": Mean.of(x, jnp.isfinite(x)), "count": Sum.of(jnp.ones_like(x)), "kept": Kept(x)}


def merged(x: np.ndarray, ranking: Ranking, size: int, *, addresses=lambda positions: positions) -> SlicedMerger:
    """Returns the states of values `[n]` in batches; the last one is padded."""
    states = SlicedStates(jax.eval_shape(lambda: metrics(jnp.zeros(size))), ["low", "none"], ranking, "evaluations.a")
    merger = states.merger(addresses)
    for first in range(0, len(x), size):
        part = x[first : first + size]
        rows = (np.arange(size) < len(part)).astype(np.float32)
        batch = jnp.asarray(np.pad(part, (0, size - len(part)), mode="edge"), jnp.float32)
        masks = {"low": batch < 0, "none": jnp.zeros(size, bool)}
        merger.add(states.reduce(metrics(batch), jnp.asarray(rows), masks), first)
    return merger


@pytest.mark.slow
@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0, np.nan]), min_size=1, max_size=20), st.booleans())
@examples(15)
def test_slices_and_worst_examples_do_not_depend_on_the_batches(values, largest):
    x = np.array(values)
    for size in (1, SIZE):
        found = merged(x, Ranking(4, None, largest), size)
        low, whole = x[x < 0], found.metrics()
        slices = dict(found.slices())
        assert whole["count"].compute() == len(x)
        assert slices["low"][COUNT].compute() == slices["low"]["count"].compute() == len(low)
        assert slices["low"]["loss"].compute() == pytest.approx(low.mean() if len(low) else np.nan, nan_ok=True)
        assert slices["low"]["kept"].compute()["all"].tolist() == sorted(low)
        assert slices["none"][COUNT].compute() == 0
        assert np.isnan(slices["none"]["loss"].compute())
        scores, indices = found.worst()
        known = [i for i in np.argsort(-x if largest else x, kind="stable") if not np.isnan(x[i])]
        assert indices.tolist() == known[:4]
        assert scores.tolist() == x[known[:4]].tolist()


@pytest.mark.parametrize("largest", [True, False])
def test_examples_for_which_the_model_gives_nan_are_the_worst(largest):
    x, rows = np.array([1.0, np.nan, 3.0, np.nan, 2.0, np.nan]), np.array([1.0, 1, 1, 1, 1, 0])
    for size in (1, 2, 6):
        states = SlicedStates({"loss": Mean.of(jnp.zeros(size))}, [], Ranking(3, None, largest), "evaluations.a")
        merger = states.merger()
        for first in range(0, 6, size):
            part = slice(first, first + size)
            merger.add(states.reduce({"loss": Mean.of(jnp.array(x[part]))}, jnp.array(rows[part]), {}), first)
        scores, indices = merger.worst()
        assert indices.tolist() == [1, 3, 2 if largest else 0]
        np.testing.assert_array_equal(scores, x[indices])


def test_equal_scores_are_in_the_order_of_the_dataset():
    order = np.array([5, 0, 3, 1, 4, 2])
    for size in (2, SIZE):
        found = merged(np.array([1.0, 1, 1, 1, 0, 1]), Ranking(3), size, addresses=lambda positions: order[positions])
        assert found.worst()[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [1, SIZE, 6])
def test_collected_rows_are_in_the_order_of_the_dataset(size):
    order = np.array([5, 0, 3, 1, 4, 2])
    x = np.array([-5.0, 0, 3, -1, -4, 2])
    found = merged(x, Ranking(), size, addresses=lambda positions: order[positions])
    kept = cast(Kept, found.metrics()["kept"]).values
    assert kept.tolist() == x[np.argsort(order)].tolist()
    low = cast(Kept, dict(found.slices())["low"]["kept"]).values
    assert low.tolist() == [-1, -4, -5]


@pytest.mark.parametrize("score", ["kept/largest", "rms"])
def test_score_is_the_value_of_any_metric_over_one_example(score):
    x = jnp.array([3.0, -5, 4])
    found: dict[str, Metric] = {"kept": Kept(x), "rms": RootMeanSquare.of(x[:, None])}
    states = SlicedStates(found, [], Ranking(2, score), "evaluations.a")
    merger = states.merger()
    merger.add(states.reduce(found, jnp.array([1.0, 1, 0]), {}), 10)
    scores, indices = merger.worst()
    assert (indices.tolist(), scores.tolist()) == (([10, 11], [3, -5]) if score != "rms" else ([11, 10], [5, 3]))


CALLS: list[int] = []


def counted(predicted, boxes):
    CALLS.append(len(predicted))
    return -np.linalg.norm(predicted - boxes, axis=-1)


RANGES = ((0.0, 2.0), (2.0, 20.0))


def detections(rows: int) -> dict[str, Metric]:
    """Random detections of 6 predictions and 3 labels; the last example has no labels."""
    rng = np.random.default_rng(0)
    predicted, boxes = rng.normal(size=(rows, 6, 9)), rng.normal(size=(rows, 3, 9))
    found = rng.random((rows, 6)), rng.integers(0, 2, (rows, 6))
    labels, where = rng.integers(0, 2, (rows, 3)), np.arange(rows)[:, None] < rows - 1
    ignored = rng.random((rows, 3)) < 0.2
    return {
        "ap": AveragePrecision.of(
            predicted[..., :2], *found, boxes[..., :2], labels, where, classes=("a", "b"), ranges=RANGES,
            match=counted, thresholds=[-2, -0.5], ignored=ignored, area="sum",
        ),
        "score": DetectionScore.of(predicted, *found, boxes, labels, where, classes=("a", "b"), ranges=RANGES),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("score", ["ap", "ap/b", "ap/0-2/a", "score", "score/ap/a", "score/2-20", "score/scale_error"])
def test_scores_of_detections_are_those_of_one_call_for_each_example_but_match_together(score):
    rows, size = 9, 3
    found, name = detections(rows), score.partition("/")[0]
    states = SlicedStates(found, [], Ranking(rows, score), "evaluations.a")
    merger = states.merger()
    CALLS.clear()
    for first in range(0, rows, size):
        batch = jax.tree.map(lambda x, first=first: x[first : first + size], found)
        merger.add(states.reduce(batch, jnp.ones(size), {}), first)
    calls = len(CALLS)
    scores, indices = merger.worst()
    alone = [
        scalars(compute(name, jax.tree.map(lambda x, i=i: np.asarray(x[i : i + 1]), found[name])))[score]
        for i in range(rows)
    ]
    assert sorted(indices.tolist()) == [i for i in range(rows) if not np.isnan(alone[i])]
    assert scores.tolist() == [alone[i] for i in indices]
    assert len(set(alone)) > 3
    assert calls == (6 * rows // size if name == "ap" else 0)  # once for each rank of a prediction


def test_score_sees_the_types_of_the_whole_evaluation():
    class Types(Metric):
        kept: jax.Array = collected()

        def compute(self):
            return float(self.kept.dtype == np.float32)

    found: dict[str, Metric] = {"loss": Types(jnp.ones(1, jnp.bfloat16))}
    states = SlicedStates(found, [], Ranking(1), "evaluations.a")
    merger = states.merger()
    merger.add(states.reduce(found, jnp.ones(1), {}), 0)
    assert merger.metrics()["loss"].compute() == 1
    assert merger.worst()[0].tolist() == [1]


def test_metric_that_gives_another_number_of_results_than_examples_is_an_error():
    class Once(Metric):
        kept: jax.Array = collected()

        def compute(self):
            return 0.0

        def compute_each(self, key):
            yield 0.0

    found: dict[str, Metric] = {"loss": Once(jnp.ones(3))}
    states = SlicedStates(found, [], Ranking(1), "evaluations.a")
    with pytest.raises(
        TaskError, match=r"^Once\.compute_each gave 1 results for 2 examples\. Yield one result for each"
    ):
        states.merger().add(states.reduce(found, jnp.array([1.0, 1, 0]), {}), 0)


def test_slices_are_ranked_from_the_worst_without_those_that_have_no_score():
    scores = {"a": 1.0, "b": np.nan, "c": 2.0, "d": 1.0}
    assert rank_slices(scores, largest=True) == ["c", "a", "d"]
    assert rank_slices(scores, largest=False) == ["a", "d", "c"]


def test_states_without_slices_and_ranking_reduce_as_before():
    found = metrics(jnp.ones(3))
    states = SlicedStates(found, [], Ranking(), "evaluations.a")
    plain, sliced = (f(found, jnp.ones(3)) for f in (states.states.reduce, lambda m, r: states.reduce(m, r, {})))
    assert plain.keys() == sliced.keys()


@pytest.mark.parametrize(
    ("found", "ranking", "text"),
    [
        ({"a": Sum(jnp.ones(2))}, Ranking(3), r"^evaluations.a.worst: there is no metric 'loss' that could rank .* a,"),
        (
            {"kept": Quantiles.of(jnp.ones(2))},
            Ranking(3, "kep/p50"),
            r"score = 'kep/p50': no such metric.* Metrics here: kept",
        ),
        (
            {"loss": Mean(jnp.ones(()), jnp.ones(()))},
            Ranking(3),
            r"'loss' is one number for the whole batch. Return Mean.of\(values\) with values \[batch, ...\]",
        ),
    ],
)
def test_metrics_that_rank_no_example_are_errors(found, ranking, text):
    with pytest.raises(TaskError, match=text):
        SlicedStates(found, [], ranking, "evaluations.a")


def test_metric_with_the_name_of_the_number_of_examples_is_an_error():
    found: dict[str, Metric] = {COUNT: Sum(jnp.ones(2))}
    SlicedStates(found, [], Ranking(), "evaluations.a")
    with pytest.raises(TaskError, match=r"^evaluations.a.slices: 'examples' is the name of the number of examples"):
        SlicedStates(found, ["low"], Ranking(), "evaluations.a")


def test_metrics_of_single_examples_are_in_the_order_of_the_dataset_without_slices_too():
    states = SlicedStates({"loss": Mean.of(jnp.zeros(2))}, [], Ranking(each=True), "evaluations.a")
    merger = states.merger(lambda positions: 3 - positions)
    for first in (0, 2):
        found = {"loss": Mean.of(jnp.arange(2.0) + first)}
        merger.add(states.reduce(found, jnp.ones(2), {}), first)
    each = merger.each()
    loss: Any = each.metrics["loss"]
    assert each.indices.tolist() == [0, 1, 2, 3] and np.asarray(loss.total).tolist() == [3, 2, 1, 0]
