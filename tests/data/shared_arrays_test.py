import pickle
import threading
import time
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray
from hypothesis import given
from hypothesis import strategies as st

from engine.data.bad_examples import BadRow, TolerantBatch, TolerantBatches
from engine.data.batch import Batch
from engine.data.batches import Batches
from engine.data.reader import read
from engine.data.shared_arrays import LEAST_BYTES, Parcel, Receiver, empty, share, shared_arrays, zeros
from engine.data.source import BaseSource
from engine.data.streams.marks import MarkedBatch
from tests.properties import examples as cases

SHAPE = (3, LEAST_BYTES)
DEADLINE_S = 60
BAD = 9  # an example that cannot be read


def exists(name):
    try:
        SharedMemory(name).close()
    except FileNotFoundError:
        return False
    return True


def gone(names):
    """Returns whether memory is removed; a thread of Grain removes it where worker processes have run before."""
    end = time.monotonic() + DEADLINE_S
    while any(map(exists, names)):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def name_of(array):
    """Returns the name of the shared memory of a new array."""
    return array.base.metadata.name


def sent(parcel):
    """Returns a parcel as the main process receives it: with its new memory opened there by name."""
    new = {name: SharedMemoryArray.from_metadata(array.metadata) for name, array in parcel.new.items()}
    for array in new.values():
        array.unlink_on_del()
    return pickle.loads(pickle.dumps(parcel._replace(new={})))._replace(new=new)


def test_whole_arrays_are_sent_in_shared_memory_and_all_others_are_freed():
    with shared_arrays(True):
        whole, part, turned, cast, unused = arrays = [zeros(SHAPE, np.uint8) for _ in range(5)]
        names = [name_of(array) for array in arrays]
        weight, own = empty((3,), np.float32), np.ones(SHAPE)
        whole[:], part[:], unused[:] = 7, 8, 9
        batch = TolerantBatch(Batch({"x": [whole, part[:2]]}, weight), (BadRow(0, 1, "gone"),))
        marks: Any = {"shard": None}
        parcel = share([MarkedBatch(batch, marks), turned[::-1], cast.view(np.int8), own])
    assert list(parcel.new) == names[:1]
    receiver = Receiver()
    marked, *others = receiver.open(sent(parcel))
    assert (marked.marks, marked.batch.bad) == (marks, batch.bad)
    assert [array.min() for array in (*marked.batch.batch.examples["x"], unused)] == [7, 8, 9]  # it stays mapped
    assert [array.tobytes() for array in others] == [bytes(whole.nbytes)] * 2 + [own.tobytes()]
    assert [exists(name) for name in names] == [True, False, False, False, False]
    receiver.close()
    assert exists(names[0])  # an array is still in use
    del marked
    assert gone(names)


def in_own_thread(function):
    """Runs a function in a thread, which has a pool of shared memory of its own, as a worker process has."""
    errors = []

    def run():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        raise error


@cases(30)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 5]), st.booleans(), st.integers(0, 3)), max_size=12))
def test_memory_is_used_again_only_after_the_last_view_of_its_array_is_deleted(blocks):
    def run():
        receiver, kept, names, most = Receiver(), [], set(), 0
        for number, (scale, fails, keep) in enumerate(blocks):
            with shared_arrays(True):
                array = zeros((scale, LEAST_BYTES), np.uint8)
                assert not array.any()
                names.add(name_of(array))
                array[:] = number + 1
                parcel = Parcel(None, {}) if fails else share({"x": array})
            assert array is not None
            del array
            if not fails:
                opened = receiver.open(sent(parcel))["x"]
                kept.append((number + 1, opened.reshape(-1)[LEAST_BYTES // 2 :: 2]))
                most = max(most, len(kept))
                del opened
            kept = kept[len(kept) - min(len(kept), keep) :]
            assert all((view == value).all() for value, view in kept)
        assert sum(map(exists, names)) <= 3 * (most + 1)
        receiver.close()
        del kept
        assert gone(names)

    in_own_thread(run)


def test_memory_of_deleted_arrays_is_used_again():
    def run():
        receiver, names = Receiver(), set()
        for _ in range(20):
            with shared_arrays(True):
                parcel = share(zeros(SHAPE, np.uint8))
            array = receiver.open(sent(parcel))
            names.add(name_of(array))
            del array
        assert len(names) == 1
        receiver.close()

    in_own_thread(run)


def test_memory_is_not_used_again_while_the_worker_keeps_a_view_of_its_array():
    def run():
        receiver = Receiver()
        with shared_arrays(True):
            array = zeros(SHAPE, np.uint8)
            parcel = share(array)
        receiver.open(sent(parcel))  # and deleted at once
        name, view = name_of(array), array[0]
        del array, parcel
        with shared_arrays(True):
            assert name_of(empty(SHAPE, np.uint8)) != name
            del view
            assert name_of(empty(SHAPE, np.uint8)) == name
        receiver.close()
        assert gone([name])

    in_own_thread(run)


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

    reader = read(tolerant(), range(40), threads=0, workers=1, prefetch=2)
    kept: list[Any] = []
    names, batch = set(), None
    try:
        for number, batch in enumerate(reader):
            if not batch.bad:  # a filler is written into a copy of the arrays
                names.add(name_of(batch.batch.examples["image"]))
            kept = [*kept[-(number % 5) :], (number, values(batch), batch)]  # batches stay as they are while in use
            assert all(values(batch) == before == values(tolerant()[n]) for n, before, batch in kept[:1] + kept[-1:])
        assert 1 <= len(names) <= 20  # of 40 batches
    finally:
        reader.close()
    kept, batch = [], None
    assert gone(names)
