import pickle

import numpy as np

from engine.data.adapt import as_source
from engine.data.batch import Batch
from engine.data.batches import Batches
from engine.data.sampling.sampler import Mark
from engine.data.streams.marks import MarkedBatches, add_later, gather_marks, latest
from tests.data.streams.counting import Counting


def test_batch_carries_the_marks_of_the_batch_after_it():
    source = as_source(Counting([50, 50]), "data", window=1)
    batches = Batches(source, 4, 0, False)
    marked = MarkedBatches(batches, batches.marks)
    late, early = marked[5], marked[4]  # as threads may make them
    assert isinstance(early.batch, Batch)
    assert early.marks == {"0": (10, 10), "1": (10, 10)}
    assert late.marks == {"0": (12, 12), "1": (12, 12)}
    np.testing.assert_array_equal(early.batch.examples["item"], [8, 9, 8, 9])


def test_batch_carries_only_the_marks_that_it_changes():
    source = as_source(Counting([50, 50], known=False), "data", window=16)
    batches = Batches(source, 4, 0, True)
    marked = MarkedBatches(batches, batches.marks)
    start, second = {"0": (0, None), "1": (0, None)}, {"0": (8, 8), "1": (8, 8)}
    assert [marked[n].marks for n in range(6)] == [start, {}, {}, second, {}, {}]
    copy = pickle.loads(pickle.dumps(marked))  # as for a worker
    assert [copy[n].marks for n in (6, 7, 8)] == [second, {}, {"0": (16, 16), "1": (16, 16)}]


def test_latest_mark_of_each_shard_is_saved():
    assert latest([{"0": (3, "a"), "1": (2, "b")}, {"1": (5, "c")}, {"0": (1, "d")}]) == {"0": (3, "a"), "1": (5, "c")}


def test_earlier_mark_does_not_replace_a_later_one():
    marks: dict[str, Mark] = {"0": (8, "h"), "1": (2, "b")}
    add_later(marks, {"0": (0, None), "1": (4, "d"), "2": (0, None)})
    assert marks == {"0": (8, "h"), "1": (4, "d"), "2": (0, None)}


def test_position_of_a_single_process_is_saved_as_it_is():
    for position in ({"next_batch": 3}, {"next_batch": 3, "streams": {"0": (3, None)}}):
        assert gather_marks(position) == position
