import numpy as np
import pytest

from engine.base.errors import ConfigError, DataError
from engine.datasets.given import data_section, given_source, is_stream_source, sample_indices
from tests.data.streams.counting import Counting
from tests.datasets.scans import Scans

TARGET = f"{Scans.__module__}.Scans"


def test_sections_and_sources_are_accepted():
    source = Scans(5)
    assert given_source(source) == (source, "stop")
    assert given_source(source, "skip") == (source, "skip")
    found, on_error = given_source({"target": TARGET, "count": 7, "limit": 3, "on_error": "skip"})
    assert (len(found), on_error) == (3, "skip")
    assert given_source({"target": TARGET, "on_error": "skip"}, "stop")[1] == "stop"
    assert len(given_source(data_section([f"data.target={TARGET}", "data.count=4"]))[0]) == 4


def test_streams_and_iterables_are_accepted_and_counted():
    for data, count in ((Counting([3, 2]), 5), (Counting([3, 2], known=False), 5), (set("abc"), 3), (numbers, 7)):
        source, on_error = given_source(data)
        assert (len(source), on_error) == (count, "stop")
        assert is_stream_source(source) and sample_indices(source, 2) == [0, 1]
    assert not is_stream_source(Scans(5)) and sample_indices(Scans(5), 2) == [0, 4]


def numbers():
    yield from ({"x": np.int32(n)} for n in range(7))


def test_wrong_sections_are_one_sentence():
    with pytest.raises(ConfigError, match=r"data.cout: tests.datasets.scans.Scans takes no such argument"):
        given_source({"target": TARGET, "cout": 7})
    with pytest.raises(ConfigError, match=r"data.target: is empty"):
        data_section(["data.limit=3"])
    with pytest.raises(ConfigError, match="on_error = 'ignore': allowed are stop and skip"):
        given_source(Scans(), "ignore")
    with pytest.raises(DataError, match="data: found a list_iterator, which can be read only once"):
        given_source(iter([1]))  # pyright: ignore[reportArgumentType]
