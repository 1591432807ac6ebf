import pickle

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data import source_adapter
from engine.data.batches import Batches
from engine.data.sampling.sampler import Sampler, make_sampler, source_costs
from engine.data.source import ArraySource, BaseSource, inner_sources, limited, source_name
from engine.data.source_adapter import AdaptedSource, check_source, exits_reported, indexed


class Numbers:
    """The least that a user writes."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"x": np.float32(index)}


class Everything(Numbers):
    new_arrays = True

    def __getitem__(self, index):
        return {"x": np.float32(index)}

    def take(self, indices):
        return {"x": indices.astype(np.float32) + 100}

    def transform(self, example, rng):
        return {"x": example["x"] + 1000}

    def fingerprint(self):
        return "six numbers"

    def limited(self, count):
        return Numbers()

    def costs(self):
        return range(6)


class Halved(Everything):
    def __getitem__(self, index):
        return {"x": np.float32(index / 2)}


class Doubled:
    """A source of a user that wraps another one."""

    def __init__(self, source):
        self.source, self.paths = source, ["a.bin"]

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return {"x": 2 * self.source[index]["x"]}


class Backwards:
    """An order of a user, without optional members."""

    has_transform, vectorized = True, False

    def __init__(self, source):
        self.source = source

    def addresses(self, positions):
        return 5 - positions % 6

    def read(self, addresses):
        return {"x": addresses.astype(np.float32)}

    def locate(self, address):
        return self.source, address


class Ordered(Everything):
    def __getitem__(self, index):
        return {"x": np.float32(index)}

    def sampler(self, seed, shuffle):
        return Backwards(self)


def test_object_with_two_methods_gets_the_default_of_every_other_member():
    source = indexed(Numbers(), "data")
    assert (len(source), source[3]) == (6, {"x": 3})
    assert not source.has_take and not source.has_transform and not source.has_sampler and not source.has_new_arrays
    assert source.lengths() is source.costs() is source.field_lengths(["x"]) is source.counted() is None
    assert source.fingerprint() == indexed(Numbers(), "data").fingerprint()
    assert len(limited(source, 2)) == 2 and source.with_run(3) is source


def test_members_that_an_object_has_are_used():
    source = indexed(Everything(), "data")
    assert source.has_take and source.has_transform and source.has_new_arrays
    assert (source.fingerprint(), source_costs(source).tolist()) == ("six numbers", [0, 1, 2, 3, 4, 5])
    assert isinstance(limited(source, 2), BaseSource) and len(limited(source, 2)) == 6  # that of the object
    assert Batches(source, 2, 0, False)[0].examples["x"].tolist() == [1100, 1101]


def test_members_that_another_getitem_makes_wrong_are_left_out():
    source = indexed(Halved(), "data")
    assert source.has_transform and not source.has_take and not source.has_new_arrays
    assert Batches(source, 2, 0, False)[1].examples["x"].tolist() == [1001, 1001.5]


def test_order_of_an_object_gets_the_defaults_of_a_sampler_and_the_transform_of_its_source():
    source = indexed(Ordered(), "data")
    sampler = make_sampler(source, 0, True)
    assert isinstance(sampler, Sampler) and not sampler.is_sized and not sampler.is_marked and not sampler.is_shaped
    assert sampler.locate(4) == (source, 4)
    assert sampler.costs(np.array([4, 2]), source).tolist() == [4, 2]
    assert Batches(source, 2, 0, True)[0].examples["x"].tolist() == [1005, 1004]


def test_adapted_source_has_the_name_of_its_object_and_is_adapted_once():
    source = indexed(Numbers(), "data")
    assert source_name(source) == "tests.data.source_adapter_test.Numbers"
    assert indexed(source, "data") is source
    arrays = ArraySource({"x": np.zeros(2)})
    assert indexed(arrays, "data") is arrays


def test_sources_inside_of_an_object_are_found():
    arrays = ArraySource({"x": np.ones(2)})
    [inner] = inner_sources(indexed(Doubled(Doubled(arrays)), "data"))
    assert isinstance(inner, AdaptedSource) and inner.paths == ["a.bin"]
    assert inner_sources(inner) == [arrays]
    assert inner_sources(indexed(Doubled("text"), "data")) == []


def test_adapted_source_is_pickled_for_workers():
    source = pickle.loads(pickle.dumps(indexed(Everything(), "data")))
    assert source.has_take and source.take(np.arange(2))["x"].tolist() == [100, 101]


def test_object_without_random_access_is_refused():
    with pytest.raises(DataError, match="data: found a int without __len__ and __getitem__"):
        indexed(3, "data")
    with pytest.raises(DataError, match="data: found a dict, allowed is a source"):
        check_source({"x": 1}, "data")


@pytest.mark.parametrize("name", ["the data source", "data worker 1 (pid 7)"])
def test_sys_exit_is_a_data_error(name, monkeypatch):
    monkeypatch.setattr(source_adapter, "place", name)
    with pytest.raises(DataError) as error, exits_reported():
        raise SystemExit(3)
    text = f"{name}: SystemExit: the code ended the process with sys.exit(3) (tests/data/source_adapter_test.py:"
    assert str(error.value).startswith(text)
