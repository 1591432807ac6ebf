import numpy as np
import pytest

from engine.base.errors import DataError
from engine.config.schema import Data
from engine.data.adapt import AdaptedStream, as_source, build_source, check_readable, descriptions, limit_source
from engine.data.source import ArraySource, BaseSource
from engine.data.streams.source import StreamSource
from engine.data.streams.stream import BaseStream


class Shards:
    """The least stream that a user writes."""

    shards = 2

    def open(self, shard, position):
        for number in range(position or 0, 3):
            yield 10 * shard + number, number + 1


class Full(Shards):
    def decode(self, item):
        return {"x": np.float32(item)}

    def counts(self):
        return [3, 3]

    def fingerprint(self):
        return "two shards"

    def transform(self, example, rng):
        return example


def numbers():
    yield from ({"x": np.float32(number)} for number in range(4))


def make():
    return ArraySource({"x": np.arange(5)})


def test_stream_with_two_members_gets_the_defaults_of_the_others():
    stream = AdaptedStream(Shards())
    assert isinstance(stream, BaseStream) and stream.shards == 2
    assert (stream.decode(7), stream.counts(), stream.fingerprint(), stream.transform) == (7, None, None, None)


def test_members_that_a_stream_has_are_used():
    source = as_source(Full(), "data", window=1)
    assert isinstance(source, StreamSource) and len(source) == 6 and source.has_transform
    assert source[0] == {"x": 0} and source.fingerprint() == "two shards; 2 shards [3, 3]"


def test_everything_that_can_be_read_becomes_a_source():
    for found in (make(), [{"x": 1}] * 3, Full(), numbers):
        check_readable(found, "data")
        assert isinstance(as_source(found, "data"), BaseSource)
    with pytest.raises(DataError, match="data: found None, allowed is a source"):
        check_readable(None, "data")


def test_limit_of_a_section_applies_to_what_it_builds_and_to_what_is_given():
    section = Data(target=f"{__name__}.make", limit=2)
    assert len(build_source(section, "data")) == len(limit_source([{"x": 1}] * 3, section, "data")) == 2


def test_each_stream_has_a_description():
    assert descriptions({"data": make()}) == []
    [text] = descriptions({"data": as_source(numbers, "data")})
    assert text.startswith(
        f"data: {__name__}.numbers can only be iterated, so it is read as a stream of unknown length"
    )
