import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.data.streams.order import StreamOrder
from tests import properties

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any)


@properties.examples(100)
@given(COUNTS, st.integers(1, 7), st.integers(1, 9), st.integers(0, 3))
def test_each_epoch_has_each_item_once_in_any_batches(counts, window, batch_size, epoch):
    order = StreamOrder(counts, len(counts), window=window, seed=5, batch_size=batch_size)
    n = sum(counts)
    shards, items = order.locate(epoch * n + np.arange(n))
    wanted = [(s, epoch * count + k) for s, count in enumerate(counts) for k in range(count)]
    assert sorted(zip(shards.tolist(), items.tolist(), strict=True)) == wanted


@properties.examples(100)
@given(COUNTS, st.booleans(), st.integers(1, 7), st.integers(1, 9), st.integers(0, 12))
def test_needed_is_the_first_item_that_later_positions_read(counts, known, window, batch_size, batch):
    order = StreamOrder(counts if known else None, len(counts), window=window, seed=0, batch_size=batch_size)
    ahead = order.length if known else 20 * len(counts) * window
    positions = batch * batch_size + np.arange(2 * (ahead // batch_size + 1) * batch_size)
    shards, items = order.locate(positions)
    needed = order.needed(batch * batch_size)
    for shard in set(shards.tolist()):
        first = items[shards == shard].min()
        assert needed[shard] <= first
        assert first - needed[shard] < window


def test_rows_of_a_batch_are_sorted_by_shard_so_that_a_process_reads_few_shards():
    order = StreamOrder([40] * 8, 8, window=1, seed=0, batch_size=16)
    shards, _ = order.locate(np.arange(160))
    assert shards.reshape(10, 16).tolist() == [sorted(list(range(8)) * 2)] * 10


def test_without_counts_the_shards_alternate_for_ever():
    order = StreamOrder(None, 3, window=1, seed=0)
    shards, items = order.locate(np.array([0, 1, 2, 3, 3 * 10**15 + 1]))
    assert (shards.tolist(), items.tolist()) == ([0, 1, 2, 0, 1], [0, 0, 0, 1, 10**15])


def test_shuffling_stays_within_a_window_and_differs_between_windows_and_epochs():
    order = StreamOrder([40], 1, window=10, seed=0)
    _, items = order.locate(np.arange(80))
    windows = items.reshape(8, 10)
    assert [sorted(window) for window in windows.tolist()] == np.arange(80).reshape(8, 10).tolist()
    assert len({tuple(window % 10) for window in windows}) == 8
