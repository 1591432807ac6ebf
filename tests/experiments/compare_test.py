"""Comparing runs: what differs, and intervals of the differences over examples, groups of them, or seeds."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from engine.base import json_text
from engine.base.errors import ConfigError, RunError
from engine.experiments.compare import Options, compare
from engine.experiments.comparison import WHOLE, Basis, Comparison, Difference
from engine.metrics import Quantiles
from tests.experiments.made import COUNT, errors, make_evaluated, make_run

QUICK = Options(resamples=500)


def scipy_interval(test: Any) -> tuple[float, float]:
    """Returns the confidence interval of a test of scipy."""
    interval = test.confidence_interval()
    return float(interval.low), float(interval.high)


def result(found: Comparison, metric: str, part: str = WHOLE, variant: int = 1) -> Difference:
    [one] = [x for x in found.results if (x.metric, x.part, x.variant) == (metric, part, variant)]
    return one


def test_difference_of_a_mean_has_the_paired_interval(tmp_path):
    one, two = errors(0.0), errors(0.05, noise_seed=2)
    found = compare([make_evaluated(tmp_path / "a", one), make_evaluated(tmp_path / "b", two)])
    mean = result(found, "error")
    paired = scipy_interval(stats.ttest_1samp(two - one, 0))  # of means the bootstrap gives nearly the t interval
    assert (mean.examples, mean.groups, mean.basis, mean.resamples) == (COUNT, COUNT, Basis.EXAMPLES, 1000)
    assert mean.interval.estimate == pytest.approx((two - one).mean(), rel=1e-4)
    assert (mean.interval.low, mean.interval.high) == pytest.approx(paired, abs=0.004)
    low, high = scipy_interval(stats.ttest_ind(two, one, equal_var=False))
    assert mean.interval.high - mean.interval.low < (high - low) / 5
    assert mean.verdict == "worse"


def test_any_metric_has_an_interval_that_holds_its_difference(tmp_path):
    one, two = errors(0.0), errors(0.5, noise_seed=2)
    quantiles = [{"quantiles": Quantiles.of(x[:, None], np.ones((COUNT, 1)))} for x in (one, two)]
    runs = [make_evaluated(tmp_path / n, x, metrics=q) for n, x, q in zip("ab", (one, two), quantiles, strict=True)]
    median = result(compare(runs, QUICK), "quantiles/p50")
    assert median.interval.low < median.interval.estimate < median.interval.high
    assert median.interval.low > 0.2


def test_slices_are_ordered_by_how_sure_their_difference_is_and_corrected_for_their_number(tmp_path):
    two = errors(0.0, noise_seed=2)
    two[1::2] += 0.3
    found = compare([make_evaluated(tmp_path / "a", errors(0.0)), make_evaluated(tmp_path / "b", two)], QUICK)
    slices = [x for x in found.results if x.part]
    assert [x.part for x in slices] == ["far", "near", "rare"]
    assert slices[0].adjusted_p == pytest.approx(2 * slices[0].interval.p)  # "rare" is no test
    assert slices[1].adjusted_p > 0.05
    rare = slices[2]
    assert rare.examples == 5 and math.isnan(rare.interval.low) and math.isnan(rare.adjusted_p)


def test_groups_are_resampled_as_a_whole(tmp_path):
    """Of groups of equal size, the bootstrap gives nearly the t interval of their means."""
    scene = np.arange(COUNT) // 5
    by_scene = 0.2 * np.random.default_rng(3).normal(size=COUNT // 5)[scene]
    one, two = errors(0.0), errors(0.1, noise_seed=2) + by_scene
    runs = [make_evaluated(tmp_path / n, x, tags={"scene": scene}) for n, x in (("a", one), ("b", two))]
    grouped = result(compare(runs, Options(group="scene")), "error")
    means = (two - one).reshape(-1, 5).mean(1)
    assert (grouped.examples, grouped.groups) == (COUNT, COUNT // 5)
    assert (grouped.interval.low, grouped.interval.high) == pytest.approx(
        scipy_interval(stats.ttest_1samp(means, 0)), abs=0.006
    )
    alone = compare(runs, QUICK)
    single = result(alone, "error").interval
    assert single.high - single.low < 0.6 * (grouped.interval.high - grouped.interval.low)
    assert any("200 examples have 40 values of the tag scene" in note for note in alone.notes)
    assert any("--group=scene resamples its values. Tags with groups: scene (40)." in note for note in alone.notes)
    assert "too few: an interval needs at least 30 examples." in alone.notes  # the slice "rare"
    assert math.isnan(result(compare(runs, Options(group="scene")), "error", "rare").interval.low)  # 1 group


def test_tag_with_few_values_is_not_advised_for_groups(tmp_path):
    tags = {"city": np.arange(COUNT) // 20, "night": np.arange(COUNT) % 2}
    runs = [make_evaluated(tmp_path / name, errors(0.0), tags=tags) for name in "ab"]
    [note] = [note for note in compare(runs, QUICK).notes if "independent" in note]
    assert "examples of one city are not independent" in note and "10 groups are too few for others" in note
    assert "too few: an interval needs at least 30 groups of equal city." in compare(runs, Options(group="city")).notes


def test_unknown_tag_is_an_error_that_lists_the_tags(tmp_path):
    tags = {"scene": np.arange(COUNT) // 5, "city": np.arange(COUNT) // 100}
    runs = [make_evaluated(tmp_path / name, errors(0.0), tags=tags) for name in "ab"]
    with pytest.raises(ConfigError, match=r"--group=sene: no evaluation has this tag\. The tags are scene, city\."):
        compare(runs, Options(group="sene"))
    with pytest.raises(ConfigError, match="No run has metrics of examples with tags"):
        compare([make_evaluated(tmp_path / "c", None), runs[0]], Options(group="scene"))


def seeds(tmp_path: Path, values: dict[tuple[str, int], float]) -> list[Path]:
    """Writes runs of two learning rates and several seeds."""
    rates = {"a": 0.01, "b": 0.1}
    return [
        make_run(
            tmp_path / f"{name}{seed}",
            metrics={"heldout/error": value, "heldout/night/error": 2 * value, "heldout/night/examples": 30.0},
            train__seed=seed,
            optimizer__learning_rate=rates[name],
        )
        for (name, seed), value in values.items()
    ]


def test_several_seeds_are_one_variant_and_have_t_intervals_over_seeds(tmp_path):
    one, two = [0.5, 0.6, 0.45], [0.4, 0.43, 0.41]
    values = {("a", seed): x for seed, x in enumerate(one)} | {("b", seed): x for seed, x in enumerate(two)}
    found = compare(seeds(tmp_path, values))
    assert [variant.seeds for variant in found.variants] == [(0, 1, 2), (0, 1, 2)]
    assert found.settings == {"optimizer.learning_rate": (0.01, 0.1)}
    assert found.notes == []
    error, test = result(found, "error"), stats.ttest_rel(two, one)
    assert error.basis == Basis.SEEDS and error.first_values == pytest.approx(one)
    assert (error.interval.low, error.interval.high) == pytest.approx(scipy_interval(test))
    assert error.interval.p == pytest.approx(float(test.pvalue))  # pyright: ignore[reportAttributeAccessIssue]
    night = result(found, "error", "night")
    assert (night.first, night.examples) == (pytest.approx(2 * np.mean(one)), 30)
    assert night.adjusted_p == pytest.approx(night.interval.p)


def test_other_seeds_have_the_interval_of_welch(tmp_path):
    one, two = [0.5, 0.6, 0.45], [0.4, 0.43]
    values = {("a", seed): x for seed, x in enumerate(one)} | {("b", seed + 5): x for seed, x in enumerate(two)}
    error = result(compare(seeds(tmp_path, values)), "error")
    assert error.basis == Basis.SEPARATE_SEEDS
    assert (error.interval.low, error.interval.high) == pytest.approx(
        scipy_interval(stats.ttest_ind(two, one, equal_var=False))
    )


def test_seeds_on_one_side_only_are_averaged_and_compared_over_examples(tmp_path):
    runs = [make_evaluated(tmp_path / f"a{n}", errors(0.1 * n, n), train__seed=n) for n in range(3)]
    found = compare([*runs, make_evaluated(tmp_path / "b", errors(0.0, 9), optimizer__learning_rate=0.5)], QUICK)
    error = result(found, "error")
    assert error.basis == Basis.EXAMPLES and len(error.first_values) == 3
    assert error.interval.low < error.interval.estimate == pytest.approx(-0.1, abs=0.02)


def test_rounding_of_a_mean_over_seeds_is_no_difference(tmp_path):
    right = (np.arange(COUNT) % 7 > 0).astype(np.float32)
    runs = [make_evaluated(tmp_path / f"a{n}", right, train__seed=n) for n in range(3)]
    found = compare([*runs, make_evaluated(tmp_path / "b", right, optimizer__learning_rate=0.5)], QUICK)
    for part in (WHOLE, "near", "far"):
        assert tuple(result(found, "error", part).interval) == (0, 0, 0, 1)


def test_groups_do_not_matter_for_intervals_over_seeds(tmp_path):
    runs = [
        make_evaluated(tmp_path / f"{rate}-{n}", errors(rate, n), tags={"scene": np.arange(COUNT) // 5}, **settings)
        for rate in (0.1, 0.5)
        for n in range(2)
        for settings in [{"train__seed": n, "optimizer__learning_rate": rate}]
    ]
    assert compare(runs, QUICK).notes == []
    assert compare(runs, Options(group="scene")).notes == [
        "--group=scene changes nothing here: all intervals are over seeds."
    ]


def test_each_run_is_compared_with_the_first(tmp_path):
    runs = [make_evaluated(tmp_path / f"{n}", errors(0.1 * n, n), optimizer__learning_rate=0.1 + n) for n in range(3)]
    found = compare(runs, QUICK)
    assert found.settings == {"optimizer.learning_rate": (0.1, 1.1, 2.1)}
    assert [result(found, "error", variant=n).interval.estimate for n in (1, 2)] == pytest.approx([0.1, 0.2], abs=0.03)


@pytest.mark.parametrize(
    ("second", "note"),
    [
        ({"values": None}, "heldout: no interval over examples, since {b} kept no metrics of its examples. Add"),
        ({"content": "other"}, "heldout: the runs were evaluated on other examples, so no interval is given."),
    ],
)
def test_results_that_cannot_be_paired_have_no_interval_and_a_note(tmp_path, second, note):
    two = make_evaluated(tmp_path / "b", **{"values": errors(0.1), **second})
    found = compare([make_evaluated(tmp_path / "a", errors(0.0)), two])
    assert [text.startswith(note.format(b=two)) for text in found.notes] == [True]
    [only] = found.results
    assert only.interval.estimate == pytest.approx(only.second - only.first) and math.isnan(only.interval.low)
    assert only.basis == Basis.NONE and only.verdict == ""
    assert found.data == ({} if "values" in second else {"evaluations.heldout.data": ("same", "other")})


def test_parts_that_are_close_to_the_level_get_more_resamples(tmp_path):
    one, noise = errors(0.0), np.random.default_rng(5).normal(size=COUNT)
    close = one + 0.1 * (noise - noise.mean()) / noise.std() + 0.1 * 1.97 / np.sqrt(COUNT)  # p = 0.05
    two = [make_evaluated(tmp_path / name, x) for name, x in (("a", one), ("b", close))]
    found = compare(two, QUICK)
    assert result(found, "error").resamples == 16 * QUICK.resamples
    assert result(found, "error").interval.p == pytest.approx(0.05, abs=0.01)
    assert result(found, "error", "near").resamples == QUICK.resamples


def test_examples_that_changed_most_are_listed(tmp_path):
    two = errors(0.0)
    two[[7, 30]] += [5.0, -8.0]
    runs = [
        make_evaluated(tmp_path / name, x, tags={"scene": np.arange(COUNT) // 5})
        for name, x in (("a", errors(0.0)), ("b", two))
    ]
    found = compare(runs, Options(resamples=100, examples=1))
    [change] = found.changes
    assert (change.index, change.metric, change.tags) == (30, "error", {"scene": 6})
    assert change.second - change.first == pytest.approx(-8.0)


def test_environment_and_versions_that_differ_are_listed(tmp_path):
    one, two = make_evaluated(tmp_path / "a", None), make_evaluated(tmp_path / "b", None, optimizer__learning_rate=0.5)
    code = {"folders": [], "commit": "a" * 40, "dirty": False, "packages": {"jax": "1"}, "attempt": 1, "time": "t"}
    (one / "code.json").write_text(json_text.dumps({**code, "environment": {"mesh": "data=1"}}))
    (two / "code.json").write_text(
        json_text.dumps({**code, "packages": {"jax": "2"}, "environment": {"mesh": "data=4"}})
    )
    found = compare([one, two])
    assert found.settings == {"optimizer.learning_rate": (0.01, 0.5)}
    assert found.code == {"jax": ("1", "2")}
    assert found.environment == {"mesh": ("data=1", "data=4")}


def test_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match="nowhere: is not a run directory"):
        compare([make_evaluated(tmp_path / "a", None), tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match=r"found one run\. Give two or more"):
        compare([tmp_path / "a"])


def test_results_of_one_run_only_are_named(tmp_path):
    one = make_run(tmp_path / "a", metrics={"heldout/error": 1.0, "loss": 0.5})
    two = make_run(tmp_path / "b", metrics={"heldout/error": 1.0, "heldout/other": 2.0}, optimizer__learning_rate=0.5)
    found = compare([one, two])
    assert [x.name for x in found.results] == ["heldout/error"]
    assert f"{one} and {two}: not compared, since a run has no finite value of it: heldout/other." in found.notes
