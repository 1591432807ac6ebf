import pytest
from hypothesis import given

from engine.base.errors import ConfigError
from engine.sweeps import choice, integer, log, log_integer, uniform, when
from tests.properties import examples
from tests.sweeps.spaces import finite, ranges


@pytest.mark.parametrize(
    ("domain", "text", "values"),
    [
        (uniform(0, 1), "uniform(0.0, 1.0)", None),
        (uniform(0, 1, points=3), "uniform(0.0, 1.0, points=3)", [0.0, 0.5, 1.0]),
        (uniform(0, 1, 0.3), "uniform(0.0, 0.9, 0.3)", [0.0, 0.3, 0.6, 0.9]),
        (log(1e-4, 1e-2), "log(0.0001, 0.01)", None),
        (log(1e-4, 1e-2, points=3), "log(0.0001, 0.01, points=3)", [1e-4, 1e-3, 1e-2]),
        (integer(1, 4), "integer(1, 4)", [1, 2, 3, 4]),
        (integer(1, 4, 1), "integer(1, 4)", [1, 2, 3, 4]),
        (integer(1, 10, 4), "integer(1, 9, 4)", [1, 5, 9]),
        (integer(0, 10**9), "integer(0, 1000000000)", None),
        (integer(0, 100, points=3), "integer(0, 100, points=3)", [0, 50, 100]),
        (log_integer(1, 64), "log_integer(1, 64)", None),
        (log_integer(1, 64, points=4), "log_integer(1, 64, points=4)", [1, 4, 16, 64]),
        (log_integer(1, 3, points=9), "log_integer(1, 3, points=9)", [1, 2, 3]),
        (choice("a", (1, 2), None), "choice('a', (1, 2), None)", ["a", (1, 2), None]),
    ],
)
def test_text_and_grid_values_of_a_domain(domain, text, values):
    assert (str(domain), domain.values()) == (text, values)


def test_equal_conditions_have_equal_texts():
    assert str(when("a.b", ["y", "x", "y"], log(1, 2))) == "when('a.b', ['x', 'y'], log(1.0, 2.0))"
    assert when("a.b", ["x"], log(1, 2)) == when("a.b", "x", log(1, 2))


@examples(60)
@given(ranges | finite)
def test_grid_values_are_distinct_values_of_the_domain(domain):
    values = domain.values()
    assert values is None or (
        all(map(domain.contains, values)) and len({repr(value) for value in values}) == len(values)
    )


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: uniform(1, 1), "uniform(1, 1): low must be less than high"),
        (lambda: log(0, 1), "log(0, 1): a logarithmic range needs low > 0"),
        (lambda: uniform("0", 1), "low must be a number, found '0'"),  # type: ignore[arg-type]
        (lambda: uniform(False, 1), "low must be a number, found False"),
        (lambda: uniform(0, float("inf")), "uniform(0, inf): high is too large"),
        (lambda: integer(0, 1.5), "integer(0, 1.5): high must be an integer, found 1.5"),  # type: ignore[arg-type]
        (lambda: integer(0, 2**54), "high is too large"),
        (lambda: uniform(0, 1, 2), "step must be more than 0 and at most high - low"),
        (lambda: uniform(0, 1, 0), "step must be more than 0"),
        (lambda: uniform(0, 1e30, 1e-3), "step is too small for this range"),
        (lambda: uniform(1e10, 2e10, 1.000000000001), "step has too many digits for its range"),
        (lambda: uniform(0, 1, points=1), "points must be an integer from 2 to 10000"),
        (lambda: uniform(0, 1, 0.1, points=3), "step and points exclude each other"),
        (lambda: choice(), "choice(): needs at least one value"),
        (lambda: choice(1, True), "1 and True are the same value"),
        (lambda: choice((1, 2), "(1, 2)"), "are the same value"),
        (lambda: choice({"a": 1}), "found {'a': 1}. Allowed: texts, numbers,"),
        (lambda: choice(float("nan")), "found nan. Values are finite numbers"),
        (lambda: when("a.b", [], log(1, 2)), "the list of values is empty"),
        (lambda: when("a.b", 1, when("a.c", 1, log(1, 2))), "without a further when"),  # type: ignore[arg-type]
        (lambda: when(3, 1, log(1, 2)), "the first argument is the name of a setting"),  # type: ignore[arg-type]
    ],
)
def test_impossible_domains_are_refused_with_a_sentence(make, problem):
    with pytest.raises(ConfigError) as error:
        make()
    assert problem in str(error.value)
