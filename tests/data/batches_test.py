import functools
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.adapt import as_source
from engine.data.batches import Batches, OrderedBatches
from engine.data.ragged.balanced import Balanced
from engine.data.source import ArraySource, BaseSource


class Labels(BaseSource):
    """Source whose examples hold their own index; read one at a time."""

    def __init__(self, size=20):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"label": np.int32(index)}


class Noisy(Labels):
    """Labels with a random number added to each example."""

    def transform(self, example, rng):
        return {**example, "noise": rng.random(dtype=np.float32)}


class NoisyArrays(ArraySource):
    """The same examples from a source with `take`."""

    def __init__(self, size=20):
        super().__init__({"label": np.arange(size, dtype=np.int32)})

    def transform(self, example, rng):
        return {**example, "noise": rng.random(dtype=np.float32)}


def stream(batches, numbers, name="label"):
    return np.concatenate([batches[n].examples[name] for n in numbers])


@pytest.mark.parametrize("source", [Labels(20), ArraySource({"label": np.arange(20, dtype=np.int32)})])
def test_batch_n_is_a_pure_function_of_seed_and_n(source):
    in_order = [Batches(source, 6, seed=4, shuffle=True)[n].examples["label"].tolist() for n in range(50)]
    batches = Batches(source, 6, seed=4, shuffle=True)
    assert [batches[n].examples["label"].tolist() for n in reversed(range(50))] == in_order[::-1]
    assert Batches(source, 6, seed=5, shuffle=True)[0].examples["label"].tolist() != in_order[0]


def test_batches_span_epochs_and_drop_no_example():
    labels = stream(Batches(Labels(20), 6, seed=0, shuffle=True), range(10)).reshape(3, 20)
    assert (np.sort(labels, axis=1) == np.arange(20)).all()
    assert labels[0].tolist() != labels[1].tolist() != labels[2].tolist()


def test_batch_can_be_larger_than_the_source():
    assert stream(Batches(Labels(4), 10, seed=0, shuffle=False), [0]).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("source", [Noisy(50), NoisyArrays(50)])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_rows_of_all_processes_form_the_global_batch(source, processes):
    whole = Batches(source, 12, seed=0, shuffle=True)
    rows = 12 // processes
    parts = [Batches(source, 12, 0, True, slice(i * rows, (i + 1) * rows)) for i in range(processes)]
    for n in (0, 7, 4000):
        for name in ("label", "noise"):
            assert (
                np.concatenate([part[n].examples[name] for part in parts]).tolist() == whole[n].examples[name].tolist()
            )


def test_rows_of_a_process_can_have_gaps():
    whole = Batches(Labels(50), 12, seed=0, shuffle=True)[3].examples["label"]
    rows = np.array([0, 1, 6, 7])
    assert Batches(Labels(50), 12, 0, True, rows)[3].examples["label"].tolist() == whole[rows].tolist()


