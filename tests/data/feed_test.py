import json
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from engine.base.errors import DataError, ShardingError
from engine.config.schema import Data
from engine.data.adapt import as_source
from engine.data.batches import Batches
from engine.data.feed import Batching, EvaluationFeed, TrainFeed
from engine.data.source import ArraySource
from engine.data.stages import STAGES, stage
from tests import runs

ROWS = P(("data", "fsdp"))


def shardings(spec=ROWS):
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, spec), NamedSharding(mesh, P())


def make(size=50):
    class Noisy(ArraySource):  # a local class, pickled by value for the workers
        def transform(self, example, rng):
            return {**example, "noise": rng.random(1000, dtype=np.float32)}

    return Noisy({"label": np.arange(size, dtype=np.int32), "x": np.ones((size, 3), np.float32)})


def train_feed(source=None, start=0, stop=100, **settings):
    return TrainFeed(
        make() if source is None else source,
        Data(**settings),
        Batching(16, 0, shardings()[0]),
        range(start, stop),
    )


def drawn(feed, *counts):
    """Returns the labels and noise of `feed.next(count)` for each count, read after all batches are placed."""
    try:
        batches = [batch for count in counts for batch in feed.next(count)]
    finally:
        feed.close()
    return [
        (np.asarray(batch.examples["label"]).tolist(), np.asarray(batch.examples["noise"]).tolist())
        for batch in batches
    ]


def expected(start, stop):
    batches = Batches(make(), 16, seed=0, shuffle=True)
    return [
        (batch["label"].tolist(), batch["noise"].tolist())
        for batch in (batches[n].examples for n in range(start, stop))
    ]


@pytest.mark.parametrize("spec", [ROWS, P("data"), P()])
def test_batches_are_global_arrays_with_the_sharding(spec):
    sharding, _ = shardings(spec)
    feed = TrainFeed(make(), Data(), Batching(16, 0, sharding), range(9))
    (batch,) = feed.next(1)
    feed.close()
    assert batch.examples["x"].shape == (16, 3)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(batch))
    assert np.asarray(batch.examples["label"]).tolist() == expected(0, 1)[0][0]


def test_batches_do_not_depend_on_the_number_per_call():
    assert drawn(train_feed(), 1, 3, 2, 4) == drawn(train_feed(threads=0), 10) == expected(0, 10)


def test_resumed_feed_continues_at_the_saved_position():
    feed = train_feed(prefetch=8)
    feed.next(3)
    feed.next(2)
    position = feed.position
    feed.close()
    assert position == {"next_batch": 5, "next_example": 80}
    assert drawn(train_feed(start=5), 4) == expected(5, 9)


@pytest.mark.multiprocess
def test_seek_moves_the_position_back_to_an_unfinished_step():
    feed = train_feed()
    feed.next(3)
    feed.seek(1)
    feed.close()
    assert feed.position == {"next_batch": 1, "next_example": 16}


def test_feed_with_workers_gives_equal_batches_and_resumes():
    # Large arrays arrive in shared memory, which must exist until the device has copied them.
    assert drawn(train_feed(start=3, workers=2), 1, 6) == expected(3, 10)
    assert runs.ends_workers()


def test_feed_of_a_stream_resumes_at_the_saved_marks_of_its_shards():
    class Shards:
        shards = 4

        def open(self, shard, position):
            for item in range(position or 0, 10_000):
                yield {"label": np.int32(4 * item + shard), "noise": np.int32(position or 0)}, item + 1

    def feed(start=0, **given):
        source = as_source(Shards(), "data", window=16)
        return TrainFeed(
            source, Data(**given), Batching(16, 0, shardings()[0]), range(start, 100), saved=given and saved
        )

    saved = {}
    wanted = drawn(feed(), 30)
    first = feed(threads=3, prefetch=5)
    found = [np.asarray(batch.examples["label"]).tolist() for batch in first.next(17)]
    assert found == [labels for labels, _ in wanted[:17]]
    first.next(4)
    first.seek(17)  # a run that stops gives back the batches of an unfinished dispatch
    saved = json.loads(json.dumps(first.position))
    first.close()
    assert saved["streams"] == {str(shard): [68, 68] for shard in range(4)}
    for settings in ({"threads": 3}, {"workers": 2}):
        resumed = drawn(feed(17, **settings), 13)
        assert [labels for labels, _ in resumed] == [labels for labels, _ in wanted[17:]]
        assert {noise for _, row in resumed for noise in row} == {68}
    saved["content"] += 1  # other data, which the user has accepted
    ((_, noise),) = drawn(feed(17, threads=0), 1)
    assert set(noise) == {0}


