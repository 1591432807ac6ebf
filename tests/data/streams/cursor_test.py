import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.streams.cursor import Cursor, StreamReader, StreamReadError
from engine.data.streams.stream import BaseStream
from tests import properties
from tests.data.streams.counting import Counting


def cursor(stream, **settings):
    return Cursor(stream, 0, **({"count": None, "window": 4, "keep": 8, "mark": None, "name": "data.X"} | settings))


@properties.examples(60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.booleans(), st.integers(1, 6), st.integers(1, 9))
def test_items_are_those_of_the_shard_in_any_order_of_requests(numbers, known, window, keep):
    found = cursor(Counting([11]), count=11 if known else None, window=window, keep=keep)
    assert [int(found.fetch(number)["item"]) for number in numbers] == [number % 11 for number in numbers]


@properties.examples(60)
@given(st.booleans(), st.integers(1, 6), st.integers(1, 40))
def test_mark_reads_on_from_the_start_of_its_window(known, window, number):
    count = 11 if known else None
    first = cursor(Counting([11]), count=count, window=window, keep=2 * window)
    first.fetch(number)
    start = number - number % window if count is None else number - number % count % window
    mark = first.mark(start)
    assert mark[0] == start
    stream = Counting([11])
    assert int(cursor(stream, count=count, window=window, mark=mark).fetch(number)["item"]) == number % 11
    assert stream.reads == number - start + 1


def test_threads_that_ask_for_neighbouring_items_read_the_shard_once():
    stream = Counting([1000])
    found = cursor(stream, keep=200)
    with ThreadPoolExecutor(4) as pool:
        items = list(pool.map(lambda number: int(found.fetch(number)["item"]), range(150)))
    assert items == list(range(150))
    assert stream.reads == 150


def test_threads_that_read_far_apart_soon_keep_the_items_between_them():
    stream = Counting([3000])
    found = cursor(stream, keep=8)
    for number in range(1000):
        assert int(found.fetch(number)["item"]) == number
        assert int(found.fetch(1000 + number)["item"]) == 1000 + number
    assert stream.reads <= 2 * 2000


def test_item_without_a_mark_is_read_from_the_start_of_its_epoch():
    stream = Counting([10])
    assert int(cursor(stream, count=10).fetch(53)["item"]) == 3
    assert stream.reads == 4


def test_reader_that_has_fallen_behind_opens_its_shard_at_the_mark_of_the_workers():
    stream = Opened()
    reader = StreamReader(stream, counts=None, window=1, keep=4, name="data.X")
    assert reader.fetch(0, 0) == 0
    reader.seek({0: (60, 60)})
    assert (reader.fetch(0, 61), reader.fetch(0, 59)) == (61, 59)
    assert stream.opened == [None, 60, None]


def test_seek_keeps_the_marks_of_other_shards():
    stream = Opened()
    reader = StreamReader(stream, counts=None, window=1, keep=4, name="data.X")
    reader.seek({0: (60, 60), 1: (30, 30)})
    reader.seek({0: (70, 70)})
    assert (reader.fetch(0, 71), reader.fetch(1, 30)) == (71, 130)
    assert stream.opened == [70, 30]


class Broken(Counting):
    def open(self, shard, position):
        for number, found in enumerate(super().open(shard, position)):
            if number == 2:
                raise OSError("the disk is gone")
            yield found


@pytest.mark.parametrize(
    ("stream", "count", "text"),
    [
        (Counting([0]), None, "data.X has no examples."),
        (Counting([3]), 5, "data.X ended after 3 examples, but it says that it has 5. Correct its counts"),
        (Broken([5]), None, "data.X cannot be read at its example 2: OSError: the disk is gone. The examples after it"),
    ],
)
def test_shard_that_cannot_be_read_raises_each_time(stream, count, text):
    found = cursor(stream, count=count)
    for _ in range(2):
        with pytest.raises(StreamReadError, match=f"^{re.escape(text)}") as error:
            found.fetch(4)
        assert error.value.kind == "DataError"


def test_pickled_reader_opens_the_shards_at_its_marks_again():
    reader = StreamReader(Numbers(), counts=None, window=1, keep=4, name="data.X")
    reader.seek({1: (50, 50)})
    assert reader.fetch(1, 50) == 150
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.marks(np.array([60, 60])) == {}
    assert (copy.fetch(1, 51), copy.marks(np.array([60, 52]))) == (151, {1: (52, 52)})


class Numbers(BaseStream):
    shards = 2

    def open(self, shard, position):
        yield from ((100 * shard + number, number + 1) for number in range(position or 0, 99))


class Opened(Numbers):
    """Keeps the positions at which its shards were opened."""

    def __init__(self):
        self.opened = []

    def open(self, shard, position):
        self.opened.append(position)
        return super().open(shard, position)
