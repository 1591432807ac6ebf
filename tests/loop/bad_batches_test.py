"""Bad batches in the results of steps: which are bad, why, and when a series of them is too long."""

import numpy as np
import pytest

from engine.loop.bad_batches import MAX_BAD_IN_A_ROW, BadBatch, BadBatches, Series

NAMES = ("loss", "grad_norm", "skipped")


def results(*steps):
    """Metrics of steps, each given as (loss, norm of the gradient, skipped)."""
    return np.stack([np.array(steps, np.float32), np.ones((len(steps), len(NAMES)))], axis=-1)


@pytest.mark.parametrize(
    ("loss", "norm", "problem"),
    [
        (np.nan, np.nan, "the loss is not finite"),
        (1.0, np.inf, "the gradient of a finite loss is not finite"),
        (1e9, 1.0, "the loss is a spike"),
    ],
)
def test_skipped_update_is_a_bad_batch_with_its_problem(loss, norm, problem):
    bad = BadBatches(NAMES)
    assert bad.add_results(7, results((1, 1, 0), (loss, norm, 1), (1, 1, 0)), set()) == [BadBatch(8, problem)]
    assert bad.undecided == [BadBatch(8, problem)] and bad.in_a_row == 0 and bad.series is None


def test_batch_of_the_skip_mask_is_not_bad_but_counts_in_a_row():
    bad = BadBatches(NAMES)
    assert bad.add_results(7, results((1, 1, 1)), {7}) == []
    assert bad.in_a_row == 1


def test_series_starts_at_the_first_skipped_batch_and_is_kept_after_a_good_step():
    bad = BadBatches(NAMES)
    bad.add_results(5, results(*[(1, 1, 1)] * MAX_BAD_IN_A_ROW, (1, 1, 0)), {5, 6})
    assert (bad.series, bad.in_a_row) == (Series(start=5, first_bad=7), 0)
    bad.clear()
    assert (bad.series, bad.undecided) == (None, [])
