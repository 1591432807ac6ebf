"""The suggested learning rate, on problems whose largest stable learning rate is known, and its interval."""

import math
import tempfile

import numpy as np
import pytest

from engine.base.errors import ConfigError
from engine.tuning import learning_rate
from engine.tuning.learning_rates import combine
from engine.tuning.range_curve import analyse
from tests.tuning import problems

STABLE = 2 / max(problems.CURVATURES)  # of gradient descent: Nesterov 2004, "Introductory Lectures", section 1.2.3


@pytest.fixture(scope="module")
def bowl():
    return learning_rate(problems.config("Bowl", "targets"), between=(0.02, 5.0), steps=500, repeats=2)


def test_divergence_is_found_within_a_tenth_of_the_largest_stable_learning_rate(bowl):
    assert [curve.problem for curve in bowl.curves] == ["", ""]
    for curve in bowl.curves:
        assert 0.9 * STABLE < curve.diverged < 1.1 * STABLE
        assert curve.minimum < STABLE


def test_tests_differ_in_their_seeds_and_end_where_they_diverge(bowl):
    first, second = bowl.curves
    assert (first.seed, second.seed) == (0, 1) and first.losses[:100] != second.losses[:100]
    assert all(len(curve.losses) < 500 for curve in bowl.curves)


def test_suggestion_is_stable_and_has_an_interval(bowl):
    low, high = bowl.interval
    assert low < bowl.suggestion < high and bowl.suggestion < STABLE / 5
    assert bowl.flag == f"--config.optimizer.learning_rate={bowl.suggestion:.2g}"
    assert "95 % interval over 2 seeds" in bowl.certainty


def test_tests_leave_nothing_behind(bowl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = learning_rate(problems.config("Bowl", "targets"), between=(1e-9, 1e-8), steps=30, repeats=1)
    assert found.suggestion is None and "neither fallen nor risen" in found.problem
    assert list(tmp_path.iterdir()) == []


def test_update_that_overflows_ends_the_test_like_a_divergence():
    found = learning_rate(problems.config("Bowl", "targets"), between=(1e-2, 1e6), steps=60, repeats=1)
    assert found.diverged is not None and STABLE < found.diverged < 5 * STABLE
    assert found.suggestion is not None and "--repeats=3" in found.certainty


def curve(minimum):
    """Returns the curve of a test whose loss is lowest there."""
    rates = np.geomspace(1e-6, 1, 100)
    losses = 1 + np.clip(np.log10(rates / minimum), -2, 2) ** 2
    return analyse(rates.tolist(), losses.tolist(), 100)


def test_interval_is_that_of_student_over_the_logarithms():
    curves = [curve(minimum) for minimum in (3e-4, 3e-3, 3e-2)]
    found = combine(curves, 1e-3)
    logs = [math.log(each.suggestion) for each in curves if each.suggestion is not None]
    half = 4.3027 * np.std(logs, ddof=1) / math.sqrt(3) + math.log(1e6) / 99 / 2
    assert found.interval == pytest.approx((math.exp(np.mean(logs) - half), math.exp(np.mean(logs) + half)), rel=1e-3)
    assert found.certainty.endswith("the tests disagree. Repeat more often, or with more steps.")


def test_tests_that_agree_to_a_step_have_the_distance_of_two_steps_as_interval():
    found = combine([curve(1e-2)] * 3, 1e-3)
    assert found.interval is not None
    assert found.interval[1] / found.interval[0] == pytest.approx(1e6 ** (1 / 99))
    assert found.certainty.endswith("the tests agree.")


def test_one_test_without_a_suggestion_refuses_all():
    rates = np.geomspace(1e-6, 1, 100).tolist()
    flat = analyse(rates, [2.0] * 100, 100)
    found = combine([curve(1e-2), flat], 1e-3)
    assert found.suggestion is None and found.problem.startswith("in 1 of 2 tests, the loss has neither")


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [
        (2.0, "which is within a factor of 3."),
        (10.0, "which is 10 times larger."),
        (1e-2, "which is 1e+02 times smaller."),
        (1e4, "which is 1e+04 times larger, and at which the tests diverge."),
    ],
)
def test_learning_rate_of_the_config_is_compared(factor, sentence):
    tests = [curve(1e-2)]
    assert tests[0].suggestion is not None
    assert combine(tests, factor * tests[0].suggestion).comparison.endswith(sentence)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"between": (0.0, 1.0)}, "--from = 0, --to = 1: allowed is 0 < from < to"),
        ({"between": (2.0, 1.0)}, "--from = 2, --to = 1: allowed is 0 < from < to"),
        ({"between": (0.9, 1.0)}, "the range is too narrow"),
        ({"steps": 5}, "--steps = 5: allowed are 30 to 100,000"),
        ({"repeats": 0}, "--repeats = 0: allowed are 1 to 100"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        learning_rate(problems.config("Bowl", "targets"), **arguments)
