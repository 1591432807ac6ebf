import pickle

import numpy as np
import pytest

from engine.config.errors import DataError
from engine.data.batches import Batches, OrderedBatches
from engine.data.mixture import Mixture
from engine.data.mixture_schedule import PERIOD
from engine.data.packing import Packed
from engine.data.reader import read
from engine.data.source import ArraySource, example_spec, fingerprint, limited

SIZES = {"a": 30, "b": 7, "c": 12}
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


class Noisy(ArraySource):
    def transform(self, example, rng):
        return {**example, "x": rng.random(dtype=np.float32)}


def source(name, size, kind=ArraySource):
    """Examples that tell their source and their index."""
    return kind({"from": np.full(size, ord(name)), "index": np.arange(size), "x": np.zeros(size, np.float32)})


def mixture(weights=WEIGHTS, kind=ArraySource):
    return Mixture({name: source(name, SIZES[name], kind) for name in weights}, weights)


def stream(mixed, count, seed=0, shuffle=True):
    """The first examples of a run: names of sources, and indices in them."""
    batch = Batches(mixed, count, seed, shuffle)[0].examples
    return np.array([chr(name) for name in batch["from"]]), batch["index"]


def same(one, two):
    np.testing.assert_equal(one, two)


@pytest.mark.parametrize("weights", [WEIGHTS, {"a": 1, "b": 1, "c": 1}, {"a": 3, "b": 1}, {"a": 0.123456, "b": 0.7}])
def test_after_any_number_of_examples_each_source_is_within_one_of_its_weight(weights):
    names, _ = stream(mixture(weights), 2500)
    for name, weight in weights.items():
        counts = np.cumsum(names == name)
        share = weight / sum(weights.values())
        assert np.abs(counts - share * np.arange(1, 2501)).max() < 1 + 2500 / PERIOD


