"""Comparing two runs: what differs, and intervals of the differences over the same examples."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from engine.base import json_text
from engine.base.errors import RunError
from engine.experiments import compare
from engine.metrics import Mean, Quantiles
from engine.metrics.example_file import to_parquet
from engine.metrics.slices import Examples
from tests.experiments.made import make_run

COUNT = 200


def errors(shift: float, noise_seed: int = 1) -> np.ndarray:
    """Errors of examples, most of which two runs share: the runs are compared in pairs."""
    hard = np.random.default_rng(0).exponential(1.0, COUNT)
    return hard + shift + 0.1 * np.random.default_rng(noise_seed).normal(size=COUNT)


def make(folder: Path, values: np.ndarray | None, content: str = "same", **settings: Any) -> Path:
    """Writes a run with the metrics of its examples."""
    run = make_run(folder, metrics={"heldout/error": 1.0 if values is None else float(values.mean())}, **settings)
    (run / "data.json").write_text(
        json_text.dumps({"evaluations.heldout.data": {"content": content, "examples": "200"}})
    )
    if values is not None:
        of_numpy: Any = values.astype(np.float32)
        slices = {"near": np.arange(COUNT) % 2 == 0, "far": np.arange(COUNT) % 2 == 1, "rare": np.arange(COUNT) < 5}
        quantiles = Quantiles.of(of_numpy[:, None], np.ones((COUNT, 1)))
        metrics = {"error": Mean(of_numpy, np.ones_like(of_numpy)), "quantiles": quantiles}
        path = run / "per_example" / "heldout" / "10.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(to_parquet(Examples(np.arange(COUNT), slices, metrics)))
    return run


def scipy_test(test: Any) -> tuple[float, float]:
    """Returns the confidence interval of a test of scipy."""
    interval = test.confidence_interval()
    return float(interval.low), float(interval.high)


def result(found: compare.Comparison, metric: str, part: str = compare.WHOLE) -> compare.Difference:
    [one] = [result for result in found.results if (result.metric, result.part) == (metric, part)]
    return one


def test_difference_of_a_mean_has_the_paired_interval(tmp_path):
    one, two = errors(0.0), errors(0.05, noise_seed=2)
    found = compare.compare(make(tmp_path / "a", one), make(tmp_path / "b", two))
    mean = result(found, "error")
    paired = scipy_test(stats.ttest_1samp(two - one, 0))  # of means the bootstrap gives nearly the t interval
    assert mean.examples == COUNT and mean.interval.estimate == pytest.approx((two - one).mean(), rel=1e-4)
    assert (mean.interval.low, mean.interval.high) == pytest.approx(paired, abs=0.003)
    low, high = scipy_test(stats.ttest_ind(two, one, equal_var=False))
    assert mean.interval.high - mean.interval.low < (high - low) / 5


def test_any_metric_has_an_interval_that_holds_its_difference(tmp_path):
    found = compare.compare(make(tmp_path / "a", errors(0.0)), make(tmp_path / "b", errors(0.5, noise_seed=2)))
    median = result(found, "quantiles/p50")
    assert median.interval.low < median.interval.estimate < median.interval.high
    assert median.interval.low > 0.2


def test_slices_are_ordered_by_how_sure_their_difference_is_and_corrected_for_their_number(tmp_path):
    two = errors(0.0, noise_seed=2)
    two[1::2] += 0.3
    found = compare.compare(make(tmp_path / "a", errors(0.0)), make(tmp_path / "b", two))
    slices = [result for result in found.results if result.metric == "error" and result.part]
    assert [result.part for result in slices] == ["far", "near", "rare"]
    assert slices[0].adjusted_p == pytest.approx(2 * slices[0].interval.p)  # "rare" is no test
    assert slices[1].adjusted_p > 0.05
    rare = slices[2]
    assert rare.examples == 5 and math.isnan(rare.interval.low) and math.isnan(rare.adjusted_p)


@pytest.mark.parametrize(
    ("second", "note"),
    [
        (
            {"values": None},
            "heldout: no interval, since a run kept no metrics of its examples. Add them: convoy evaluate RUN",
        ),
        ({"content": "other"}, "heldout: the runs were evaluated on other examples, so no interval is given."),
    ],
)
def test_results_that_cannot_be_paired_have_no_interval_and_a_note(tmp_path, second, note):
    two = make(tmp_path / "b", **{"values": errors(0.1), **second})
    found = compare.compare(make(tmp_path / "a", errors(0.0)), two)
    assert [text.startswith(note) for text in found.notes] == [True]
    [only] = found.results
    assert only.interval.estimate == pytest.approx(only.second - only.first) and math.isnan(only.interval.low)
    assert found.data == ({} if "values" in second else {"evaluations.heldout.data": ("same", "other")})


def test_differing_settings_and_versions_are_listed(tmp_path):
    one, two = make(tmp_path / "a", None), make(tmp_path / "b", None, optimizer__learning_rate=0.5)
    code = {"folders": [], "commit": "a" * 40, "dirty": False, "packages": {"jax": "1"}, "attempt": 1, "time": "t"}
    (one / "code.json").write_text(json_text.dumps(code))
    (two / "code.json").write_text(json_text.dumps({**code, "packages": {"jax": "2"}}))
    found = compare.compare(one, two)
    assert found.settings == {"optimizer.learning_rate": (0.01, 0.5)}
    assert found.code == {"jax": ("1", "2")}


def test_best_checkpoint_is_compared_and_else_the_newest(tmp_path):
    run = make_run(
        tmp_path / "a",
        {4: {"heldout/x": 1.0}, 8: {"heldout/x": 2.0}},
        checkpoint__best="heldout/x",
        checkpoint__best_mode="min",
    )
    for step in (4, 8):
        (run / "per_example" / "heldout").mkdir(parents=True, exist_ok=True)
        (run / "per_example" / "heldout" / f"{step}.parquet").touch()
    record = compare.read_record(run, "a")
    assert compare._stored(run, record)["heldout"].stem == "4"
    (run / "per_example" / "heldout" / "4.parquet").unlink()
    assert compare._stored(run, record)["heldout"].stem == "8"


def test_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match="nowhere: no run that can be read"):
        compare.compare(make(tmp_path / "a", None), tmp_path / "nowhere")


def test_examples_are_paired_by_their_index():
    values: Any = np.arange(50.0)
    one = Examples(np.arange(50), {}, {"error": Mean(values, np.ones_like(values))})
    two = Examples(np.arange(10, 50), {}, {"error": Mean(values[10:] + 1, np.ones_like(values[10:]))})
    [found] = compare._paired("heldout", compare.WHOLE, one, two, 100)
    assert (found.examples, found.interval.estimate) == (40, 1.0)
    assert (found.interval.low, found.interval.high) == pytest.approx((1.0, 1.0))
