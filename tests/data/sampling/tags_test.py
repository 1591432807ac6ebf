import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from engine.base.errors import ConfigError, DataError
from engine.data.ragged import fields as ragged
from engine.data.sampling.tags import Tags, find_tags
from engine.data.source import ArraySource, BaseSource
from tests import damages

CITIES = ["oslo", "bonn", "oslo", "rome"]
SEVERAL = [["bus"], [], ["bus", "tram"], ["tram"]]


class Scenes(BaseSource):
    """Four scenes, which count how often they are read."""

    def __init__(self):
        self.reads, self.name = 0, "scenes"

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.reads += 1
        return {"city": CITIES[index], "x": np.zeros(2), "scene": {"kind": index % 2}}

    def fingerprint(self):
        return self.name


def objects(example):
    return SEVERAL[CITIES.index(example["city"])]


def several(example):
    return set(objects(example))


def found(tags, source=None, cache=None) -> Tags:
    return find_tags(source or Scenes(), tags, cache, "Weighted")


def per_example(tags: Tags) -> list[list[str]]:
    """Returns the names of the tags of each example."""
    rows = [tags.counts(np.array([index])) for index in range(len(tags))]
    return [[name for name, count in zip(tags.names, row, strict=True) if count] for row in rows]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (np.array([3, 1, 3, -1]), ["3", "1", "3", "-1"]),
        (CITIES, CITIES),
        (np.array(CITIES), CITIES),
        (np.array([b"a", b"b", b"a", b"a"]), ["a", "b", "a", "a"]),
        ([True, False, True, True], ["True", "False", "True", "True"]),
        ("city", CITIES),
        ("scene/kind", ["0", "1", "0", "1"]),
        (lambda example: example["city"][0], ["o", "b", "o", "r"]),
    ],
)
def test_one_tag_for_each_example(tags, expected):
    tags = found(tags)
    assert (tags.ends, per_example(tags)) == (None, [[tag] for tag in expected])
    assert tags.sizes.tolist() == [expected.count(name) for name in tags.names]


@pytest.mark.parametrize("tags", [SEVERAL, "tests.data.sampling.tags_test.several", lambda example: several(example)])
def test_several_tags_for_each_example(tags):
    if tags is not SEVERAL:
        rows = per_example(found(tags))
        assert rows == [SEVERAL[CITIES.index(city)] for city in CITIES]
        return
    tags = found(tags)
    assert (tags.names, per_example(tags)) == (("bus", "tram"), SEVERAL)
    assert tags.counts(np.array([2, 0, 2, 1])).tolist() == [3, 2]
    assert tags.largest(np.array([5.0, 0.5])).tolist() == [5, 1, 5, 0.5], "1 for an example without tags"
    assert per_example(tags.limited(3)) == SEVERAL[:3]
    assert tags.limited(3).sizes.tolist() == [2, 1]


def test_tags_come_from_files_without_reading_an_example(tmp_path):
    matrix = np.array([[1, 0], [0, 0], [1, 1], [0, 1]], bool)
    np.save(tmp_path / "cities.npy", np.array(CITIES))
    np.savez(tmp_path / "numbers.npz", tags=np.array([1, 0, 1, 2]), names=np.array(["bonn", "oslo", "rome"]))
    np.savez(tmp_path / "matrix.npz", found=matrix, names=np.array(["bus", "tram"]))
    table = pa.table({"tags": SEVERAL, "city": CITIES})
    pyarrow.parquet.write_table(table, tmp_path / "several.parquet")
    pyarrow.parquet.write_table(table.select(["city"]), tmp_path / "cities.parquet")
    source = Scenes()
    for name in ("cities.npy", "numbers.npz", "cities.parquet"):
        assert per_example(found(str(tmp_path / name), source)) == [[city] for city in CITIES], name
    for name in ("matrix.npz", "several.parquet"):
        assert per_example(found(str(tmp_path / name), source)) == SEVERAL, name
    assert per_example(found(matrix, source)) == [["0"], [], ["0", "1"], ["1"]]
    assert source.reads == 0


