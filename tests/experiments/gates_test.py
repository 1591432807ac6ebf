"""Verdicts of gates: at their limits, in each direction, and for what cannot be judged."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from engine.base import json_text
from engine.base.errors import ConfigError, RunError
from engine.experiments import gates
from engine.experiments.comparison import WHOLE, Basis, Comparison, Difference, Variant
from engine.experiments.gate_file import read_rules
from engine.experiments.gate_text import to_json
from engine.experiments.statistics import NO_INTERVAL, Interval, t_interval, welch_interval
from engine.experiments.variants import Run
from tests.experiments.made import kept, make_run

NAN = math.nan
COUNT = 200


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Two runs without metrics of examples."""
    metrics = {"val/error": 1.0, "val/accuracy": 0.9, "val/odd": 1.0}
    return make_run(tmp_path / "a", metrics=metrics), make_run(tmp_path / "b", metrics=metrics, train__seed=5)


def difference(
    metric: str = "error",
    low: float = -0.1,
    high: float = 0.1,
    first: float = 1.0,
    estimate: float = NAN,
    **fields: Any,
) -> Difference:
    """A difference with an interval, by default of an error over 200 examples."""
    has_interval = not math.isnan(low)
    if math.isnan(estimate):
        estimate = (low + high) / 2 if has_interval else 0.1
    known = {"error": False, "accuracy": True}.get(metric)
    basis = Basis.EXAMPLES if has_interval else Basis.NONE
    values: dict[str, Any] = dict(
        variant=1, evaluation="val", part=WHOLE, metric=metric, first=first, second=first + estimate, groups=COUNT,
        interval=Interval(estimate, low, high, NAN), examples=COUNT, basis=basis, higher_is_better=known,
    )  # fmt: skip
    return Difference(**values | fields)


def compared(folders: tuple[Path, Path], *results: Difference, notes: tuple[str, ...] = ()) -> Comparison:
    records = [Run.read(folder).record for folder in folders]
    variants = [Variant(record.path, (record,), (0,)) for record in records]
    return Comparison(variants=variants, results=results, notes=notes)


def judged(folders: tuple[Path, Path], text: str, *results: Difference, notes: tuple[str, ...] = ()):
    """Returns the only rule of a gate with its verdict."""
    path = folders[0].parent / "gate.toml"
    path.write_text(f"[rules.r]\n{text}\n")
    [result] = gates.judge(read_rules(path), "gate.toml", compared(folders, *results, notes=notes)).rules
    return result


ERROR = 'metric = "val/error"\nmax_worse = 0.5\n'
ACCURACY = 'metric = "val/accuracy"\nmax_worse = 0.5\n'
FINE = 'fail_if = "not_shown_fine"\n'
MEASURED = 'fail_if = "measured_worse"\n'


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        (ERROR, 0.51, 0.9, "fail"),  # the whole interval is beyond the limit
        (ERROR, 0.5, 0.9, "pass"),  # it touches the limit
        (ERROR, 0.49, 0.9, "pass"),
        (ERROR, -0.9, -0.51, "pass"),  # better
        (ERROR + FINE, 0.1, 0.51, "fail"),
        (ERROR + FINE, 0.1, 0.5, "pass"),
        (ERROR + FINE, -9.0, -0.6, "pass"),
        (ERROR + MEASURED, 0.4, 0.62, "fail"),  # in the middle: 0.51
        (ERROR + MEASURED, 0.4, 0.6, "pass"),
        (ACCURACY, -0.9, -0.51, "fail"),
        (ACCURACY, -0.9, -0.5, "pass"),
        (ACCURACY, 0.51, 0.9, "pass"),
        (ACCURACY + FINE, -0.51, 0.9, "fail"),
        (ACCURACY + FINE, -0.5, 0.9, "pass"),
        (ACCURACY + MEASURED, -0.62, -0.4, "fail"),
        (ACCURACY + MEASURED, -0.6, -0.4, "pass"),
        ('metric = "val/error"\nmax_worse = -0.5\n', -0.9, -0.51, "pass"),  # asks for an improvement
        ('metric = "val/error"\nmax_worse = -0.5\n' + FINE, -0.9, -0.49, "fail"),
    ],
)
def test_verdict_at_the_limit(folders, rule, low, high, verdict):
    metric = "accuracy" if "accuracy" in rule else "error"
    assert judged(folders, rule, difference(metric, low, high)).verdict == verdict


