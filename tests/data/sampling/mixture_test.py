import pickle

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.batches import Batches, OrderedBatches
from engine.data.ragged.packing import Packed
from engine.data.reader import read
from engine.data.sampling.mixture import Mixture
from engine.data.sampling.mixture_schedule import PERIOD
from engine.data.source import ArraySource, example_spec, limited

SIZES = {"a": 30, "b": 7, "c": 12}
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


class Noisy(ArraySource):
    def transform(self, example, rng):
        return {**example, "x": rng.random(dtype=np.float32)}


def source(name, size, kind=ArraySource):
    """Returns a source whose examples hold the name of the source and their index."""
    return kind({"from": np.full(size, ord(name)), "index": np.arange(size), "x": np.zeros(size, np.float32)})


def mixture(weights=WEIGHTS, kind=ArraySource):
    names = weights if "a" in weights else SIZES  # weights by time
    return Mixture({name: source(name, SIZES[name], kind) for name in names}, weights)


def stream(mixed, count, seed=0, shuffle=True):
    """Returns the source names and the indices of the first `count` examples of a run."""
    batch = Batches(mixed, count, seed, shuffle)[0].examples
    return np.array([chr(name) for name in batch["from"]]), batch["index"]


def same(one, two):
    np.testing.assert_equal(one, two)


@pytest.mark.parametrize("weights", [WEIGHTS, {"a": 1, "b": 1, "c": 1}, {"a": 3, "b": 1}, {"a": 0.123456, "b": 0.7}])
def test_count_of_each_source_stays_within_one_of_its_share(weights):
    names, _ = stream(mixture(weights), 2500)
    for name, weight in weights.items():
        counts = np.cumsum(names == name)
        share = weight / sum(weights.values())
        assert np.abs(counts - share * np.arange(1, 2501)).max() < 1 + 2500 / PERIOD


TIMES = {"0 steps": {"a": 1, "b": 0, "c": 0}, "6 steps": {"a": 1, "b": 1, "c": 2}, "4 epochs": WEIGHTS}


def test_weights_change_at_their_times_and_each_source_keeps_its_epochs():
    batches = Batches(mixture(TIMES), 20, 0, True)
    rows = [batches[n].examples for n in range(60)]
    names = np.concatenate([[chr(name) for name in row["from"]] for row in rows])
    indices = np.concatenate([row["index"] for row in rows])
    assert "".join(names[:120]) == "a" * 120
    assert [(names[120:196] == name).sum() for name in "abc"] == [19, 19, 38]
    assert [(names[196:1196] == name).sum() for name in "abc"] == pytest.approx([500, 300, 200], abs=3)
    counts = np.bincount(indices[names == "b"], minlength=7)
    assert np.ptp(counts) <= 2
    ramp = mixture({"0 steps": TIMES["0 steps"], "2000 examples": TIMES["6 steps"]})
    assert ramp.fingerprint() != Mixture(ramp.sources, ramp.weights, interpolate=True).fingerprint()
    names, _ = stream(Mixture(ramp.sources, ramp.weights, interpolate=True), 2000)
    assert (names == "c").reshape(4, -1).mean(axis=1) == pytest.approx(np.array([1, 3, 5, 7]) / 16, abs=0.02)


def test_limit_keeps_weights_by_time():
    few = limited(mixture(TIMES), 10)
    names = [chr(name) for name in Batches(few, 4, 0, True)[5].examples["from"]]
    assert "".join(names) == "aaaa"


def test_each_source_has_its_own_epochs_with_new_permutations():
    names, indices = stream(mixture(), 300)
    for name, size in SIZES.items():
        own = indices[names == name]
        epochs = own[: len(own) // size * size].reshape(-1, size)
        assert len(epochs) >= 5
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)


def test_sources_of_equal_size_are_shuffled_independently():
    mixed = Mixture({name: source(name, 30) for name in "ab"}, {"a": 1, "b": 1})
    names, indices = stream(mixed, 60)
    assert indices[names == "a"].tolist() != indices[names == "b"].tolist()


