import math
import tracemalloc

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.sampling.shuffle import EpochPermutation, PartPermutations, derive_seed, random_generators


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 255, 256, 257, 1000, 1001, 65_536, 65_537])
def test_every_epoch_is_a_permutation(size):
    order = EpochPermutation(size, seed=7, shuffle=True)
    for epoch in (0, 1, 2, 1_000_000):
        indices = order.indices(epoch * size + np.arange(size))
        assert np.array_equal(np.sort(indices), np.arange(size))


def test_epochs_and_seeds_have_different_permutations():
    first = EpochPermutation(1000, seed=0, shuffle=True).indices(np.arange(3000)).reshape(3, 1000)
    other = EpochPermutation(1000, seed=1, shuffle=True).indices(np.arange(1000))
    orders = [*first, other, np.arange(1000)]
    for i, order in enumerate(orders):
        for earlier in orders[:i]:
            assert (order == earlier).mean() < 0.02  # 1 in 1000 agrees by chance
            assert abs(np.corrcoef(order, earlier)[0, 1]) < 0.2


def test_index_depends_only_on_its_position():
    order = EpochPermutation(97, seed=3, shuffle=True)
    whole = order.indices(np.arange(1000))
    positions = np.array([999, 5, 96, 97, 5])
    assert np.array_equal(order.indices(positions), whole[positions])


def test_each_part_has_its_own_permutation_in_each_of_its_epochs():
    sizes = np.array([1, 0, 7, 65, 1000])
    order = PartPermutations(sizes, seed=3, shuffle=True)
    for epoch in (0, 3, 10**6):
        parts = np.repeat(np.arange(5), sizes)
        positions = np.concatenate([epoch * size + np.arange(size) for size in sizes])
        shuffled = np.random.default_rng(0).permutation(len(parts))
        found = np.empty_like(parts)
        found[shuffled] = order.indices(parts[shuffled], positions[shuffled])
        for part, size in enumerate(sizes):
            assert sorted(found[parts == part]) == list(range(size))
    equal = PartPermutations(np.array([500, 500]), seed=3, shuffle=True)
    orders = [equal.indices(np.full(500, part), np.arange(500) + start) for part in (0, 1) for start in (0, 500)]
    assert max((one == other).mean() for i, one in enumerate(orders) for other in orders[:i]) < 0.02
    plain = PartPermutations(sizes, seed=3, shuffle=False)
    assert plain.indices(np.array([2, 2, 3]), np.array([6, 8, 64])).tolist() == [6, 1, 64]


def test_permutations_and_seeds_equal_stored_numbers():
    # Resumed runs rely on these orders and seeds: never change these numbers.
    assert EpochPermutation(10, seed=0, shuffle=True).indices(np.arange(10)).tolist() == [5, 8, 3, 2, 0, 1, 9, 7, 4, 6]
    assert EpochPermutation(10**9, seed=5, shuffle=True).indices(np.arange(3) + 10**10).tolist() == [
        840082654,
        546257942,
        29568208,
    ]
    assert [int(rng.integers(10**6)) for rng in random_generators(0, np.array([0, 1, 10**12]))] == [
        466535,
        968160,
        42792,
    ]
    assert derive_seed(0, "documents") == 15810802007870417540


def test_without_shuffle_indices_are_in_stored_order():
    assert EpochPermutation(4, seed=0, shuffle=False).indices(np.arange(6)).tolist() == [0, 1, 2, 3, 0, 1]


def test_all_permutations_of_a_small_source_are_equally_likely():
    epochs = 12_000
    orders = EpochPermutation(4, seed=1, shuffle=True).indices(np.arange(4 * epochs)).reshape(epochs, 4)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == math.factorial(4)
    expected = epochs / math.factorial(4)
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi square, 23 degrees of freedom: 1 in 1000


def test_each_example_reaches_every_position_equally_often():
    size, epochs = 1001, 500
    orders = EpochPermutation(size, seed=1, shuffle=True).indices(np.arange(size * epochs)).reshape(epochs, size)
    steps = np.bincount((np.diff(orders, axis=1) % size).ravel(), minlength=size)[1:]
    for counts in (steps, np.bincount((orders[:, 0] // 91), minlength=11)):
        expected = counts.mean()
        freedom = len(counts) - 1
        assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * math.sqrt(2 * freedom)


def test_permutation_of_a_billion_examples_needs_no_memory():
    order = EpochPermutation(10**9, seed=0, shuffle=True)
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


def test_empty_source_raises_data_error():
    with pytest.raises(DataError, match="needs at least one"):
        EpochPermutation(0, seed=0, shuffle=True)


def test_random_generator_depends_only_on_seed_and_position():
    def numbers(seed, positions):
        return [float(rng.random()) for rng in random_generators(seed, np.array(positions))]

    assert numbers(0, [3, 4]) == [numbers(0, [3])[0], numbers(0, [4])[0]]
    assert len({*numbers(0, range(1000)), *numbers(1, range(1000))}) == 2000


def test_random_numbers_of_neighbouring_positions_are_independent():
    first = np.array([rng.random(2) for rng in random_generators(0, np.arange(4000))])
    assert abs(first.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1]) < 0.07
    assert abs(np.corrcoef(first[:, 0], first[:, 1])[0, 1]) < 0.07


def test_derived_seeds_differ_by_name():
    seeds = [0, 1, *(derive_seed(seed, name) for seed in (0, 1) for name in ("", "a", "b", "ab"))]
    assert len(set(seeds)) == len(seeds)
    firsts = {tuple(EpochPermutation(1000, seed, True).indices(np.arange(5)).tolist()) for seed in seeds}
    assert len(firsts) == len(seeds)
    assert derive_seed(derive_seed(0, "a"), "b") != derive_seed(derive_seed(0, "b"), "a")
