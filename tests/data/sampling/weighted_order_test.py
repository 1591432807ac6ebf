import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.data.sampling.shuffle import derive_seed
from engine.data.sampling.weighted_order import ExampleOrder, StagedOrder
from tests import properties

WEIGHTS = st.lists(st.integers(0, 9), min_size=12, max_size=12).filter(any).map(lambda found: np.array(found, float))


@given(
    stages=st.lists(st.tuples(st.integers(1, 60), WEIGHTS), min_size=1, max_size=4),
    seed=st.integers(0, 9),
    shuffle=st.booleans(),
    first=st.integers(0, 300),
)
@properties.examples(60)
def test_each_stage_draws_what_its_weights_alone_draw_from_its_start(stages, seed, shuffle, first):
    starts = np.cumsum([0, *(length for length, _ in stages[:-1])]).tolist()
    weights = [found for _, found in stages]
    order = StagedOrder(list(zip(starts, weights, strict=True)), False, seed, shuffle)
    found = order.indices(np.arange(400))
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], 400], strict=True)):
        alone = ExampleOrder(weights[number], derive_seed(seed, f"weights {number}"), shuffle)
        assert found[start:end].tolist() == alone.indices(np.arange(end - start)).tolist()
    assert order.indices(np.arange(first, 400)).tolist() == found[first:].tolist()


@given(one=WEIGHTS, two=WEIGHTS, seed=st.integers(0, 9), first=st.integers(0, 3000))
@properties.examples(30)
def test_interpolated_weights_are_exact_in_total_and_after_the_last_time(one, two, seed, first):
    order = StagedOrder([(0, one), (2400, two)], True, seed, True)
    found = order.indices(np.arange(3600))
    assert order.indices(np.arange(first, 3600)).tolist() == found[first:].tolist()
    shares = [12 * weights / weights.sum() for weights in (one, two)]
    counts = [np.bincount(part, minlength=12) for part in np.split(found, [1200, 2400])]
    for count, share in zip(counts, (0.75, 0.25, 0), strict=True):  # share of the first weights, on average
        expected = 100 * (share * shares[0] + (1 - share) * shares[1])
        assert np.abs(count - expected).max() < 6
    assert set(np.flatnonzero(counts[2])) == set(np.flatnonzero(two))