def test_order_depends_on_seed_and_names_and_not_on_dict_order():
    reversed_dicts = Mixture(dict(reversed(mixture().sources.items())), dict(reversed(WEIGHTS.items())))
    same(stream(reversed_dicts, 100), stream(mixture(), 100))
    assert stream(mixture(), 100, seed=1)[1].tolist() != stream(mixture(), 100)[1].tolist()


def test_mixture_order_equals_stored_numbers():
    # Resumed runs rely on this order: never change these numbers.
    names, indices = stream(mixture(), 12, seed=7)
    assert "".join(names) == "abacababacab"
    assert indices.tolist() == [15, 3, 3, 9, 27, 5, 16, 1, 5, 0, 14, 6]


def test_without_shuffle_each_source_is_read_in_stored_order():
    names, indices = stream(mixture(), 100, shuffle=False)
    for name, size in SIZES.items():
        own = indices[names == name]
        assert own.tolist() == [i % size for i in range(len(own))]


@pytest.mark.parametrize("kind", [ArraySource, Noisy])
@pytest.mark.parametrize("processes", [2, 3])
def test_rows_of_all_processes_form_the_global_batch(kind, processes):
    whole, rows = Batches(mixture(kind=kind), 12, 0, True), 12 // processes
    parts = [Batches(mixture(kind=kind), 12, 0, True, slice(i * rows, (i + 1) * rows)) for i in range(processes)]
    for n in (0, 5, 4000):
        for name, expected in whole[n].examples.items():
            assert np.concatenate([part[n].examples[name] for part in parts]).tolist() == expected.tolist()


def test_reading_resumes_at_any_batch_with_any_number_of_threads():
    plain = Batches(mixture(), 5, 0, True)
    unbroken = [plain[n].examples for n in range(40)]
    copy = pickle.loads(pickle.dumps(Batches(mixture(), 5, 0, True)))
    for stopped, threads in ((13, 1), (29, 3)):
        reader = read(copy, range(stopped, 40), threads=threads, workers=0, prefetch=2, block=copy.block_size)
        same([batch.examples for batch in reader], unbroken[stopped:])
        reader.close()


def test_epoch_has_all_sources_and_evaluation_reads_each_example_once():
    mixed = mixture()
    assert len(mixed) == 49
    ordered = OrderedBatches(mixed, 10)
    parts = [ordered[n].examples for n in range(len(ordered))]
    names = "".join(chr(name) for part in parts for name in part["from"])
    indices = np.concatenate([part["index"] for part in parts]).tolist()
    assert names == "a" * 30 + "b" * 7 + "c" * 13  # the last batch is padded
    assert indices == [*range(30), *range(7), *range(12), 11]
    assert (chr(mixed[36]["from"]), mixed[36]["index"], chr(mixed[37]["from"])) == ("b", 6, "c")


def test_each_source_applies_its_own_transform():
    mixed = Mixture({"a": source("a", 30), "b": source("b", 7, Noisy)}, {"a": 1, "b": 1})
    batch = Batches(mixed, 20, 0, True)[3].examples
    assert ((batch["x"] != 0) == (batch["from"] == ord("b"))).all()
    assert len(set(batch["x"].tolist())) == 11


def test_limit_takes_a_part_of_every_source():
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


def test_packed_sources_are_mixed_and_repacked_in_each_epoch():
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


def test_mixtures_can_be_nested():
    inner = Mixture({"b": source("b", 7), "c": source("c", 12)}, {"b": 3, "c": 1})
    names, indices = stream(Mixture({"a": source("a", 30), "rest": inner}, {"a": 1, "rest": 1}), 160)
    assert [(names == name).sum() for name in "abc"] == [80, 60, 20]
    assert sorted(indices[names == "b"][:7].tolist()) == list(range(7))


def test_fingerprint_depends_on_sources_and_weights():
    assert mixture().fingerprint() == mixture().fingerprint()
    others = [mixture({**WEIGHTS, "a": 1}), mixture({"a": 0.5, "b": 0.3}), limited(mixture(), 20)]
    assert len({mixed.fingerprint() for mixed in [mixture(), *others]}) == 4