def test_random_transform_depends_on_position_and_not_on_batch_size():
    small, large = (stream(Batches(Noisy(20), size, 0, True), range(120 // size), "noise") for size in (4, 24))
    assert small.tolist() == large.tolist()
    arrays = stream(Batches(NoisyArrays(20), 24, 0, True), range(5), "noise")
    assert arrays.tolist() == large.tolist()


def test_random_transform_differs_between_examples_epochs_and_seeds():
    one, two = (stream(Batches(Noisy(20), 20, seed, False), range(2), "noise") for seed in (0, 1))
    assert len({*one.tolist(), *two.tolist()}) == 80


def test_threads_and_pickled_copies_make_equal_batches():
    batches = Batches(Noisy(1000), 64, seed=0, shuffle=True)
    numbers = list(range(400))  # several groups of addresses
    expected = [batches[n] for n in numbers]
    copy = pickle.loads(pickle.dumps(batches))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(copy.__getitem__, numbers))
    for one, two in zip(found, expected, strict=True):
        assert one.examples["label"].tolist() == two.examples["label"].tolist()
        assert one.examples["noise"].tolist() == two.examples["noise"].tolist()


def test_error_names_the_unreadable_example():
    class Broken(Labels):
        def __getitem__(self, index):
            if index == 13:
                raise OSError("checksum mismatch")
            return super().__getitem__(index)

    with pytest.raises(
        DataError,
        match=r"Example 13 of .*Broken: OSError: checksum mismatch \(.*:\d+ in __getitem__\)\. Read it with",
    ) as e:
        stream(Batches(Broken(20), 6, 0, True), range(4))
    assert isinstance(e.value.__cause__, OSError)


def test_error_of_take_names_the_unreadable_example():
    class Broken(ArraySource):
        def __getitem__(self, index):
            if index == 2:
                raise ValueError("empty scan")
            return super().__getitem__(index)

        def take(self, indices):
            return {"label": np.stack([self[int(i)]["label"] for i in indices])}

    with pytest.raises(DataError, match=r"Example 2 of .*Broken: ValueError: empty scan"):
        Batches(Broken({"label": np.arange(4)}), 4, 0, True)[0]


def test_error_says_when_only_take_fails():
    class Broken(ArraySource):
        def take(self, indices):
            raise KeyError("cache")

    with pytest.raises(DataError, match=r"Broken.take failed for examples 0, 1, 2, 3, although each can be read by"):
        Batches(Broken({"label": np.arange(4)}), 4, 0, False)[0]


def test_error_of_a_transform_names_example_and_position():
    class Broken(Labels):
        def transform(self, example, rng):
            if example["label"] == 2:
                raise ZeroDivisionError("no points")
            return example

    with pytest.raises(DataError, match=r"Broken.transform failed at example 2 \(global example index 2\): ZeroDivisi"):
        Batches(Broken(20), 6, 0, False)[0]


def test_missing_key_in_a_transform_lists_the_entries_of_the_example():
    class Misspelt(Labels):
        def transform(self, example, rng):
            return {"label": example["labl"]}

    text = (
        r"transform failed at example 0 .* KeyError: 'labl' \(.*batches_test.py:\d+ in transform\). "
        r"Did you mean label\? The example has label. Correct"
    )
    with pytest.raises(DataError, match=text):
        Batches(Misspelt(20), 6, 0, False)[0]


@pytest.mark.parametrize("with_take", [False, True])
def test_error_names_examples_of_different_shapes(with_take):
    class Ragged(Labels):
        def __getitem__(self, index) -> Any:
            return {"points": np.zeros((3 if index == 4 else 2, 2), np.float32)}

    class RaggedTake(Ragged):
        def take(self, indices):
            return {"points": np.stack([self[i]["points"] for i in indices])}

    source = (RaggedTake if with_take else Ragged)(20)
    text = r"Example 4 of .* has points \[3, 2\], example 0 of .* has points \[2, 2\]. Bring all to one shape"
    with pytest.raises(DataError, match=text):
        Batches(source, 6, 0, False)[0]


def test_64_bit_arrays_become_32_bit():
    arrays = {"i": np.arange(4), "f": np.arange(4.0), "u": np.arange(4, dtype=np.uint64), "b": np.ones(4, bool)}
    batch = Batches(ArraySource(arrays), 2, 0, False)[1].examples
    assert {name: leaf.dtype.name for name, leaf in batch.items()} == {
        "i": "int32",
        "f": "float32",
        "u": "uint32",
        "b": "bool",
    }
    assert batch["i"].tolist() == [2, 3]


def test_integer_beyond_32_bits_raises_data_error():
    source = ArraySource({"time_ns": np.array([0, 1_700_000_000_000_000_000])})
    with pytest.raises(DataError, match=r"time_ns of .*: 1700000000000000000 does not fit int32.*JAX_ENABLE_X64=1"):
        Batches(source, 2, 0, False)[0]


def test_evaluation_reads_every_example_once_in_order():
    batches = OrderedBatches(Labels(10), 4)
    assert len(batches) == 3
    labels = np.concatenate([batches[n].examples["label"] for n in range(3)])
    weights = np.concatenate([batches[n].weight for n in range(3)])
    assert labels.tolist() == [*range(10), 9, 9]
    assert weights.tolist() == [1] * 10 + [0, 0]
    assert weights.dtype == np.float32
    assert batches.remainder().examples["label"].tolist() == [8, 9]


def test_evaluation_applies_no_random_transform():
    assert list(OrderedBatches(Noisy(10), 4)[0].examples) == ["label"]


def test_evaluation_has_equally_many_batches_on_every_process():
    parts = [OrderedBatches(Labels(9), 8, slice(i * 4, i * 4 + 4)) for i in range(2)]
    assert [len(part) for part in parts] == [2, 2]
    assert [part[1].examples["label"].tolist() for part in parts] == [[8, 8, 8, 8]] * 2
    assert [part.weight(1).tolist() for part in parts] == [[1, 0, 0, 0], [0, 0, 0, 0]]


def test_block_equals_its_single_batches():
    batches = Batches(ArraySource({"x": np.arange(50), "y": np.ones((50, 3), np.float32)}), 16, seed=0, shuffle=True)
    for n, batch in enumerate(batches.block(5, 7), 5):
        np.testing.assert_equal(batch.examples, batches[n].examples)


def test_block_size_exceeds_one_for_small_batches_of_a_source_with_take():
    class Transformed(ArraySource):
        def transform(self, example, rng):
            return example

    class OneByOne(BaseSource):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return np.zeros(3, np.float32)

    def block_size(source):
        return Batches(source, 2, seed=0, shuffle=True).block_size

    assert block_size(ArraySource(np.zeros((4, 3), np.float32))) == 128
    assert block_size(ArraySource(np.zeros((4, 2**20), np.float32))) == 2
    assert block_size(ArraySource(np.zeros((4, 2**22), np.float32))) == 1
    assert block_size(Transformed(np.zeros((4, 3), np.float32))) == block_size(OneByOne()) == 1


def test_few_large_batches_are_computed_at_once_where_a_row_depends_on_its_whole_batch(monkeypatch):
    class Costly(Labels):
        def costs(self):
            return np.ones(len(self))

    def endless():
        yield {"label": 0}

    computed = []

    def recorded(inner, positions):
        computed.append(len(np.unique(positions // 8192)))
        return inner(positions)

    for source in (Balanced(Costly(20_000), 8), as_source(endless, "data"), Labels(20_000)):
        batches = Batches(source, 8192, 0, True, slice(0, 8))
        addresses = batches._sampler.addresses
        monkeypatch.setattr(batches._sampler, "addresses", functools.partial(recorded, addresses))
        assert batches.addresses(3).shape == (8,)
    assert computed == [1, 1, 512]
