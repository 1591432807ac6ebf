"""The waits are those of the run's metrics, weighted by time."""

import pytest

from benchmarks import data_wait, workloads
from benchmarks.data_wait import Interval, Waits


@pytest.mark.slow
def test_every_interval_after_the_first_turn_counts():
    waits = data_wait.measure(workloads.DIGITS, 2, 0, 40, log__every="20 steps")
    assert [interval.step for interval in waits.intervals] == [60, 80, 100, 120]
    assert all(0 <= interval.share <= 1 and interval.step_s > 0 for interval in waits.intervals)
    assert len(waits.step_ms) == len(waits.batch_ms) == 2


def test_share_of_a_turn_is_weighted_by_time():
    intervals = [Interval(100, 0.5, 1.0), Interval(200, 0.1, 3.0), Interval(300, 0.0, 1.0)]
    waits = Waits(intervals, 200, [2.0], [1.0])
    assert data_wait.shares(waits) == pytest.approx((20.0, 0.0))  # steps 1 to 200, 201 to 400
    assert "16.00 % of all turns; step 2.000 ms, batch alone 1.000 ms" in data_wait.row("digits", waits).note