def test_block_size_exceeds_one_if_all_sources_have_take():
    assert Batches(mixture(), 5, 0, True).block_size > 1
    assert Batches(mixture(kind=Noisy), 5, 0, True).block_size == 1


@pytest.mark.parametrize(
    ("sources", "weights", "text"),
    [
        ({}, {}, "Mixture: no sources. Pass at least one"),
        ({"wood": 1}, {"wod": 1}, "Mixture: weights has wod, but no source has that name. Did you mean wood?"),
        ({"a": 1, "b": 2}, {"a": 1}, r"Mixture: no weight for source b. Add it: weights=\{'b': NUMBER, ...\}"),
        (
            {"a": 1},
            {"0 steps": {"a": 0}},
            "Mixture: weight 0 of source a: allowed are numbers above 0. Remove a source",
        ),
        ({"a": 1, "b": 1}, {"0 steps": {"a": 1}}, "Mixture: no weight for source b. Add it"),
        (
            {"a": source("a", 3)},
            {"1 epoch": {"a": 1}},
            "Mixture: weights: the first time is '1 epoch'. Start with '0 s",
        ),
        ({"a": 1}, {"a": 0}, "Mixture: weight 0 of source a: allowed are numbers above 0. Remove a source"),
        ({"a": 1}, {"a": "much"}, "Mixture: weight 'much' of source a: allowed are numbers above 0"),
        ({"a": {"folder": "x"}}, {"a": 1}, "Mixture: source a: found a dict, allowed is a source"),
        (
            {"a": source("a", 3), "b": ArraySource({"index": np.zeros((3, 2))})},
            {"a": 1, "b": 1},
            r"examples of source b \(engine.data.source.ArraySource\) hold index float32\[2\], but those of source a "
            r"\(.*\) hold from int32\[\], index int32\[\], x float32\[\]. Bring all to one structure.*Pack documents",
        ),
        (
            {"a": ArraySource([np.zeros((2, 2))]), "b": ArraySource((np.zeros((2, 2)),))},
            {"a": 1, "b": 1},
            "Bring all to one structure",
        ),
        ({"a": source("a", 3), "b": source("b", 0)}, {"a": 1, "b": 1}, "no examples. A source needs at least one"),
    ],
)
def test_invalid_mixture_raises_data_error(sources, weights, text):
    with pytest.raises(DataError, match=text):
        Mixture(sources, weights)


def test_error_names_source_and_index_of_an_unreadable_example():
    class Broken(ArraySource):
        def take(self, indices):
            raise OSError("disk gone")

        def __getitem__(self, index):
            raise OSError("disk gone")

    bad = Broken({"x": np.zeros(SIZES["b"])})
    mixed = mixture({"a": 1, "b": 1})
    mixed.sources["b"] = bad
    for read_some in (lambda: Batches(mixed, 8, 0, True)[0], lambda: OrderedBatches(mixed, 37)[0]):
        with pytest.raises(
            DataError,
            match=r"^Example \d of .*Broken: OSError: disk gone \(.*:\d+ in __getitem__\)\. Read it with",
        ):
            read_some()


def test_examples_of_another_shape_raise_instead_of_being_broadcast():
    class Late(ArraySource):
        def take(self, indices):
            return {"x": np.zeros((len(indices), 1, 2))}

    arrays = {"x": np.zeros((6, 3, 2))}
    mixed = Mixture({"a": ArraySource(arrays), "b": Late(arrays)}, {"a": 1, "b": 1})
    with pytest.raises(DataError, match=r"The sources of a mixture give different shapes: x \[3, 2\]; x \[1, 2\]"):
        Batches(mixed, 4, 0, True)[0]


def test_transform_of_a_mixture_raises_data_error():
    class Transformed(Mixture):
        def transform(self, example, rng):
            return example

    with pytest.raises(
        DataError, match=r"Transformed defines transform, but a mixture applies the transforms of its sources. Define"
    ):
        Batches(Transformed({"a": source("a", 3)}, {"a": 1}), 2, 0, True)


def test_mixture_has_the_spec_of_its_sources():
    assert example_spec(mixture())["index"].dtype == np.int32