def test_each_source_is_read_in_epochs_of_its_own_each_in_a_new_order():
    names, indices = stream(mixture(), 300)
    for name, size in SIZES.items():
        own = indices[names == name]
        epochs = own[: len(own) // size * size].reshape(-1, size)
        assert len(epochs) >= 5
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()
        assert len({tuple(order) for order in epochs.tolist()}) == len(epochs)


def test_sources_of_one_size_have_orders_of_their_own():
    mixed = Mixture({name: source(name, 30) for name in "ab"}, {"a": 1, "b": 1})
    names, indices = stream(mixed, 60)
    assert indices[names == "a"].tolist() != indices[names == "b"].tolist()


def test_the_run_depends_on_the_seed_and_the_names_not_on_their_sequence():
    turned = Mixture(dict(reversed(mixture().sources.items())), dict(reversed(WEIGHTS.items())))
    same(stream(turned, 100), stream(mixture(), 100))
    assert stream(mixture(), 100, seed=1)[1].tolist() != stream(mixture(), 100)[1].tolist()


def test_the_order_stays_as_it_is_in_every_release():
    # A resumed run relies on it: never change these numbers.
    names, indices = stream(mixture(), 12, seed=7)
    assert "".join(names) == "abacababacab"
    assert indices.tolist() == [15, 3, 3, 9, 27, 5, 16, 1, 5, 0, 14, 6]


def test_without_shuffle_each_source_is_read_as_it_lies():
    names, indices = stream(mixture(), 100, shuffle=False)
    for name, size in SIZES.items():
        own = indices[names == name]
        assert own.tolist() == [i % size for i in range(len(own))]


@pytest.mark.parametrize("kind", [ArraySource, Noisy])
@pytest.mark.parametrize("processes", [2, 3])
def test_the_rows_of_all_processes_are_the_global_batch(kind, processes):
    whole, rows = Batches(mixture(kind=kind), 12, 0, True), 12 // processes
    parts = [Batches(mixture(kind=kind), 12, 0, True, slice(i * rows, (i + 1) * rows)) for i in range(processes)]
    for n in (0, 5, 4000):
        for name, expected in whole[n].examples.items():
            assert np.concatenate([part[n].examples[name] for part in parts]).tolist() == expected.tolist()


def test_reading_goes_on_where_it_stopped_with_any_number_of_threads():
    plain = Batches(mixture(), 5, 0, True)
    unbroken = [plain[n].examples for n in range(40)]
    copy = pickle.loads(pickle.dumps(Batches(mixture(), 5, 0, True)))
    for stopped, threads in ((13, 1), (29, 3)):
        reader = read(copy, stopped, 40, threads=threads, workers=0, prefetch=2, block=copy.block_size)
        same([batch.examples for batch in reader], unbroken[stopped:])
        reader.close()


def test_an_epoch_is_as_long_as_all_sources_and_an_evaluation_reads_each_example_once():
    mixed = mixture()
    assert len(mixed) == 49
    ordered = OrderedBatches(mixed, 10)
    parts = [ordered[n].examples for n in range(len(ordered))]
    names = "".join(chr(name) for part in parts for name in part["from"])
    indices = np.concatenate([part["index"] for part in parts]).tolist()
    assert names == "a" * 30 + "b" * 7 + "c" * 13  # the last batch is filled up
    assert indices == [*range(30), *range(7), *range(12), 11]
    assert (chr(mixed[36]["from"]), mixed[36]["index"], chr(mixed[37]["from"])) == ("b", 6, "c")


def test_examples_are_changed_by_the_source_that_they_come_from():
    mixed = Mixture({"a": source("a", 30), "b": source("b", 7, Noisy)}, {"a": 1, "b": 1})
    batch = Batches(mixed, 20, 0, True)[3].examples
    assert ((batch["x"] != 0) == (batch["from"] == ord("b"))).all()
    assert len(set(batch["x"].tolist())) == 11


def test_a_limit_takes_a_part_of_every_source():
    few = limited(mixture(), 10)
    assert len(few) == 10
    assert isinstance(few, Mixture)
    assert {name: len(part) for name, part in few.sources.items()} == {"a": 5, "b": 2, "c": 3}
    names, _ = stream(few, 100)
    assert (names == "a").sum() == 50  # the weights stay
    assert [len(limited(mixture(), count)) for count in range(3, 60)] == [*range(3, 49), *[49] * 11]
    with pytest.raises(DataError, match=r"data.limit = 2: a mixture of 3 sources needs at least 3"):
        limited(mixture(), 2)


class Documents:
    def __init__(self, name, count):
        self.name, self.count = name, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"tokens": np.full(1 + index % 5, 100 * ord(self.name) + index)}


def test_packed_sources_are_mixed_and_each_is_packed_anew_in_its_own_epochs():
    packed = {name: Packed(Documents(name, size), 4, split=name == "a") for name, size in SIZES.items()}
    batches = Batches(Mixture(packed, WEIGHTS), 10, 0, True)
    rows = np.concatenate([batches[n].examples["tokens"] for n in range(20)])
    names = rows[:, 0] // 100
    assert [(names == ord(name)).sum() for name in "abc"] == [100, 60, 40]
    for name, source in packed.items():
        own = rows[names == ord(name)]
        epochs = [own[n : n + len(source)] for n in range(0, len(own) - len(source) + 1, len(source))]
        expected = np.sort(np.concatenate([source.documents[i]["tokens"] for i in range(len(source.documents))]))
        assert len(epochs) >= 2
        for tokens in epochs:
            assert np.sort(tokens[tokens > 0]).tolist() == expected.tolist()
        assert epochs[0].tolist() != epochs[1].tolist()


def test_a_mixture_may_hold_mixtures():
    inner = Mixture({"b": source("b", 7), "c": source("c", 12)}, {"b": 3, "c": 1})
    names, indices = stream(Mixture({"a": source("a", 30), "rest": inner}, {"a": 1, "rest": 1}), 160)
    assert [(names == name).sum() for name in "abc"] == [80, 60, 20]
    assert sorted(indices[names == "b"][:7].tolist()) == list(range(7))


