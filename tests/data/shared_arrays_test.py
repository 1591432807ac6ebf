import gc
import multiprocessing
import os
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.bad_examples import BadRow, TolerantBatch, TolerantBatches
from engine.data.batch import Batch
from engine.data.batches import Batches
from engine.data.reader import read
from engine.data.shared_arrays import LEAST_BYTES, Receiver, Sender, empty, zeros
from engine.data.source import BaseSource
from engine.data.streams.marks import MarkedBatch
from tests import runs
from tests.properties import examples as cases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SHAPE = (3, LEAST_BYTES)
BAD = 9  # an example that cannot be read


class Ends:
    """Both ends of a pipe, of which another process would have one."""

    def __init__(self):
        self.pipe, self.other = multiprocessing.Pipe()
        self.sender, self.receiver = Sender(self.pipe), Receiver(self.other)

    def through(self, content):
        """Returns an object of the present block as the other process receives it."""
        self.sender.send(self.sender.message(content))
        return self.receiver.receive()


@pytest.fixture
def ends():
    """Ends of a pipe; checks that no memory is left when these and the arrays of the test are deleted."""
    gc.collect()
    before = runs.shared_memory()
    ends = Ends()
    yield ends
    vars(ends).clear()
    gc.collect()
    assert runs.shared_memory() == before


def test_large_arrays_are_sent_in_shared_memory_and_all_others_are_freed(ends):
    before = runs.shared_memory()
    with ends.sender.block():
        whole, part, turned, cast, unused = [zeros(SHAPE, np.uint8) for _ in range(5)]
        weight, own = empty((3,), np.float32), np.asfortranarray(np.random.default_rng(0).random(SHAPE))
        whole[:], part[:], unused[:] = 7, 8, 9
        batch = TolerantBatch(Batch({"x": [whole, part[:2]]}, weight), (BadRow(0, 1, "gone"),))
        marks: Any = {"shard": None}
        content = [MarkedBatch(batch, marks), turned[::-1], cast.view(np.int8), own, whole]
        marked, *others = ends.through(content)
        assert content[-1] is whole  # the arrays of the block stay as they are
    assert runs.shared_memory() - before == 5 + 4 + 5  # allocated, copied, received
    assert (marked.marks, marked.batch.bad) == (marks, batch.bad)
    assert [array.min() for array in (*marked.batch.batch.examples["x"], unused)] == [7, 8, 9]  # it stays mapped
    assert [array.tobytes() for array in others] == [bytes(whole.nbytes)] * 2 + [own.tobytes(), whole.tobytes()]
    assert others[-1] is marked.batch.batch.examples["x"][0]


@pytest.mark.parametrize("dtype", ["bfloat16", "datetime64[s]", "float64", ">f4"])
def test_every_dtype_arrives_unchanged(ends, dtype):
    array = np.arange(LEAST_BYTES).astype(np.dtype(dtype))
    with ends.sender.block():
        found = ends.through({"large": array, "small": array[:9], "objects": array[:9].astype(object)})
    assert found["large"].dtype == found["small"].dtype == array.dtype
    np.testing.assert_array_equal(found["large"], array)
    np.testing.assert_array_equal(found["small"], array[:9])
    assert found["large"].flags.aligned and found["large"].flags.writeable


def test_large_pickle_is_sent_in_shared_memory(ends):
    content = {
        "names": np.array([f"name {i}" for i in range(10_000)], object),
        "small": [np.arange(100)] * 2,
        "large": np.ones(SHAPE),
    }
    for _ in range(3):
        with ends.sender.block():
            message = ends.sender.message(content)
            assert len(message.data) < 1000
            ends.sender.send(message)
        np.testing.assert_equal(ends.receiver.receive(), content)


def test_array_outside_of_a_block_is_an_ordinary_one():
    assert zeros(SHAPE, np.uint8).base is None and empty(SHAPE, np.uint8).base is None


@cases(30)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 5]), st.booleans(), st.integers(0, 3)), max_size=12))
def test_memory_is_used_again_only_after_the_last_view_of_its_array_is_deleted(blocks):
    before, ends, kept, memory, most = runs.shared_memory(), Ends(), [], set(), 0
    for number, (scale, fails, keep) in enumerate(blocks):
        with ends.sender.block():
            array = zeros((scale, LEAST_BYTES), np.uint8)
            assert not array.any()
            memory.add(id(array.base))
            array[:] = number + 1
            if not fails:
                opened = ends.through({"x": array})["x"]
                kept.append((number + 1, opened.reshape(-1)[LEAST_BYTES // 2 :: 2]))
                most = max(most, len(kept))
                del opened
            del array
        kept = kept[len(kept) - min(len(kept), keep) :]
        assert all((view == value).all() for value, view in kept)
    assert len(memory) <= 3 * (most + 1)
    del kept, ends
    assert runs.shared_memory() == before


def test_memory_of_deleted_arrays_is_used_again(ends):
    memory = set()
    for _ in range(20):
        with ends.sender.block():
            array = zeros(SHAPE, np.uint8)
            memory.add(id(array.base))
            ends.through(array)
            del array
    assert len(memory) == 1


def test_memory_is_not_used_again_while_the_sender_keeps_a_view_of_its_array(ends):
    with ends.sender.block():
        array = zeros(SHAPE, np.uint8)
        ends.through(array)  # and deleted at once
        memory, view = id(array.base), array[0]
        del array
    with ends.sender.block():
        assert id(empty(SHAPE, np.uint8).base) != memory
        del view
        assert id(empty(SHAPE, np.uint8).base) == memory


@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize("sent", [0, 3, 200, None])
def test_process_that_ended_while_it_sent_raises_eof(ends, sent, unread):
    """It may end before a message, in its length, in its text, and before the file descriptor of its memory."""
    with ends.sender.block():
        data = ends.sender.message({"text": "x" * 500, "array": np.ones(SHAPE)}).data
    os.write(ends.pipe.fileno(), (len(data).to_bytes(4) + data)[:sent])
    if unread:  # a job, which changes the error of the system
        ends.other.send_bytes(b"job")
    ends.pipe.close()
    with pytest.raises(EOFError):
        ends.receiver.receive()


class Images(BaseSource):
    """Images of 32 KB; one cannot be read."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        if index == BAD:
            raise ValueError("gone")
        return {"image": np.full((32, 1024), index, np.uint8), "label": np.int32(index)}

    def transform(self, example, rng):
        return {**example, "image": example["image"] + rng.integers(0, 99, (32, 1024), np.uint8)}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_worker_sends_equal_batches_in_shared_memory_and_leaves_none():
    def tolerant():
        return TolerantBatches(Batches(Images(), 4, seed=0, shuffle=True))

    def values(batch):
        return batch.bad, batch.batch.weight.tolist(), [x.tobytes() for x in batch.batch.examples.values()]

    before = runs.shared_memory()
    reader = read(tolerant(), range(40), threads=0, workers=1, prefetch=2)
    kept: list[Any] = []
    memory, batch = set(), None
    try:
        for number, batch in enumerate(reader):
            if not batch.bad:  # a filler is written into a copy of the arrays
                memory.add(id(batch.batch.examples["image"].base))
            kept = [*kept[-(number % 5) :], (number, values(batch), batch)]  # batches stay as they are while in use
            assert all(values(batch) == before == values(tolerant()[n]) for n, before, batch in kept[:1] + kept[-1:])
        assert 1 <= len(memory) <= 20  # of 40 batches
    finally:
        reader.close()
    del kept, batch, reader
    assert runs.shared_memory() == before
