import functools

from engine.data.streams.stream import IterableStream, is_iterable_only, is_stream
from tests.data.streams.counting import Counting


def test_iterable_is_a_stream_of_one_shard_whose_position_is_a_number_of_examples():
    stream = IterableStream(functools.partial(iter, "abcd"), {1, 2, 3, 4})
    assert (stream.shards, stream.counts()) == (1, [4])
    assert list(stream.open(0, None)) == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    assert list(stream.open(0, 2)) == [("c", 3), ("d", 4)]
    assert IterableStream(lambda: "abcd", None).counts() is None


class NoLength:
    def __iter__(self):
        return iter("abcd")

    def __len__(self):
        raise TypeError("object of type 'Endless' has no len()")


def test_iterable_whose_length_raises_a_type_error_has_an_unknown_length():
    assert IterableStream(lambda: "abcd", NoLength()).counts() is None


def test_only_objects_without_random_access_are_iterated():
    assert is_iterable_only(iter([])) and is_iterable_only({1, 2})
    assert not any(map(is_iterable_only, ([], "text", {}, dict, 3, None)))


def test_stream_has_shards_and_open():
    assert is_stream(Counting([1])) and not is_stream(Counting) and not is_stream([1])
