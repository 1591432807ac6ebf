import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import DataError
from engine.data.batches import Batches, OrderedBatches
from engine.data.ragged.balanced import Balanced, deal
from engine.data.ragged.packing import Packed
from engine.data.ragged.padded import Bucketed, Padded
from engine.data.sampling.mixture import Mixture
from engine.data.source import ArraySource, limited
from tests import properties
from tests.data.scenes import FIELDS, Scenes

SIZES = np.clip(np.random.default_rng(0).lognormal(np.log(15), 1.0, 2000).round(), 3, 300).astype(int)


def imbalance(costs, ranks):
    sums = costs.reshape(ranks, -1).sum(1)
    return sums.max() / sums.mean() - 1


def sizes_of(batches, n):
    sizes = batches.sizes(n)
    assert sizes is not None
    return sizes


@given(
    costs=st.lists(st.integers(0, 1000), min_size=12, max_size=12),
    ranks=st.sampled_from([1, 2, 3, 4, 6, 12]),
)
@properties.examples(200)
def test_deal_keeps_every_row_and_does_not_raise_the_largest_sum(costs, ranks):
    costs = np.array(costs, float)
    order = deal(costs, ranks)
    assert sorted(order) == list(range(12))
    assert order.tolist() == deal(costs, ranks).tolist()
    blocks = order.reshape(ranks, -1)
    assert (np.diff(blocks, axis=1) > 0).all()  # the rows of a rank stay in order
    assert costs[order].reshape(ranks, -1).sum(1).max() <= costs.reshape(ranks, -1).sum(1).max() + 1e-9


def test_eight_ranks_of_32_long_tailed_rows_are_balanced_within_1_percent():
    rng = np.random.default_rng(1)
    batches = [rng.choice(SIZES, 256).astype(float) for _ in range(100)]
    assert np.percentile([imbalance(costs[deal(costs, 8)], 8) for costs in batches], 95) < 0.01
    assert np.percentile([imbalance(costs, 8) for costs in batches], 95) > 0.2


SOURCES = [
    Padded(Scenes(SIZES.tolist()), 300, FIELDS),
    Bucketed(Scenes(SIZES.tolist()), [20, 300], FIELDS),
    Packed(Scenes(SIZES.tolist()), 300, fields=FIELDS),
    Mixture(
        {
            "a": Padded(Scenes(SIZES[:500].tolist()), 300, FIELDS),
            "b": Padded(Scenes(SIZES[500:].tolist()), 300, FIELDS),
        },
        {"a": 1, "b": 2},
    ),
]
PLAIN = Mixture({"a": ArraySource({"x": np.arange(50)})}, {"a": 1})


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_balanced_batch_has_the_same_examples_in_another_order_on_any_number_of_processes(source):
    plain, balanced = (Batches(s, 32, 0, True) for s in (source, Balanced(source, 8)))
    for n in (0, 7, 65):
        assert sorted(plain.addresses(n)) == sorted(balanced.addresses(n)) != balanced.addresses(n).tolist()
        parts = [Batches(Balanced(source, 8), 32, 0, True, slice(i * 16, i * 16 + 16)) for i in (0, 1)]
        assert np.concatenate([part.addresses(n) for part in parts]).tolist() == balanced.addresses(n).tolist()
        assert plain.shape(n) == balanced.shape(n)
        cost = [sizes_of(batches, n).cost for batches in (plain, balanced)]
        assert imbalance(cost[1], 8) <= imbalance(cost[0], 8)
    examples = balanced[0].examples
    sizes = sizes_of(balanced, 0)
    assert examples["mask"].sum(1).tolist() == sizes.elements.tolist()
    assert (examples["mask"].shape[1] == sizes.space).all()


def test_cost_method_of_the_source_replaces_the_length():
    class Squared(Scenes):
        def costs(self):
            return np.square(self.sizes)

    source = Squared(SIZES.tolist())
    for wrapped in (Padded(source, 300, FIELDS), Packed(source, 300, fields=FIELDS)):
        batches = Batches(Balanced(wrapped, 4), 16, 0, True)
        examples, cost = batches[3].examples, sizes_of(batches, 3).cost
        scenes = examples["scene"].reshape(16, -1)
        mask = examples.get("segment_mask", np.ones((16, 1), bool))
        assert cost.tolist() == [np.square(SIZES[row[inside]]).sum() for row, inside in zip(scenes, mask, strict=True)]