def test_a_fingerprint_follows_sources_and_weights():
    assert fingerprint(mixture()) == fingerprint(mixture())
    others = [mixture({**WEIGHTS, "a": 1}), mixture({"a": 0.5, "b": 0.3}), limited(mixture(), 20)]
    assert len({fingerprint(mixed) for mixed in [mixture(), *others]}) == 4


def test_small_batches_are_read_together_where_all_sources_gather_rows():
    assert Batches(mixture(), 5, 0, True).block_size > 1
    assert Batches(mixture(kind=Noisy), 5, 0, True).block_size == 1


@pytest.mark.parametrize(
    ("sources", "weights", "text"),
    [
        ({}, {}, "Mixture: no sources. Give at least one"),
        ({"wood": 1}, {"wod": 1}, "Mixture: a weight for wod, but no source of that name. Did you mean wood?"),
        ({"a": 1, "b": 2}, {"a": 1}, r"Mixture: no weight for source b. Give one: weights=\{'b': NUMBER, ...\}"),
        ({"a": 1}, {"a": 0}, "Mixture: weight 0 of source a, allowed are numbers above 0. Leave a source out"),
        ({"a": 1}, {"a": "much"}, "Mixture: weight 'much' of source a, allowed are numbers above 0"),
        ({"a": {"folder": "x"}}, {"a": 1}, "Mixture: source a: found dict, allowed is a source"),
        (
            {"a": source("a", 3), "b": ArraySource({"index": np.zeros((3, 2))})},
            {"a": 1, "b": 1},
            r"examples of source b \(engine.data.source.ArraySource\) hold index float32\[2\]; those of source a "
            r"\(.*\) hold from int32\[\], index int32\[\], x float32\[\]. Bring all to one structure.* packed first",
        ),
        (
            {"a": ArraySource([np.zeros((2, 2))]), "b": ArraySource((np.zeros((2, 2)),))},
            {"a": 1, "b": 1},
            "Bring all to one structure",
        ),
        ({"a": source("a", 3), "b": source("b", 0)}, {"a": 1, "b": 1}, "no examples. A source needs at least one"),
    ],
)
def test_what_cannot_be_mixed_is_refused_by_name(sources, weights, text):
    with pytest.raises(DataError, match=text):
        Mixture(sources, weights)


def test_an_example_that_cannot_be_read_is_named_in_its_source():
    class Broken(ArraySource):
        def take(self, indices):
            raise OSError("disk gone")

        def __getitem__(self, index):
            raise OSError("disk gone")

    bad = Broken({"x": np.zeros(SIZES["b"])})
    mixed = mixture({"a": 1, "b": 1})
    mixed.sources["b"] = bad
    for read_some in (lambda: Batches(mixed, 8, 0, True)[0], lambda: OrderedBatches(mixed, 37)[0]):
        with pytest.raises(DataError, match=r"^Example \d of .*Broken: OSError: disk gone. Read it alone"):
            read_some()


def test_later_examples_of_another_shape_are_not_spread_over_the_batch():
    class Late(ArraySource):
        def take(self, indices):
            return {"x": np.zeros((len(indices), 1, 2))}

    arrays = {"x": np.zeros((6, 3, 2))}
    mixed = Mixture({"a": ArraySource(arrays), "b": Late(arrays)}, {"a": 1, "b": 1})
    with pytest.raises(DataError, match=r"Sources of a mixture give examples that differ: x \[3, 2\]; x \[1, 2\]"):
        Batches(mixed, 4, 0, True)[0]


def test_a_transform_of_the_mixture_itself_is_refused():
    class Changed(Mixture):
        def transform(self, example, rng):
            return example

    with pytest.raises(
        DataError, match=r"Changed has a transform: a mixture uses those of its sources. Write it there"
    ):
        Batches(Changed({"a": source("a", 3)}, {"a": 1}), 2, 0, True)


def test_a_mixture_has_the_spec_of_its_sources():
    assert example_spec(mixture())["index"].dtype == np.int32
