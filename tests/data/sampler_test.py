import numpy as np
import pytest

from engine.config.errors import DataError
from engine.data.batches import Batches
from engine.data.sampler import gather, sampler_of, stack
from engine.data.shuffle import Order
from engine.data.source import ArraySource


class Backwards(ArraySource):
    """A source that brings its own order: the last example first, the same in every epoch."""

    def arranged(self, seed, shuffle):
        return BackwardsSampler(self)


class BackwardsSampler:
    changes, gathers = False, True

    def __init__(self, source):
        self.source = source

    def addresses(self, positions):
        return -1 - positions % len(self.source)

    def read(self, addresses):
        return self.source.take(addresses)

    def owner(self, address):
        return self.source, address


def labels(size=6):
    return {"label": np.arange(size, dtype=np.int32)}


def test_the_usual_sampler_is_a_new_permutation_in_every_epoch():
    positions = np.arange(18)
    sampler = sampler_of(ArraySource(labels()), seed=3, shuffle=True)
    addresses = sampler.addresses(positions)
    assert addresses.tolist() == Order(6, 3, True).indices(positions).tolist()
    assert sampler.read(addresses)["label"].tolist() == addresses.tolist()
    assert sampler.owner(4)[1] == 4
    assert (sampler.changes, sampler.gathers) == (False, True)


def test_a_source_may_bring_an_order_of_its_own():
    batches = Batches(Backwards(labels()), 4, seed=0, shuffle=True)
    assert [batches[n].examples["label"].tolist() for n in range(3)] == [[5, 4, 3, 2], [1, 0, 5, 4], [3, 2, 1, 0]]


def test_a_changed_getitem_that_training_would_not_see_is_refused():
    class Scaled(Backwards):
        def __getitem__(self, index):
            return super().__getitem__(index)

    class ScaledInBoth(Scaled):
        def arranged(self, seed, shuffle):
            return super().arranged(seed, shuffle)

    with pytest.raises(
        DataError, match=r"Scaled changes __getitem__ but inherits `arranged`.*Make the change in trans"
    ):
        sampler_of(Scaled(labels()), 0, True)
    assert sampler_of(ScaledInBoth(labels()), 0, True)


def test_a_sentence_of_take_is_handed_on_as_it_is():
    class Broken(ArraySource):
        def take(self, indices):
            raise DataError("shard 3: damaged. Copy it again.")

    with pytest.raises(DataError, match=r"^shard 3: damaged. Copy it again.$"):
        gather(Broken(labels()), np.array([0]))


def test_examples_are_stacked_and_one_of_another_shape_is_named():
    assert stack([{"x": 1}, {"x": 2}], str)["x"].tolist() == [1, 2]
    with pytest.raises(DataError, match=r"Example c has x \[3\], example a has x \[2\]. Bring all to one shape"):
        stack([{"x": np.zeros(n)} for n in (2, 2, 3)], lambda row: "abc"[row])