class Weighed(ArraySource):
    def costs(self):
        return self.arrays["cost"]


def test_mixture_is_balanced_by_the_costs_that_its_sources_define():
    class Squared(Scenes):
        def costs(self):
            return np.square(self.sizes)

    # Each source has its own scale of costs, so a cost that is looked up in another source or row is far off.
    plain = {name: Weighed({"cost": SIZES[:60] * scale}) for name, scale in {"a": 1, "b": 1000, "c": 10**6}.items()}
    padded = {
        name: Padded(kind(SIZES[:60].tolist()), 300, FIELDS) for name, kind in {"a": Scenes, "b": Squared}.items()
    }
    for sources in (plain, padded):
        batches = Batches(Balanced(Mixture(sources, dict.fromkeys(sources, 1)), 4), 24, 0, True)
        for n in (0, 5, 1000):
            examples, cost = batches[n].examples, sizes_of(batches, n).cost
            if sources is plain:
                assert cost.tolist() == examples["cost"].tolist()
            else:
                elements = examples["mask"].sum(1)
                assert set(cost.tolist()) <= {*elements.tolist(), *np.square(elements).tolist()}
                assert cost.sum() > 2 * elements.sum()
            assert imbalance(cost, 4) < imbalance(np.sort(cost), 4)


def test_costs_of_a_source_with_its_own_sampler_are_those_of_the_examples_that_it_locates():
    class Backwards(Weighed):
        def sampler(self, seed, shuffle):
            return BackwardsSampler(self)

    class BackwardsSampler:
        has_transform, vectorized = False, True

        def __init__(self, source):
            self.source = source

        def addresses(self, positions):
            return 10 * (positions % len(self.source))

        def read(self, addresses):
            return self.source.take(len(self.source) - 1 - addresses // 10)

        def locate(self, address):
            return self.source, len(self.source) - 1 - address // 10

    batches = Batches(Balanced(Backwards({"cost": np.arange(40)}), 2), 8, 0, True)
    assert sizes_of(batches, 3).cost.tolist() == batches[3].examples["cost"].tolist()


def test_costs_of_a_mixture_itself_are_refused():
    class Costly(Mixture):
        def costs(self):
            return np.ones(len(self))

    with pytest.raises(
        DataError, match=r"Costly defines costs, but a mixture applies the costs of its sources. Define"
    ):
        Batches(Balanced(Costly({"a": Weighed({"cost": np.arange(4)})}, {"a": 1}), 2), 4, 0, True)


def test_plain_source_with_costs_is_balanced():
    costs = SIZES[:400].astype(np.float32)
    batches = Batches(Balanced(Weighed({"cost": costs}), 4), 128, 0, True)
    assert max(imbalance(batches[n].examples["cost"], 4) for n in range(12)) < 0.01


def test_evaluation_reads_each_example_once_in_the_order_without_balance():
    for source in (*SOURCES, PLAIN):
        plain, balanced = OrderedBatches(source, 7), OrderedBatches(Balanced(source, 7), 7)
        np.testing.assert_equal(balanced[1].examples, plain[1].examples)
    assert len(limited(Balanced(SOURCES[1], 2), 5)) == 5
    assert Balanced(SOURCES[1], 2).fingerprint() != Balanced(SOURCES[1], 4).fingerprint()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Balanced(SOURCES[0], 0), "ranks = 0: allowed are 1 and more"),
        (lambda: Batches(Balanced(SOURCES[0], 3), 8, 0, True), "a batch of 8 rows is not divisible by ranks = 3"),
        (
            lambda: Batches(Balanced(PLAIN, 2), 8, 0, True),
            "costs of the examples of .*ArraySource are not known. Give",
        ),
        (
            lambda: Batches(Mixture({"a": Balanced(SOURCES[0], 2)}, {"a": 1}), 8, 0, True),
            r"cannot be a part of a mixture. Balance the mixture: Balanced\(Mixture",
        ),
    ],
)
def test_invalid_arguments_raise_data_error(make, text):
    with pytest.raises(DataError, match=text):
        make()


def test_invalid_costs_raise_data_error():
    class Wrong(Scenes):
        def costs(self):
            return [1.0, np.nan, 2.0]

    with pytest.raises(
        DataError, match=r"Wrong.costs\(\) returned float64\[3\]: allowed are finite numbers of at least"
    ):
        Batches(Balanced(Padded(Wrong([1, 2, 3]), 4, FIELDS), 1), 2, 0, True)[0]