def test_limit_may_be_a_share_of_the_value_of_the_base(folders):
    rule = 'metric = "val/error"\nmax_worse_percent = 10\n' + MEASURED
    assert judged(folders, rule, difference(first=4.0, low=0.3, high=0.5)).verdict == "pass"
    assert judged(folders, rule, difference(first=4.0, low=0.3, high=0.51)).verdict == "fail"
    negative = judged(folders, rule, difference(first=-4.0, low=0.3, high=0.51))
    assert (negative.verdict, negative.numbers[0].allowed) == ("fail", pytest.approx(-3.6))


def test_rounding_does_not_fail_a_value_at_the_limit(folders):
    rule = 'metric = "val/accuracy"\nmax_worse = 0.005\n' + MEASURED
    exact = difference("accuracy", -1, 1, first=0.9, estimate=0.895 - 0.9)
    assert 0.9 - 0.895 > 0.005
    assert judged(folders, rule, exact).verdict == "pass"
    assert judged(folders, rule, difference("accuracy", -1, 1, first=0.9, estimate=-0.0051)).verdict == "fail"


def test_direction_of_the_file_counts_before_that_of_the_metric(folders):
    assert judged(folders, ERROR + 'better = "higher"', difference("error", 0.51, 0.9)).verdict == "pass"
    assert judged(folders, ERROR + 'better = "higher"', difference("error", -0.9, -0.51)).verdict == "fail"


def test_unknown_direction_is_an_error_unless_the_file_states_it(folders):
    rule = 'metric = "val/odd"\nmax_worse = 0.5\n'
    with pytest.raises(
        RunError, match=r"gate.toml:1: rules.r: val/odd: neither .* larger is better. Add better = .lower"
    ):
        judged(folders, rule, difference("odd"))
    assert judged(folders, rule + 'better = "lower"', difference("odd", 0.51, 0.9)).verdict == "fail"


def slices(count: int, low: float, high: float, **fields: Any) -> list[Difference]:
    return [difference(part=f"s{number}", low=low, high=high, **fields) for number in range(count)]


def test_slices_that_are_shown_to_be_worse_are_corrected_for_their_number(folders):
    rule = ERROR + 'slices = "*"\n'
    sure, others = difference(part="sure", low=0.51, high=0.9), slices(9, -0.1, 0.1)
    assert judged(folders, rule, sure).verdict == "fail"
    assert judged(folders, rule, sure, *others).verdict == "pass"  # one of ten is beyond the limit by chance
    surer = difference(part="sure", low=0.6, high=0.9)
    result = judged(folders, rule, surer, *others)
    assert result.verdict == "fail"
    assert [each.number.part for each in result.numbers if each.verdict == "fail"] == ["sure"]
    two_sided = 2 * stats.t.sf(0.25 / 0.15 * stats.t.ppf(0.975, COUNT - 1), COUNT - 1)
    assert result.numbers[-1].p == pytest.approx(10 * two_sided)


def test_slices_that_must_be_shown_to_be_fine_need_no_correction(folders):
    rule = ERROR + FINE + 'slices = "*"\n'
    assert judged(folders, rule, *slices(50, -0.1, 0.5)).verdict == "pass"
    assert judged(folders, rule, *slices(50, -0.1, 0.5), difference(part="x", low=0.0, high=0.51)).verdict == "fail"


def test_p_value_over_seeds_is_that_of_the_t_test(folders):
    values = [0.7, 0.85, 0.64]
    interval = t_interval(values)
    over: dict[str, Any] = dict(basis=Basis.SEEDS, first_values=[1.0] * 3, second_values=[1 + x for x in values])
    result = judged(
        folders, ERROR, difference(low=interval.low, high=interval.high, estimate=interval.estimate, **over)
    )
    expected: Any = stats.ttest_1samp(values, 0.5, alternative="greater")
    assert result.numbers[0].p == pytest.approx(2 * float(expected.pvalue))


