"""Settings that must not change the result of a run do not change it in pairs either (`pairs.py`)."""

import itertools

import numpy as np
import pytest

from engine.base.errors import ConvoyError
from tests.models import pairs

TOLERANCES = {"losses": 1e-5, "changes": 1e-4, "averages": 1e-5}
"""The change of a parameter is the difference of two parameters about 1,000 times as large."""
ROUGH = {"losses": 5e-3, "changes": 0.4, "averages": 0.03}
"""With products in float8. A relative change of the parameters by 1e-5 on one device changes them by up to 0.001, 0.16
and 0.009, and one by 1e-3 by up to 0.001, 0.31 and 0.014: rounding decides much of the gradient."""


def error(wanted: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest difference of an array over its norm, or over its share of the norm of all, and its path."""
    norm = np.sqrt(sum(np.square(x).sum() for x in wanted.values()))
    count = sum(x.size for x in wanted.values())

    def of(path: str) -> float:
        least = 1e-2 * norm * np.sqrt(wanted[path].size / count)
        return float(np.linalg.norm(found[path] - wanted[path]) / max(np.linalg.norm(wanted[path]), least))

    return max((of(path), path) for path in wanted)


def test_rows_have_each_combination_of_two_settings():
    every = {
        ((a, on), (b, too))
        for a, b in itertools.combinations(pairs.SETTINGS, 2)
        for on, too in itertools.product((False, True), repeat=2)
    }
    assert pairs.combinations(pairs.ROWS) == every


@pytest.mark.slow
@pytest.mark.parametrize("row", pairs.ROWS)
def test_settings_of_a_row_do_not_change_the_result(row):
    settings = pairs.settings_of(row)
    wanted, found = pairs.alone(settings & pairs.CHANGES_RESULT), pairs.train(settings, 8)
    errors = {
        "losses": (float(np.abs(1 - found.losses / wanted.losses).max()), ""),
        "changes": error(wanted.changes, found.changes),
    }
    if found.averages is not None:
        assert wanted.averages is not None
        errors["averages"] = error(wanted.averages, found.averages)
    limits = ROUGH if "float8" in settings else TOLERANCES
    assert all(errors[name][0] <= limits[name] for name in errors), errors


@pytest.mark.parametrize("name", pairs.REFUSED)
def test_combination_is_refused_with_its_sentence(name):
    attempt, sentence = pairs.REFUSED[name]
    with pytest.raises(ConvoyError) as error:
        attempt()
    assert str(error.value).startswith(sentence)
