"""data.on_error=skip: batches stay full, rows of unreadable examples have weight 0, and each is reported."""

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.config.schema import Data
from engine.data.bad_examples import ALWAYS_ALLOWED, BadExampleCounter, BadRow, TolerantBatch, TolerantBatches
from engine.data.batch import Batch
from engine.data.batches import Batches, OrderedBatches
from engine.data.feed import EvaluationFeed
from engine.data.reader import read
from engine.data.source import BaseSource


class Holes(BaseSource):
    """Source in which reading the indices `bad` fails and the indices `odd` have another shape."""

    def __init__(self, bad=(), odd=(), failing=(), n=64):
        self.bad, self.odd, self.failing, self.n = bad, odd, failing, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError(f"sector {index}")
        return {"x": np.full(3 + (index in self.odd), index, np.float32), "y": np.int64(index)}


class HolesWithTransform(Holes):
    """The same with a random transform, which fails for the indices `failing`."""

    def transform(self, example, rng):
        if example["y"] in self.failing:
            raise ValueError("cannot be cropped")
        return {**example, "x": example["x"] + rng.random(3).astype(np.float32)}


def tolerant(source, rows=None, shuffle=True):
    return TolerantBatches(Batches(source, 16, 5, shuffle, rows))


def test_batch_without_bad_examples_is_unchanged():
    source = Holes()
    found, plain = tolerant(source)[3], Batches(source, 16, 5, True)[3]
    assert found.bad == ()
    assert found.batch.weight.tolist() == [1.0] * 16
    np.testing.assert_array_equal(found.batch.examples["y"], plain.examples["y"])


def test_bad_row_has_weight_zero_and_holds_the_next_readable_example():
    whole = Batches(Holes(), 16, 5, True)
    order = np.concatenate([whole[n].examples["y"] for n in range(8)])
    bad = (int(order[20]), int(order[21]))
    found = tolerant(Holes(bad))[1]
    assert np.flatnonzero(found.batch.weight == 0).tolist() == [4, 5]
    assert found.batch.examples["y"].tolist() == [*order[16:20], order[22], order[22], *order[22:32]]
    assert [(example.row, example.address) for example in found.bad] == [(4, bad[0]), (5, bad[1])]
    assert f"OSError: sector {bad[0]}" in found.bad[0].error
    assert found.batch.examples["x"].dtype == np.float32
    assert found.batch.examples["y"].dtype == np.int32


def test_fillers_are_equal_for_any_split_of_rows_over_processes():
    source = Holes((3, 11, 40))
    whole = [tolerant(source)[n] for n in range(4)]
    for rows in (slice(0, 8), slice(8, 16)):
        for n in range(4):
            part = tolerant(source, rows)[n]
            np.testing.assert_array_equal(part.batch.examples["x"], whole[n].batch.examples["x"][rows])
            np.testing.assert_array_equal(part.batch.weight, whole[n].batch.weight[rows])
    assert sum(len(found.bad) for found in whole) == 3


def test_wrong_shape_and_failing_transform_count_as_bad():
    source = HolesWithTransform(odd=(1,), failing=(2,))
    bad = [example for n in range(4) for example in tolerant(source, shuffle=False)[n].bad]
    assert [example.address for example in bad] == [1, 2]
    assert "Example 1 of" in bad[0].error or "transform failed at example 1" in bad[0].error
    assert "ValueError: cannot be cropped" in bad[1].error
    whole = tolerant(HolesWithTransform(), shuffle=False)[0]
    np.testing.assert_array_equal(
        tolerant(source, shuffle=False)[0].batch.examples["x"][3:], whole.batch.examples["x"][3:]
    )


def test_unreadable_first_example_is_skipped():
    assert [example.address for example in tolerant(Holes((0,)), shuffle=False)[0].bad] == [0]


def test_source_without_readable_examples_raises_data_error():
    with pytest.raises(DataError, match=r"Holes\[0\] failed: OSError: sector 0"):
        tolerant(Holes(range(64)))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_examples_are_reported_from_threads_and_workers(workers):
    reader = read(tolerant(Holes((3,)), shuffle=False), range(2), threads=2, workers=workers, prefetch=2)
    found = [next(reader) for _ in range(2)]
    reader.close()
    assert [example.address for example in found[0].bad] == [3]
    assert found[0].batch.weight.sum() == 15
    assert found[1].bad == ()


def found(*bad):
    """Returns a batch of 16 rows with these bad examples."""
    return TolerantBatch(Batch({"y": np.zeros(16)}, np.ones(16, np.float32)), bad)


def test_counter_writes_every_bad_example_and_reports_the_first_and_each_doubling():
    lines, messages = [], []
    counter = BadExampleCounter(lines.append, messages.append)
    for n in range(40):
        counter.unwrap(n, found(BadRow(3, 7 + n, f"Example {7 + n} of a test: bad.")))
    assert len(lines) == 40
    assert lines[0] == {"step": 1, "batch": 0, "row": 3, "example": 7, "error": "Example 7 of a test: bad."}
    assert messages[0].startswith("warning: step 1: Example 7 of a test: bad. Its row has weight 0")
    assert len(messages) == ALWAYS_ALLOWED + 2


def test_too_many_bad_examples_raise_data_error():
    counter = BadExampleCounter(lambda line: None, lambda text: None)
    bad = found(*(BadRow(row, row, f"Example {row}: bad.") for row in range(2)))
    for n in range(5):
        counter.unwrap(n, bad)
    with pytest.raises(DataError, match=r"step 6: 12 of the last 96 examples cannot be read, and data.on_error=skip"):
        counter.unwrap(5, bad)


def test_evaluation_skips_bad_examples():
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    sharding = NamedSharding(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]), PartitionSpec("data"))
    feed = EvaluationFeed(Holes((5, 18), n=20), Data(on_error="skip"), batch_size=8, sharding=sharding)
    counted = [y for batch in feed for y in np.asarray(batch.examples["y"])[np.asarray(batch.weight) > 0].tolist()]
    assert counted == [y for y in range(20) if y not in (5, 18)]
    assert OrderedBatches(Holes(n=20), 8).address(21) == 1


def test_padding_after_the_last_example_is_never_a_bad_example():
    batches = TolerantBatches(OrderedBatches(Holes((1, 18), n=20), 8))  # padding rows read from the start again
    assert [bad.address for bad in batches[2].bad] == [18]
    assert batches[2].batch.weight.tolist() == [1, 1, 0, 1, 0, 0, 0, 0]
