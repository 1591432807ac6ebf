import math
import tracemalloc

import numpy as np
import pytest

from engine.config.errors import DataError
from engine.data.shuffle import Order, derived, draws


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 255, 256, 257, 1000, 1001, 65_536, 65_537])
def test_every_epoch_is_a_permutation(size):
    order = Order(size, seed=7, shuffle=True)
    for epoch in (0, 1, 2, 1_000_000):
        indices = order.indices(epoch * size + np.arange(size))
        assert np.array_equal(np.sort(indices), np.arange(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    first = Order(1000, seed=0, shuffle=True).indices(np.arange(3000)).reshape(3, 1000)
    other = Order(1000, seed=1, shuffle=True).indices(np.arange(1000))
    orders = [*first, other, np.arange(1000)]
    for i, one in enumerate(orders):
        for two in orders[:i]:
            assert (one == two).mean() < 0.02  # 1 in 1000 agrees by chance
            assert abs(np.corrcoef(one, two)[0, 1]) < 0.2


def test_an_index_depends_on_its_place_only():
    order = Order(97, seed=3, shuffle=True)
    whole = order.indices(np.arange(1000))
    places = np.array([999, 5, 96, 97, 5])
    assert np.array_equal(order.indices(places), whole[places])


def test_the_order_stays_as_it_is_in_every_release():
    # A resumed run relies on it: never change these numbers.
    assert Order(10, seed=0, shuffle=True).indices(np.arange(10)).tolist() == [5, 8, 3, 2, 0, 1, 9, 7, 4, 6]
    assert Order(10**9, seed=5, shuffle=True).indices(np.arange(3) + 10**10).tolist() == [
        840082654,
        546257942,
        29568208,
    ]
    assert [int(rng.integers(10**6)) for rng in draws(0, np.array([0, 1, 10**12]))] == [466535, 968160, 42792]
    assert derived(0, "documents") == 15810802007870417540


def test_without_shuffle_the_source_is_read_as_it_lies():
    assert Order(4, seed=0, shuffle=False).indices(np.arange(6)).tolist() == [0, 1, 2, 3, 0, 1]


def test_all_orders_of_a_small_source_are_equally_likely():
    epochs = 12_000
    orders = Order(4, seed=1, shuffle=True).indices(np.arange(4 * epochs)).reshape(epochs, 4)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == math.factorial(4)
    expected = epochs / math.factorial(4)
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi square, 23 degrees of freedom: 1 in 1000


def test_examples_come_to_every_place_equally_often():
    size, epochs = 1001, 500
    orders = Order(size, seed=1, shuffle=True).indices(np.arange(size * epochs)).reshape(epochs, size)
    steps = np.bincount((np.diff(orders, axis=1) % size).ravel(), minlength=size)[1:]
    for counts in (steps, np.bincount((orders[:, 0] // 91), minlength=11)):
        expected = counts.mean()
        freedom = len(counts) - 1
        assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * math.sqrt(2 * freedom)


def test_a_billion_examples_cost_no_memory():
    order = Order(10**9, seed=0, shuffle=True)
    tracemalloc.start()
    try:
        indices = order.indices(np.arange(10**12, 10**12 + 1024))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000  # bytes
    assert len(np.unique(indices)) == 1024
    assert indices.min() >= 0
    assert indices.max() < 10**9


def test_an_empty_source_has_no_order():
    with pytest.raises(DataError, match="needs at least one"):
        Order(0, seed=0, shuffle=True)


def test_draws_depend_on_the_seed_and_the_place_only():
    def numbers(seed, places):
        return [float(rng.random()) for rng in draws(seed, np.array(places))]

    assert numbers(0, [3, 4]) == [numbers(0, [3])[0], numbers(0, [4])[0]]
    assert len({*numbers(0, range(1000)), *numbers(1, range(1000))}) == 2000


def test_draws_of_neighbouring_places_are_independent():
    first = np.array([rng.random(2) for rng in draws(0, np.arange(4000))])
    assert abs(first.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1]) < 0.07
    assert abs(np.corrcoef(first[:, 0], first[:, 1])[0, 1]) < 0.07


def test_each_part_of_a_source_has_a_seed_of_its_own():
    seeds = [0, 1, *(derived(seed, name) for seed in (0, 1) for name in ("", "a", "b", "ab"))]
    assert len(set(seeds)) == len(seeds)
    firsts = {tuple(Order(1000, seed, True).indices(np.arange(5)).tolist()) for seed in seeds}
    assert len(firsts) == len(seeds)
    assert derived(derived(0, "a"), "b") != derived(derived(0, "b"), "a")
