import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.batches import Batches
from engine.data.collate import stack_examples
from engine.data.sampling.sampler import make_sampler, read_examples
from engine.data.sampling.shuffle import EpochPermutation
from engine.data.source import ArraySource


class Backwards(ArraySource):
    """A source with its own sampler: the last example first, in the same order in every epoch."""

    def sampler(self, seed, shuffle):
        return BackwardsSampler(self)


class BackwardsSampler:
    has_transform, vectorized = False, True

    def __init__(self, source):
        self.source = source

    def addresses(self, positions):
        return -1 - positions % len(self.source)

    def read(self, addresses):
        return self.source.take(addresses)

    def locate(self, address):
        return self.source, address


def labels(size=6):
    return {"label": np.arange(size, dtype=np.int32)}


def test_default_sampler_is_a_new_permutation_in_every_epoch():
    positions = np.arange(18)
    sampler = make_sampler(ArraySource(labels()), seed=3, shuffle=True)
    addresses = sampler.addresses(positions)
    assert addresses.tolist() == EpochPermutation(6, 3, True).indices(positions).tolist()
    assert sampler.read(addresses)["label"].tolist() == addresses.tolist()
    assert sampler.locate(4)[1] == 4
    assert (sampler.has_transform, sampler.vectorized) == (False, True)


def test_source_can_define_its_own_sampler():
    batches = Batches(Backwards(labels()), 4, seed=0, shuffle=True)
    assert [batches[n].examples["label"].tolist() for n in range(3)] == [[5, 4, 3, 2], [1, 0, 5, 4], [3, 2, 1, 0]]


def test_overridden_getitem_with_inherited_sampler_raises_data_error():
    class Scaled(Backwards):
        def __getitem__(self, index):
            return super().__getitem__(index)

    class ScaledWithOwnSampler(Scaled):
        def sampler(self, seed, shuffle):
            return super().sampler(seed, shuffle)

    with pytest.raises(DataError, match=r"Scaled overrides __getitem__ but inherits `sampler`.*Move its code to trans"):
        make_sampler(Scaled(labels()), 0, True)
    assert make_sampler(ScaledWithOwnSampler(labels()), 0, True)


def test_data_error_of_take_is_raised_unchanged():
    class Broken(ArraySource):
        def take(self, indices):
            raise DataError("shard 3: damaged. Copy it again.")

    with pytest.raises(DataError, match=r"^shard 3: damaged. Copy it again.$"):
        read_examples(Broken(labels()), np.array([0]))


def test_stack_error_names_the_first_example_with_another_shape():
    assert stack_examples([{"x": 1}, {"x": 2}], str)["x"].tolist() == [1, 2]
    with pytest.raises(DataError, match=r"Example c has x \[3\], example a has x \[2\]. Bring all to one shape"):
        stack_examples([{"x": np.zeros(n)} for n in (2, 2, 3)], lambda row: "abc"[row])
