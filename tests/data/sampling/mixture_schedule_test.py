import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.sampling.mixture_schedule import schedule, shares


@pytest.mark.parametrize("seed", range(10))
def test_schedule_is_proportionate_at_every_position(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 50, rng.integers(1, 9))
    sources = schedule(counts)
    assert len(sources) == counts.sum()
    for number, count in enumerate(counts):
        lag = np.cumsum(sources == number) - np.arange(1, len(sources) + 1) * count / len(sources)
        assert np.abs(lag).max() < 1


def test_simple_fractions_are_kept_exactly():
    assert shares([0.7, 0.2, 0.1]).tolist() == [7, 2, 1]
    assert shares([1 / 3, 2 / 3]).tolist() == [1, 2]
    assert shares([30, 10]).tolist() == [3, 1]
    assert shares([3e-9, 1e-9]).tolist() == [3, 1]
    assert shares([1.0]).tolist() == [1]
    assert shares([np.pi, 1]).tolist() == [7585, 2415]
    assert shares([1, 1, 1]).tolist() == [1, 1, 1]
    assert shares([0, 2, 1]).tolist() == [0, 2, 1]
    assert set(schedule(np.array([0, 2, 1]))) == {1, 2}


def test_weight_below_one_in_the_period_raises_data_error():
    with pytest.raises(DataError, match=r"weight 1e-05 of 1.00001 in total is less than 1 in 10,000 examples. Rem"):
        shares([1, 1e-5])
