import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sequences.row_plan import RowPlan

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=20)


@given(SIZES, st.integers(1, 6), st.integers(0, 3), st.booleans(), st.integers(0, 5))
def test_each_epoch_reads_each_segment_once_in_one_row_and_in_order(sizes, rows, seed, shuffle, epoch):
    plan = RowPlan(np.array(sizes), rows, seed, shuffle)
    positions = (epoch * plan.steps + np.arange(plan.steps))[:, None] * rows + np.arange(rows)
    segments, windows, idle = (x.reshape(positions.shape) for x in plan.locate(positions.reshape(-1)))
    assert (plan.epochs(positions) == epoch).all()
    read = []
    for row in range(rows):
        used = ~idle[:, row]
        assert (np.diff(used.astype(int)) <= 0).all()  # idle at the end only
        own = list(zip(segments[used, row].tolist(), windows[used, row].tolist(), strict=True))
        for (segment, window), (after, first) in itertools.pairwise(own):
            assert (after, first) == (segment, window + 1) or (window == sizes[segment] - 1 and first == 0)
        read += own
    assert sorted(read) == [(segment, window) for segment, size in enumerate(sizes) for window in range(size)]
    assert plan.idle == pytest.approx(idle.mean())


@given(SIZES, st.integers(1, 6))
def test_an_epoch_takes_at_most_a_third_longer_than_the_shortest_possible_one(sizes, rows):
    plan = RowPlan(np.array(sizes), rows, 0, True)
    assert plan.steps <= 4 / 3 * max(-(-sum(sizes) // rows), max(sizes)) + max(sizes) / 3
    assert plan.steps >= max(-(-sum(sizes) // rows), max(sizes))


def test_plan_depends_on_seed_and_epoch_only_if_it_is_shuffled():
    sizes = np.array([3, 3, 3, 2, 2, 5, 1, 1])

    def first(seed, shuffle, epoch=0):
        plan = RowPlan(sizes, 3, seed, shuffle)
        return plan.locate(epoch * plan.steps * 3 + np.arange(plan.steps * 3))[0].tolist()

    assert first(0, True) == first(0, True) != first(1, True)
    assert len({tuple(first(0, True, epoch)) for epoch in range(5)}) == 5
    assert first(0, False) == first(1, False) == first(0, False, 3)


def test_positions_may_be_of_several_epochs_and_in_any_order():
    plan = RowPlan(np.array([3, 1, 2, 2]), 2, 0, True)
    positions = np.random.default_rng(0).permutation(plan.steps * 2 * 4)
    together = np.stack(plan.locate(positions))
    each = np.concatenate([np.stack(plan.locate(positions[i : i + 1])) for i in range(len(positions))], axis=1)
    np.testing.assert_array_equal(together, each)


def test_rows_without_a_segment_are_idle():
    plan = RowPlan(np.array([2, 1]), 4, 0, False)
    segments, windows, idle = plan.locate(np.arange(8))
    assert plan.idle == 5 / 8
    assert segments.tolist() == [0, 1, -1, -1] * 2 and windows.tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert idle.tolist() == [False, False, True, True, False, True, True, True]