def test_p_value_over_separate_seeds_is_that_of_welch(folders):
    first, second = [1.0, 1.1, 0.9, 1.05], [1.7, 1.9, 1.62]
    interval = welch_interval(first, second)
    over: dict[str, Any] = dict(basis=Basis.SEPARATE_SEEDS, first_values=first, second_values=second)
    base = float(np.mean(first))
    found = difference(low=interval.low, high=interval.high, estimate=interval.estimate, first=base, **over)
    expected: Any = stats.ttest_ind(np.array(second) - 0.5, first, equal_var=False, alternative="greater")
    assert judged(folders, ERROR, found).numbers[0].p == pytest.approx(2 * float(expected.pvalue))


def test_equal_examples_pass_and_a_constant_difference_beyond_the_limit_fails(folders):
    assert judged(folders, 'metric = "val/error"\nmax_worse = 0\n', difference(low=0.0, high=0.0)).verdict == "pass"
    assert judged(folders, ERROR, difference(low=0.6, high=0.6)).verdict == "fail"
    assert judged(folders, ERROR, difference(low=0.5, high=0.5)).verdict == "pass"


def test_interval_that_does_not_hold_its_estimate_is_judged_by_its_limits(folders):
    assert judged(folders, ERROR, difference(low=0.6, high=0.9, estimate=0.55)).verdict == "fail"
    assert judged(folders, ERROR, difference(low=0.4, high=0.9, estimate=0.95)).verdict == "pass"


@pytest.mark.parametrize("fail_if", ["", FINE])
@pytest.mark.parametrize(("too_few", "verdict"), [("", "fail"), ('too_few = "skip"', "pass")])
def test_too_few_examples_fail_or_are_skipped_as_the_rule_says(folders, fail_if, too_few, verdict):
    few = difference(part="rare", low=NAN, high=NAN, estimate=9.0, examples=5, groups=5)
    rule = ERROR + fail_if + 'slices = "*"\n' + too_few
    result = judged(folders, rule, difference(part="near", low=-0.1, high=0.1), few)
    assert result.verdict == verdict
    assert {each.number.part: str(each.verdict) for each in result.numbers} == {"near": "pass", "rare": "too few"}


def test_min_examples_counts_examples_up_to_its_number(folders):
    rule = ERROR + 'slices = "*"\ntoo_few = "skip"\nmin_examples = '
    worse, near = difference(part="far", low=0.6, high=0.9, examples=199), difference(part="near")
    assert judged(folders, rule + "199", worse, near).verdict == "fail"
    assert judged(folders, rule + "200", worse, near).verdict == "pass"


def test_rule_that_judged_nothing_is_skipped_and_a_gate_of_such_rules_does_not_pass(folders):
    rule = ERROR + 'min_examples = 201\ntoo_few = "skip"\n'
    assert judged(folders, rule, difference()).verdict == "skipped"
    path = folders[0].parent / "two.toml"
    path.write_text(f"[rules.r]\n{rule}")
    found = gates.judge(read_rules(path), "two.toml", compared(folders, difference()))
    assert not found.passed and found.text.endswith("gate FAILED: 1 of 1 rules judged nothing")
    path.write_text(f"[rules.r]\n{rule}[rules.s]\n{ERROR}")
    found = gates.judge(read_rules(path), "two.toml", compared(folders, difference()))
    assert found.passed and found.text.endswith("gate passed: 1 of 2 rules judged nothing, no rule failed")


@pytest.mark.parametrize("fail_if", ["", FINE, MEASURED])
def test_value_that_is_not_finite_fails_where_the_base_has_one(folders, fail_if):
    for value in (NAN, math.inf):
        result = judged(folders, ERROR + fail_if + 'too_few = "skip"', difference(low=NAN, high=NAN, second=value))
        assert (result.verdict, result.numbers[0].reason) == ("fail", "no finite value")


