import json
from typing import Any

import numpy as np
import pytest

import engine
from engine.base.errors import DataError
from engine.readers.array_record import ArrayRecordSource
from engine.sequences.frame_index import read_index


class Log:
    """Frames that count how often they are read."""

    def __init__(self, drives=("b", "b", "a", "b"), times=(0.0, 1.0, 0.5, 2.0)):
        self.drives, self.times, self.reads, self.content = drives, times, 0, "log"

    def __len__(self):
        return len(self.drives)

    def __getitem__(self, index):
        self.reads += 1
        return {"drive": self.drives[index], "ego": {"time": np.float64(self.times[index])}}

    def fingerprint(self):
        return self.content


def drive(frame):
    return frame["drive"].upper()


def read(log, group: Any = "drive", order: Any = "ego/time", cache=None):
    from engine.data.source_adapter import indexed

    return read_index(indexed(log, "source"), group, order, cache, "Sequences")


@pytest.mark.parametrize("group", ["drive", drive, "tests.sequences.frame_index_test.drive", [7, 7, 3, 7]])
def test_groups_are_numbered_as_they_begin(group):
    found = read(Log(), group)
    assert found.groups.tolist() == [0, 0, 1, 0] and found.times.tolist() == [0, 1, 0.5, 2]
    assert [name.lower() for name in found.names] == (["7", "3"] if isinstance(group, list) else ["b", "a"])


def test_arrays_and_files_need_no_examples(tmp_path):
    log = Log()
    np.save(tmp_path / "times.npy", np.arange(4))
    assert read(log, np.array(["x", "y", "x", "y"]), str(tmp_path / "times.npy")).groups.tolist() == [0, 1, 0, 1]
    assert log.reads == 0
    frames = engine.ArraySource({"drive": np.array([5, 5]), "time": np.array([0, 1], np.uint8)})
    assert read(frames, order="time").times.tolist() == [0, 1]


def test_times_of_few_bits_increase_without_an_overflow():
    times = np.array([-100, -50, 100, 120], np.int8)
    found = engine.Sequences(Log(("a",) * 4), order=times, length=4, max_gap=150)
    assert found.windows.frames.tolist() == [0, 1, 2, 3] and len(found) == 1


def test_a_cache_is_read_until_the_source_or_a_function_changes(tmp_path):
    log, cache = Log(), str(tmp_path / "index")
    first = read(log, cache=cache)
    again = read(log, cache=cache)
    assert log.reads == 4 and again.names == first.names and again.groups.tolist() == first.groups.tolist()
    assert read(log, drive, cache=cache).names == ("B", "A") and log.reads == 8
    log.content = "another"
    read(log, drive, cache=cache)
    assert log.reads == 12


def test_a_cache_is_not_used_for_other_values_of_an_array_or_a_file(tmp_path):
    file = str(tmp_path / "groups.npy")
    size = 2000  # of such an array, NumPy prints the first and the last values only
    log = Log(("a",) * size, range(size))
    first, second = np.zeros(size, int), np.zeros(size, int)
    second[900:1000] = 1
    for name, column in (("array", lambda x: x), ("text", lambda x: x.astype(str).astype(object)), ("file", None)):
        for groups in (first, second):
            np.save(file, groups)
            found = read(log, file if column is None else column(groups), cache=str(tmp_path / name))
            assert found.groups.tolist() == groups.tolist(), name


def test_a_damaged_cache_is_set_aside(tmp_path, capfd):
    log, cache = Log(), tmp_path / "index"
    read(log, cache=str(cache))
    cache.write_bytes(cache.read_bytes()[:-9] + b"damaged..")
    assert read(log, cache=str(cache)).names == ("b", "a") and log.reads == 8
    assert "index of groups and times" in capfd.readouterr().err


def test_a_written_dataset_has_its_index_beside_it(tmp_path):
    out = tmp_path / "log.arrayrecord"
    engine.write_dataset(Log(), out, shards=2, processes=1)
    source = ArrayRecordSource(str(out))
    found = read(source)
    assert (tmp_path / "log.arrayrecord.sequences").exists() and found.names == ("b", "a")
    assert len(ArrayRecordSource(str(tmp_path / "log*"))) == 4  # the index is not taken for a shard
    json.loads((tmp_path / "log.arrayrecord.manifest.json").read_text())
    object.__setattr__(source, "_decode", None)  # no record can be read any more
    assert read(source).groups.tolist() == found.groups.tolist()
    engine.write_dataset(Log(drives=("c", "c", "c", "c")), out, shards=2, processes=1, overwrite=True)
    assert read(ArrayRecordSource(str(out))).names == ("c",)


@pytest.mark.parametrize(
    ("log", "settings", "text"),
    [
        (Log((), ()), {}, r"frame_index_test\.Log has no examples"),
        (
            Log(),
            {"group": "rive"},
            r"group = 'rive': example 0 of .*Log has no such entry, only drive, ego/time\. Name",
        ),
        (Log(times=(0, 1, np.nan, 3)), {}, r"order: example 2 of .*Log has .*nan.*\. A time is a finite number"),
        (Log(), {"order": "drive"}, r"order: example 0 of .*Log has .*'b'.*\. A time is a finite number"),
        (Log(), {"group": "ego/time"}, r"group: found float64 in .*Log\. A group is an integer or text"),
        (Log((["a"], "b", "c", "d")), {}, r"group: example 0 of .*Log gives \['a'\], not one number or text"),
        (Log(), {"group": [1, 2]}, r"group: found \[2\] values, but .*Log has 4 examples"),
        (Log(("a", 3, "b", "c")), {"group": drive}, r"example 1 of .*Log: AttributeError"),
    ],
)
def test_bad_groups_and_times_are_one_sentence(log, settings, text):
    with pytest.raises(DataError, match=f"^Sequences.*{text}"):
        read(log, **settings)


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"^Sequences: the cache .* cannot be written: .* Choose another path"):
        read(Log(), cache=str(tmp_path / "file" / "index"))