def test_recent_batch_of_a_stream_is_read_again_without_the_ones_long_before_it(monkeypatch):
    monkeypatch.setattr("engine.data.streams.marks.EARLIER", 10)

    class Shards:
        shards = 2

        def open(self, shard, position):
            for item in range(position or 0, 10_000):
                yield {"label": np.int32(2 * item + shard), "noise": np.int32(position or 0)}, item + 1

    source = as_source(Shards(), "data", window=1)
    feed = train_feed(source, threads=2)
    wanted = drawn(feed, *[1] * 35)
    saved: dict[int, Any] = {n: feed.saved_before(n) for n in (20, 25, 29, 30, 34)}
    found = [saved[n]["streams"]["1"] for n in (20, 29, 30, 34)]
    assert found == [(160, 160)] * 2 + [(240, 240)] * 2
    assert feed.saved_before(19) is None
    again = TrainFeed(source, Data(threads=0), Batching(16, 0, shardings()[0]), range(25, 26), saved=saved[25])
    ((labels, noise),) = drawn(again, 1)
    assert (labels, set(noise)) == (wanted[25][0], {160})


def test_train_feed_applies_the_limit():
    feed = train_feed(limit=8)
    (batch,) = feed.next(1)
    feed.close()
    assert sorted(np.asarray(batch.examples["label"]).tolist()) == sorted(2 * list(range(8)))


def test_requesting_batches_past_the_end_raises_data_error():
    feed = train_feed(start=98, stop=100)
    feed.next(1)
    with pytest.raises(DataError, match="2 batches requested at batch 99, but the run ends at 100"):
        feed.next(2)
    feed.next(1)
    feed.close()


def test_wait_for_host_data_is_measured():
    gate = threading.Event()

    class Slow(ArraySource):
        def take(self, indices):
            gate.wait(0.05)
            return super().take(indices)

    feed = train_feed(Slow({"label": np.arange(20)}), threads=0)
    assert feed.wait_s == 0
    feed.next(2)
    feed.close()
    assert 0.1 <= feed.wait_s < 60


@pytest.mark.parametrize("workers", [0, 1])
def test_times_of_all_stages_are_measured_in_threads_and_workers(workers):
    class Marked(ArraySource):
        def __getitem__(self, index):
            time.sleep(0.001)
            with stage("decode"):
                time.sleep(0.002)
                return super().__getitem__(index)

        def transform(self, example, rng):
            time.sleep(0.001)
            return example

    feed = train_feed(Marked({"x": np.ones((50, 3), np.float32)}), workers=workers)
    feed.next(2)
    times = dict(zip(STAGES, feed.times, strict=True))
    made_s, readers = feed.made_s, feed.readers
    feed.close()
    assert times["read"] > 32 * 0.001 and times["decode"] > 32 * 0.002 and times["transform"] > 32 * 0.001
    assert times["collate"] > 0 and times["transfer"] > 0
    assert readers == (workers or 2)
    assert made_s == pytest.approx(sum(feed.times[:-1]) / readers)


