import itertools

import pytest
from hypothesis import given

from engine.base.errors import ConfigError
from engine.sweeps.domains import When
from engine.sweeps.space import Space
from tests.properties import examples
from tests.sweeps.spaces import finite, spaces


@examples(60)
@given(spaces(finite))
def test_grid_is_the_product_with_conditional_settings_only_where_active(domains):
    space = Space.of(domains)
    inner = {name: domain.domain if isinstance(domain, When) else domain for name, domain in space.domains.items()}
    expected = []
    for combination in itertools.product(*(domain.values() or [] for domain in inner.values())):
        values = dict(zip(inner, combination, strict=True))
        for name, domain in space.domains.items():
            if isinstance(domain, When) and not any(
                domain.setting in values and repr(values[domain.setting]) == repr(value) for value in domain.values
            ):
                del values[name]
        if values not in expected:
            expected.append(values)
    assert [repr(values) for values in space.grid()] == [repr(values) for values in expected]


def test_grid_of_a_domain_without_a_number_of_values_is_refused():
    with pytest.raises(ConfigError) as error:
        Space.parse(None, {"task.a": "choice(1, 2)", "task.b": "when('task.a', 1, log(1e-4, 1e-2))"}).grid()
    assert str(error.value) == (
        "--space.task.b=when('task.a', 1, log(0.0001, 0.01)): a grid needs at most 10000 values. "
        "Add points=N: log(0.0001, 0.01, points=5)."
    )


def test_grid_that_is_too_large_is_refused():
    with pytest.raises(ConfigError, match="The grid has over 100000 combinations"):
        Space.parse(None, {f"task.{name}": "integer(1, 99)" for name in "abc"}).grid()
