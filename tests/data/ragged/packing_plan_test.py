import numpy as np
import pytest

from engine.data.ragged.packing_plan import SplitPlanner, WholePlanner, best_fit

LENGTHS = [
    np.array([5]),
    np.array([8, 8, 8]),
    np.array([0, 0, 3, 0, 21, 1, 0]),
    np.random.default_rng(0).integers(0, 30, 200),
]


def rows_of(plan):
    """Returns the pieces (document, start, stop) of each row."""
    pieces = list(zip(plan.document.tolist(), plan.start.tolist(), plan.stop.tolist(), strict=True))
    return [pieces[begin:end] for begin, end in zip(plan.first[:-1], plan.first[1:], strict=True)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=len)
@pytest.mark.parametrize("planner", [SplitPlanner, WholePlanner])
def test_every_token_is_in_exactly_one_row_for_any_permutation(planner, lengths):
    planned = planner(lengths, 8)
    for seed in range(3):
        plan = planned.plan(np.random.default_rng(seed).permutation(planned.items))
        rows = rows_of(plan)
        assert len(rows) == planned.rows
        assert all(row and sum(stop - start for _, start, stop in row) <= 8 for row in rows)
        found = sorted((d, t) for row in rows for d, start, stop in row for t in range(start, stop))
        assert found == [(d, t) for d, length in enumerate(lengths) for t in range(length)]


def test_split_planner_concatenates_documents_and_cuts_at_row_borders():
    rows = rows_of(SplitPlanner(np.array([3, 6, 1]), 4).plan(np.array([1, 2, 0])))
    assert rows == [[(1, 0, 4)], [(1, 4, 6), (2, 0, 1), (0, 0, 1)], [(0, 1, 3)]]


def test_whole_planner_cuts_only_documents_longer_than_a_row():
    lengths = LENGTHS[-1]
    plan = WholePlanner(lengths, 8).plan(np.arange(int((-(-lengths // 8)).sum())))
    for document, start, stop in zip(plan.document, plan.start, plan.stop, strict=True):
        assert start % 8 == 0
        assert stop == min(lengths[document], start + 8)


def test_permutation_exchanges_only_pieces_of_equal_length():
    planner = WholePlanner(LENGTHS[-1], 8)
    one, two = (planner.plan(np.random.default_rng(seed).permutation(planner.items)) for seed in range(2))
    assert one.document.tolist() != two.document.tolist()
    assert (one.stop - one.start).tolist() == (two.stop - two.start).tolist()
    assert one.first.tolist() == two.first.tolist()


def slow_best_fit(sizes, capacity):
    """Returns the sorted sums of best fit, one item at a time; ties between equally full rows do not matter."""
    rows = []
    for size in sizes:
        fitting = [number for number, used in enumerate(rows) if used + size <= capacity]
        if not fitting:
            fitting = [len(rows)]
            rows.append(0)
        rows[max(fitting, key=rows.__getitem__)] += size
    return sorted(rows)


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_equals_placing_one_item_at_a_time(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 40))
    sizes = np.sort(rng.integers(1, capacity + 1, rng.integers(1, 300)))[::-1]
    assert sorted(np.bincount(best_fit(sizes, capacity), sizes).tolist()) == slow_best_fit(sizes.tolist(), capacity)
