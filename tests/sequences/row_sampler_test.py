import numpy as np
import pytest

from engine.sequences.row_plan import RowPlan
from engine.sequences.row_sampler import EvaluationOrder, RowSampler
from tests.drives import SIZES, windows


@pytest.fixture(scope="module")
def source():
    return windows(4)


@pytest.fixture(scope="module")
def sampler(source):
    return RowSampler(source, RowPlan(source.windows.sizes, 7, 3, True))


def test_an_idle_row_repeats_its_last_window_with_weight_0(source, sampler):
    addresses = sampler.addresses(np.arange(35)).reshape(5, 7)
    weights = sampler.weights(addresses.reshape(-1)).reshape(5, 7)
    assert weights.dtype == np.float32 and 0 < weights.sum() == len(source) < 35
    for before, after, weight in zip(addresses, addresses[1:], weights[1:], strict=False):
        assert (after[weight == 0] >> 1).tolist() == (before[weight == 0] >> 1).tolist()


def test_addresses_locate_the_window(source, sampler):
    addresses = sampler.addresses(np.arange(35))
    found, index = sampler.locate(int(addresses[9]))
    assert found is source and sampler.read(addresses[9:10])["y"][0].tolist() == source[index]["y"].tolist()


def test_sizes_are_the_real_frames(source, sampler):
    sizes = sampler.sizes(sampler.addresses(np.arange(35)))
    assert sizes.elements.sum() == sum(SIZES) and sizes.space.tolist() == sizes.cost.tolist() == [4] * 35


def test_random_numbers_differ_between_drives_and_epochs(source, sampler):
    positions = np.arange(70)
    numbers = sampler.random_numbers(positions, sampler.addresses(positions))
    assert len(np.unique(numbers)) == 2 * len(SIZES)


def test_order_of_an_evaluation_has_each_window_once(source):
    order = EvaluationOrder(source, 7)
    assert order.positions is not None
    addresses = order.addresses(np.arange(order.positions))
    assert sorted((addresses[order.weights(addresses) == 1] >> 1).tolist()) == list(range(len(source)))