def test_base_without_a_value_cannot_be_judged(folders):
    for value in (NAN, 1.0):
        found = difference(low=NAN, high=NAN, first=NAN, second=value)
        assert judged(folders, ERROR + MEASURED, found).verdict == "fail"
        result = judged(folders, ERROR + MEASURED + 'too_few = "skip"', found)
        assert (result.verdict, result.numbers[0].reason) == ("skipped", "the base has no finite value")


def test_interval_that_can_never_be_there_is_an_error_with_the_advice(folders):
    note = "val: no interval over examples, since b kept no metrics of its examples. Add them: convoy evaluate b"
    found = difference(low=NAN, high=NAN, examples=0, groups=0)
    with pytest.raises(
        RunError, match=r"rules.r: fail_if = shown_worse needs an interval. val: no interval .* evaluate b"
    ):
        judged(folders, ERROR, found, notes=(note,))
    assert judged(
        folders, ERROR + MEASURED, difference(low=NAN, high=NAN, estimate=0.4, groups=0), notes=(note,)
    ).verdict


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            'metric = "val/eror"\nmax_worse = 1',
            r"gate.toml:1: rules.r: metric: 'eror' matches nothing in .*/a and .*/b. Did you mean error\? There: acc",
        ),
        (
            'metric = "vaal/error"\nmax_worse = 1',
            "metric: .*/b: no evaluation 'vaal'. Did you mean val. There: val",
        ),
        ('metric = "val/ap/*"\nmax_worse = 1', r"metric: 'ap/\*' matches nothing in"),
        (ERROR + 'slices = "nihgt"', r"slices: 'nihgt' matches nothing in .* Did you mean night\? There: day, night."),
        (ERROR + 'slices = ["*", "city/*"]', r"slices: 'city/\*' matches nothing in"),
        (ERROR + 'slices = "*"\nexcept_slices = "x"', "except_slices: 'x' matches nothing in"),
        (ERROR + 'slices = "*"\nexcept_slices = "*"', r"slices: '\*' matches nothing in"),
    ],
)
def test_pattern_that_matches_nothing_is_an_error(folders, rule, message):
    with pytest.raises(RunError, match=message):
        judged(folders, rule, difference(), difference(part="night"), difference(part="day"))


def test_wildcards_choose_metrics_and_slices(folders):
    results = [difference(name, part=part) for name in ("ap/car", "ap/dog", "error") for part in ("", "night", "day")]
    found = judged(folders, 'metric = "val/ap/*"\nbetter = "higher"\nmax_worse = 0.5\nslices = "n*"', *results)
    assert [(each.number.name, each.number.part) for each in found.numbers] == [
        ("val/ap/car", "night"), ("val/ap/dog", "night"),
    ]  # fmt: skip
    rule = 'metric = "val/error"\nmax_worse = 0.5\nslices = "*"\nexcept_slices = "night"'
    assert [each.number.part for each in judged(folders, rule, *results).numbers] == ["day"]


def test_metric_that_only_one_run_has_is_an_error_also_for_a_wildcard(folders, tmp_path):
    two = make_run(
        tmp_path / "c", metrics={"val/error": 1.0, "val/error/far": 2.0, "val/accuracy": 1.0, "val/odd": 1.0}
    )
    with pytest.raises(
        RunError, match=r"metric: .*/c has 'val/error/far', and .*/a does not. Evaluate that run again with"
    ):
        judged((folders[0], two), 'metric = "val/error*"\nmax_worse = 1', difference())


def test_slice_that_only_one_run_has_is_an_error(folders, tmp_path):
    metrics = {"val/error": 1.0, "val/old/error": 2.0, "val/old/examples": 50.0, "val/accuracy": 1.0, "val/odd": 1.0}
    two = make_run(tmp_path / "c", metrics=metrics)
    rule = 'metric = "val/error"\nmax_worse = 1\nslices = '
    for pattern in ('"*"', '"old"'):
        message = "slices: .*/c has 'old', and .*/a does not. Evaluate that run again with it, or name it in except"
        with pytest.raises(RunError, match=message):
            judged((folders[0], two), rule + pattern, difference(), difference(part="night"))
    found = judged((folders[0], two), rule + '"*"\nexcept_slices = "old"', difference(), difference(part="night"))
    assert found.verdict == "pass"


