"""Examples that cannot be read: batches stay full, such rows weigh nothing, and all of it is told."""

import numpy as np
import pytest

from engine.config.errors import DataError
from engine.config.schema import Data
from engine.data.bad_examples import FEW, Bad, BadExamples, TolerantBatch, TolerantBatches
from engine.data.batch import Batch
from engine.data.batches import Batches, OrderedBatches
from engine.data.feed import EvaluationFeed
from engine.data.reader import read


class Holes:
    """Numbers, of which some cannot be read; one has another shape, and one fails in its random change."""

    def __init__(self, bad=(), odd=(), failing=(), n=64):
        self.bad, self.odd, self.failing, self.n = bad, odd, failing, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError(f"sector {index}")
        return {"x": np.full(3 + (index in self.odd), index, np.float32), "y": np.int64(index)}


class Changing(Holes):
    def transform(self, example, rng):
        if example["y"] in self.failing:
            raise ValueError("cannot be cropped")
        return {**example, "x": example["x"] + rng.random(3).astype(np.float32)}


def tolerant(source, rows=None, shuffle=True):
    return TolerantBatches(Batches(source, 16, 5, shuffle, rows))


def test_without_a_bad_example_nothing_is_changed():
    source = Holes()
    found, plain = tolerant(source)[3], Batches(source, 16, 5, True)[3]
    assert found.bad == ()
    assert found.batch.weight.tolist() == [1.0] * 16
    np.testing.assert_array_equal(found.batch.examples["y"], plain.examples["y"])


def test_a_bad_row_weighs_nothing_and_holds_the_next_good_example_of_the_order():
    whole = Batches(Holes(), 16, 5, True)
    order = np.concatenate([whole[n].examples["y"] for n in range(8)])
    bad = (int(order[20]), int(order[21]))
    found = tolerant(Holes(bad))[1]
    assert np.flatnonzero(found.batch.weight == 0).tolist() == [4, 5]
    assert found.batch.examples["y"].tolist() == [*order[16:20], order[22], order[22], *order[22:32]]
    assert [(one.row, one.address) for one in found.bad] == [(4, bad[0]), (5, bad[1])]
    assert f"OSError: sector {bad[0]}" in found.bad[0].error
    assert found.batch.examples["x"].dtype == np.float32
    assert found.batch.examples["y"].dtype == np.int32


def test_it_is_the_same_again_and_for_the_rows_of_each_process():
    source = Holes((3, 11, 40))
    whole = [tolerant(source)[n] for n in range(4)]
    for rows in (slice(0, 8), slice(8, 16)):
        for n in range(4):
            part = tolerant(source, rows)[n]
            np.testing.assert_array_equal(part.batch.examples["x"], whole[n].batch.examples["x"][rows])
            np.testing.assert_array_equal(part.batch.weight, whole[n].batch.weight[rows])
    assert sum(len(found.bad) for found in whole) == 3


def test_another_shape_and_a_random_change_that_fails_are_bad_too():
    source = Changing(odd=(1,), failing=(2,))
    bad = [one for n in range(4) for one in tolerant(source, shuffle=False)[n].bad]
    assert [one.address for one in bad] == [1, 2]
    assert "Example 1 of" in bad[0].error or "transform failed at example 1" in bad[0].error
    assert "ValueError: cannot be cropped" in bad[1].error
    whole = tolerant(Changing(), shuffle=False)[0]
    np.testing.assert_array_equal(
        tolerant(source, shuffle=False)[0].batch.examples["x"][3:], whole.batch.examples["x"][3:]
    )


def test_a_first_example_that_cannot_be_read_is_one_like_the_others():
    assert [one.address for one in tolerant(Holes((0,)), shuffle=False)[0].bad] == [0]


def test_a_source_of_which_nothing_can_be_read_is_refused():
    with pytest.raises(DataError, match=r"Holes\[0\] failed: OSError: sector 0"):
        tolerant(Holes(range(64)))


@pytest.mark.parametrize("workers", [0, 1])
def test_threads_and_workers_hand_it_over(workers):
    reader = read(tolerant(Holes((3,)), shuffle=False), 0, 2, threads=2, workers=workers, prefetch=2)
    found = [next(reader) for _ in range(2)]
    reader.close()
    assert [one.address for one in found[0].bad] == [3]
    assert found[0].batch.weight.sum() == 15
    assert found[1].bad == ()


def found(*bad):
    """A batch of 16 rows with these bad examples."""
    return TolerantBatch(Batch({"y": np.zeros(16)}, np.ones(16, np.float32)), bad)


def test_each_is_told_and_written_then_at_each_doubling():
    lines, told = [], []
    account = BadExamples(lines.append, told.append)
    for n in range(40):
        account.take(n, found(Bad(3, 7 + n, f"Example {7 + n} of a test: bad.")))
    assert len(lines) == 40
    assert lines[0] == {"step": 1, "batch": 0, "row": 3, "example": 7, "error": "Example 7 of a test: bad."}
    assert told[0].startswith("warning: step 1: Example 7 of a test: bad. Its row has weight 0")
    assert len(told) == FEW + 2


def test_too_many_are_no_accident():
    account = BadExamples(lambda line: None, lambda text: None)
    bad = found(*(Bad(row, row, f"Example {row}: bad.") for row in range(2)))
    for n in range(5):
        account.take(n, bad)
    with pytest.raises(DataError, match=r"step 6: 12 of the last 96 examples cannot be read, which is more than 10%"):
        account.take(5, bad)


def test_an_evaluation_leaves_bad_rows_out():
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    sharding = NamedSharding(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]), PartitionSpec("data"))
    feed = EvaluationFeed(
        Holes((5, 18), n=20), Data(on_error="skip"), batch_size=8, sharding=sharding, replicated=sharding
    )
    counted = [y for batch in feed for y in np.asarray(batch.examples["y"])[np.asarray(batch.weight) > 0].tolist()]
    assert counted == [y for y in range(20) if y not in (5, 18)]
    assert OrderedBatches(Holes(n=20), 8).address(21) == 1
