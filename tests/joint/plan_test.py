"""Which datasets a step takes."""

import pytest

from engine.base.errors import DataError
from engine.joint.plan import Choose, Every


def check(plan, names, steps):
    """Compares `before` with a count of `taken`, and returns what the steps take."""
    counts = dict.fromkeys(names, 0)
    found = []
    for step in range(steps):
        assert {name: plan.before(step, name) for name in names} == counts
        taken = plan.taken(step)
        assert tuple(taken) in plan.sets()
        for name in taken:
            counts[name] += 1
        found.append(tuple(taken))
    assert set(plan.sets()) == set(found)
    return found


def test_every_takes_a_dataset_in_each_nth_step():
    found = check(Every({"boxes": 1, "lanes": 2, "lines": 3}), ("boxes", "lanes", "lines"), 30)
    assert [len(taken) for taken in found[:6]] == [1, 2, 2, 2, 1, 3]


def test_choose_takes_one_dataset_in_the_proportions():
    found = check(Choose({"boxes": 3, "lanes": 1}), ("boxes", "lanes"), 40)
    assert all(len(taken) == 1 for taken in found)
    for first in range(0, 40, 4):
        assert found[first : first + 4].count(("lanes",)) == 1


def test_plan_with_an_empty_step_or_a_long_period_is_refused():
    with pytest.raises(DataError, match=r"every = boxes 2, lanes 3: the first step would take no dataset"):
        Every({"boxes": 2, "lanes": 3})
    with pytest.raises(DataError, match=r"repeats after [0-9,]+ steps, allowed are 65,536"):
        Every({"boxes": 1, "lanes": 999, "lines": 1000, "points": 999_001})