def test_rule_that_compares_needs_a_base_and_one_setting(folders, tmp_path):
    path = tmp_path / "gate.toml"
    path.write_text(f"[rules.r]\n{ERROR}")
    with pytest.raises(
        ConfigError, match=r"gate.toml:1: rules.r: max_worse compares with a base, and there is none. Write"
    ):
        gates.check(folders[0], path)
    found = compared(folders)
    three = Comparison(variants=[*found.variants, found.variants[1]])
    with pytest.raises(
        ConfigError, match=r"gate.toml: a gate judges one setting against its base, and found 3: .*/a, .*/b"
    ):
        gates.judge(read_rules(path), "gate.toml", three)


RATE = 'metric = "val/collision_rate"\nat_most = '


# From run directories to the verdict.


def errors(shift: float, seed: int, where: Any = slice(None)) -> np.ndarray:
    values = np.random.default_rng(0).exponential(1.0, COUNT) + 0.1 * np.random.default_rng(seed).normal(size=COUNT)
    values[where] += shift
    return values


def test_runs_are_compared_and_judged(tmp_path):
    one, fine = kept(tmp_path / "a", errors(0.0, 1)), kept(tmp_path / "b", errors(0.0, 2), train__seed=1)
    bad = kept(tmp_path / "c", errors(0.2, 3, np.s_[::2]), train__seed=2)
    path = tmp_path / "gate.toml"
    path.write_text(
        '[rules.slices]\nmetric = "val/collision_rate"\nslices = "*"\nexcept_slices = "none"\nmin_examples = 30\n'
        'too_few = "skip"\nmax_worse = 0.05\n[rules.all]\nmetric = "val/collision_rate"\nmax_worse = 0.05\n' + FINE
    )
    passed, failed = (gates.check(run, path, one, resamples=500) for run in (fine, bad))
    assert passed.passed and not failed.passed
    assert [result.verdict for result in failed.rules] == ["fail", "fail"]
    assert [each.number.part for each in failed.rules[0].numbers if each.verdict == "fail"] == ["near"]


def test_seeds_are_compared_as_one_setting_and_limits_hold_for_each(tmp_path):
    before = [kept(tmp_path / f"a{i}", errors(0.0, i), train__seed=i) for i in range(3)]
    after = [kept(tmp_path / f"b{i}", errors(0.1 * i, i), train__seed=i, task__width=9) for i in range(3)]
    path = tmp_path / "gate.toml"
    path.write_text(f'[rules.r]\n{RATE}1.25\n[rules.s]\nmetric = "val/collision_rate"\nmax_worse = 0.5\n')
    found = gates.check(after, path, before)
    assert [run.folder for run in found.base] == before
    assert [str(each.verdict) for each in found.rules[0].numbers] == ["pass", "pass", "fail"]
    [compared] = found.rules[1].numbers
    assert compared.number.freedom == 2 and compared.verdict == "pass"
    with pytest.raises(ConfigError, match=r"differ in more than the seed, so they are no single base"):
        gates.check(after[:1], path, [before[0], after[1]])


def test_difference_that_is_none_has_no_degrees_of_freedom_to_trip_over(folders):
    found = difference(basis=Basis.NONE, interval=NO_INTERVAL._replace(estimate=0.4), second=1.4, first_values=[1.0])
    assert judged(folders, ERROR + MEASURED, found).verdict == "pass"


def test_verdicts_are_json(folders):
    path = folders[0].parent / "gate.toml"
    path.write_text(f"[rules.r]\n{ERROR}")
    found = to_json(gates.judge(read_rules(path), "gate.toml", compared(folders, difference(low=NAN, high=NAN))))
    [number] = json.loads(json_text.dumps(found))["rules"][0]["numbers"]
    assert (number["verdict"], found["passed"]) == ("too few", False)