def test_closing_stops_the_threads():
    before = set(threading.enumerate())
    feed = train_feed(threads=2)
    feed.next(1)
    threads = set(threading.enumerate()) - before
    assert threads
    feed.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_unusable_data_raises_before_reading_starts():
    class Texts(ArraySource):
        def __getitem__(self, index):
            return {"name": np.datetime64("2020")}

    with pytest.raises(DataError, match=r"Texts\[0\]: name has dtype datetime64"):
        train_feed(Texts({"x": np.zeros(3)}))
    with pytest.raises(DataError, match="no examples"):
        train_feed(ArraySource({"x": np.zeros(0)}))
    with pytest.raises(ShardingError, match="batch of 10 rows is not divisible by 8"):
        TrainFeed(make(), Data(), Batching(10, 0, shardings()[0]), range(1))


def evaluation_feed(source, batch_size=16, spec=ROWS, exact_last=False, **settings):
    sharding, _ = shardings(spec)
    return EvaluationFeed(
        source,
        Data(**settings),
        batch_size=batch_size,
        sharding=sharding,
        exact_last=exact_last,
    )


@pytest.mark.parametrize("size", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_gives_weight_one_to_every_example_once(size, threads):
    feed = evaluation_feed(make(size), threads=threads)
    batches = list(feed)
    assert len(batches) == len(feed) == -(-size // 16)
    labels = np.concatenate([np.asarray(batch.examples["label"]) for batch in batches])
    weights = np.concatenate([np.asarray(batch.weight) for batch in batches])
    assert weights.dtype == np.float32
    assert labels[weights == 1].tolist() == list(range(size))
    assert (labels[weights == 0] == size - 1).all()
    for batch in batches:
        assert batch.weight.shape == (16,)
        assert {leaf.sharding for leaf in jax.tree.leaves(batch)} == {shardings()[0]}
        assert "noise" not in batch.examples


@pytest.mark.parametrize(("size", "last"), [(50, 2), (48, 16), (5, 5)])
def test_exact_last_batch_has_no_padding(size, last):
    feed = evaluation_feed(make(size), exact_last=True)
    batches = list(feed)
    assert len(batches) == len(feed) == -(-size // 16)
    labels = np.concatenate([np.asarray(batch.examples["label"]) for batch in batches])
    assert labels.tolist() == list(range(size))
    assert all((np.asarray(batch.weight) == 1).all() for batch in batches)
    batch = batches[-1]
    assert batch.examples["x"].shape == (last, 3)
    assert batch.weight.shape == (last,)
    sharding, replicated = shardings()
    assert {leaf.sharding for leaf in jax.tree.leaves(batch)} == {sharding if last == 16 else replicated}


@pytest.mark.parametrize("exact_last", [False, True])
def test_consecutive_batches_of_an_evaluation_are_those_of_a_whole_reading(exact_last):
    feed = evaluation_feed(make(50), exact_last=exact_last)
    whole = [np.asarray(batch.examples["label"]).tolist() for batch in feed]
    for numbers in (range(1, 3), range(3, 4), range(2, 4), range(2, 2)):
        found = [np.asarray(batch.examples["label"]).tolist() for batch, _ in feed.with_host_batches(numbers)]
        assert found == whole[numbers.start : numbers.stop]


def test_evaluation_can_be_iterated_again_after_an_early_break():
    feed = evaluation_feed(make(50))
    before = set(threading.enumerate())
    for _ in feed:
        break
    assert len(list(feed)) == 4
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


def test_evaluation_applies_its_own_limit():
    assert len(evaluation_feed(make(50), limit=20)) == 2


def test_full_batches_share_one_weight_array_on_the_devices():
    feed = train_feed()
    first, second = feed.next(1)[0], feed.next(1)[0]
    feed.close()
    assert first.weight is second.weight
    assert np.asarray(first.weight).tolist() == [1] * 16
    *full, last = evaluation_feed(make(40))
    assert full[0].weight is full[1].weight
    assert np.asarray(last.weight).tolist() == [1] * 8 + [0] * 8


@pytest.mark.multiprocess
def test_full_batches_from_a_worker_share_one_weight_array():
    feed = train_feed(workers=1)
    first, second = feed.next(2)
    feed.close()
    assert first.weight is second.weight