def test_entry_of_an_array_source_and_method_of_a_source_read_no_example():
    class Unread(ArraySource):
        def __getitem__(self, index):
            raise AssertionError

        def tags(self):
            return CITIES

    source = Unread({"label": np.array([2, 2, 1, 1])})
    assert per_example(found("label", source)) == [["2"], ["2"], ["1"], ["1"]]
    assert per_example(found(None, source)) == [[city] for city in CITIES]


@pytest.mark.parametrize("tags", ["city", "tests.data.sampling.tags_test.several"])
def test_cache_saves_later_starts_the_reading_until_source_or_function_change(tags, tmp_path):
    cache, source = str(tmp_path / "tags.npz"), Scenes()
    first = found(tags, source, cache)
    again = found(tags, source, cache)
    assert source.reads == 4
    assert (again.digest(), per_example(again)) == (first.digest(), per_example(first))
    assert per_example(found("scene/kind", source, cache))[1] == ["1"]
    assert source.reads == 8
    source.name = "other scenes"
    found("scene/kind", source, cache)
    assert source.reads == 12


@pytest.mark.parametrize("damage", damages.ALL)
def test_damaged_cache_is_named_and_the_tags_are_read_again(damage, tmp_path, capsys):
    cache = tmp_path / "tags.cache"
    found("city", cache=str(cache))
    damage(cache)
    source = Scenes()
    assert per_example(found("city", source, str(cache))) == [[city] for city in CITIES]
    assert capsys.readouterr().err.count(f"warning: {cache}: damaged cache of tags, which are read again: ") == 1
    assert per_example(found("city", Scenes(), str(cache))) == [[city] for city in CITIES]
    assert "damaged" not in capsys.readouterr().err


def test_processes_with_the_same_id_may_write_one_cache(tmp_path, monkeypatch):
    cache, rename = str(tmp_path / "tags.npz"), os.replace

    def late_rename(*paths):
        monkeypatch.setattr(os, "replace", rename)
        found("city", cache=cache)  # the other process is faster
        rename(*paths)

    monkeypatch.setattr(os, "replace", late_rename)
    found("city", cache=cache)
    source = Scenes()
    assert per_example(found("city", source, cache)) == [[city] for city in CITIES]
    assert (source.reads, os.listdir(tmp_path)) == (0, ["tags.npz"])


def test_reading_tags_prints_progress(monkeypatch, capsys):
    monkeypatch.setattr(ragged, "REPORT_S", 0.0)
    found("city")
    assert (
        "reading the tags of tests.data.sampling.tags_test.Scenes: 2 of 4. With tags=, an array or a"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        (
            None,
            r"Weighted: tags: tests.data.sampling.tags_test.Scenes has no method tags\(\). Pass tags=, one for each",
        ),
        (CITIES[:3], "Weighted: tags: found tags of 3 examples, but tests.data.sampling.tags_test.Scenes has 4."),
        ([0.5, 1, 2, 3], r"Weighted: tags: found float64\[4\]. Allowed are integers, bools or text, one for each exam"),
        (np.zeros((4, 2)), r"Weighted: tags: found float64\[4, 2\]. Allowed are"),
        ("town", "tags: example 0 of .*Scenes: DataError: the example has no entry 'town'; it has city, scene/kind, x"),
        (lambda example: 1 / 0, "tags: example 0 of .*Scenes: ZeroDivisionError: division by zero."),
        ("nowhere.npz", "tags: nowhere.npz cannot be read: FileNotFoundError"),
    ],
)
def test_invalid_tags_raise_data_error(tags, text):
    with pytest.raises(DataError, match=text):
        found(tags)


def test_invalid_files_raise_data_error(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.arange(4), b=np.arange(4))
    np.savez(tmp_path / "names.npz", tags=np.arange(4), names=np.array(["a"]))
    with pytest.raises(DataError, match=r"two.npz has a, b. Name one of them `tags`."):
        found(str(tmp_path / "two.npz"))
    with pytest.raises(DataError, match=r"with `names`, tags are numbers from 0 to 0."):
        found(str(tmp_path / "names.npz"))
    with pytest.raises(DataError, match=r"the cache .* cannot be written: .* Choose another path."):
        found("city", cache=str(tmp_path / "missing" / "cache.npz"))


def test_missing_function_is_a_config_error():
    with pytest.raises(ConfigError, match=r"tests.data.sampling.tags_test has no 'absent'"):
        found("tests.data.sampling.tags_test.absent")
