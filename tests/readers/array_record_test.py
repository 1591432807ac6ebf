import os
import pickle

import numpy as np
import pytest
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from engine.base.errors import DataError
from engine.data.batches import Batches
from engine.data.source import ArraySource, example_spec
from engine.readers.array_record import ArrayRecordSource, write_array_record


def make(n=10, first=0):
    rng = np.random.default_rng(first)
    return ArraySource(
        {
            "image": rng.integers(0, 256, (n, 3, 4)).astype(np.uint8),
            "track": [{"xy": rng.normal(size=(n, 5, 2)).astype(np.float32), "valid": rng.random((n, 5)) < 0.5}],
            "time": first + np.arange(n, dtype=np.int64) + 2**40,
        }
    )


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "data" / "train.arrayrecord")


def test_reading_returns_the_written_examples(path):
    source = make()
    assert write_array_record(source, path) == 10
    found = ArrayRecordSource(path)
    assert len(found) == 10
    for index in (0, 3, 9):
        actual, expected = found[index], source[index]
        assert actual["image"].tolist() == expected["image"].tolist()
        assert actual["track"][0]["xy"].tolist() == expected["track"][0]["xy"].tolist()
        assert actual["track"][0]["valid"].dtype == np.bool_
        assert actual["time"] == expected["time"]
        assert actual["time"].dtype == np.int64


def test_take_stacks_the_examples_of_a_batch(path):
    source = make()
    write_array_record(source, path)
    indices = np.array([7, 0, 7])
    actual, expected = ArrayRecordSource(path).take(indices), source.take(indices)
    assert actual["track"][0]["xy"].tolist() == expected["track"][0]["xy"].tolist()
    assert actual["time"].tolist() == expected["time"].tolist()


def test_modifying_an_example_does_not_change_the_source(path):
    write_array_record(make(), path)
    source = ArrayRecordSource(path)
    source[0]["image"][:] = 0
    source.take(np.array([0]))["image"][:] = 0
    assert source[0]["image"].any()


def test_files_that_match_a_wildcard_are_sorted_by_name(path):
    for name, first in (("b", 10), ("a", 0)):
        write_array_record(make(10, first), path.replace("train", name))
    source = ArrayRecordSource(path.replace("train", "*"))
    assert [int(source[i]["time"]) - 2**40 for i in (0, 9, 10, 19)] == [0, 9, 10, 19]
    assert (source.take(np.array([15, 2]))["time"] - 2**40).tolist() == [15, 2]


def test_pickled_batches_of_a_file_equal_batches_of_its_arrays(path):
    arrays = {"label": np.arange(10, dtype=np.int32)}
    write_array_record(ArraySource(arrays), path)
    memory = Batches(ArraySource(arrays), 4, 0, True)
    disk = pickle.loads(pickle.dumps(Batches(ArrayRecordSource(path), 4, 0, True)))
    assert [disk[n].examples["label"].tolist() for n in range(9)] == [
        memory[n].examples["label"].tolist() for n in range(9)
    ]
    assert example_spec(ArrayRecordSource(path))["label"].dtype == np.int32


def test_fingerprint_depends_on_content_and_not_on_folder(path, tmp_path):
    write_array_record(make(10), path)
    first = ArrayRecordSource(path).fingerprint()
    elsewhere = str(tmp_path / "train.arrayrecord")
    write_array_record(make(10), elsewhere)
    assert ArrayRecordSource(elsewhere).fingerprint() == first
    write_array_record(make(10, 1), elsewhere)
    assert ArrayRecordSource(elsewhere).fingerprint() != first


def test_list_of_paths_is_read_in_list_order(tmp_path):
    paths = [str(tmp_path / f"{name}.arrayrecord") for name in "ab"]
    for first, path in enumerate(paths):
        write_array_record(make(3, 10 * first), path)

    def times(source):
        return [source[i]["time"] - 2**40 for i in range(len(source))]

    forwards, backwards = ArrayRecordSource(paths), ArrayRecordSource(paths[::-1])
    assert times(forwards) == times(ArrayRecordSource(str(tmp_path / "*.arrayrecord"))) == [0, 1, 2, 10, 11, 12]
    assert times(backwards) == [10, 11, 12, 0, 1, 2]
    assert forwards.fingerprint() != backwards.fingerprint()
    with pytest.raises(DataError, match=r"c\.arrayrecord: no such file"):
        ArrayRecordSource([*paths, str(tmp_path / "c.arrayrecord")])
    with pytest.raises(DataError, match="The list of paths is empty"):
        ArrayRecordSource([])


def test_write_calls_progress_after_each_example(path):
    calls = []
    write_array_record(make(3), path, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_failed_write_leaves_no_file(path):
    class Broken:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"x": np.zeros(2)} if index < 2 else {"x": np.datetime64("2020")}

    with pytest.raises(DataError, match=r"example 2 of .*Broken/x has dtype datetime64"):
        write_array_record(Broken(), path)
    assert os.listdir(os.path.dirname(path)) == []


def test_unwritable_folder_raises_data_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written: .*Choose another path"):
        write_array_record(make(1), str(tmp_path / "file" / "x.arrayrecord"))


def test_existing_leading_part_of_a_pattern_is_literal(tmp_path):
    for folder, size in (("a[1]", 3), ("a1", 4), ("b", 5)):
        for name in ("x[2].rec", "x2.rec"):
            write_array_record(make(size), str(tmp_path / folder / name))

    def found(pattern):
        return [os.path.relpath(path, tmp_path) for path in ArrayRecordSource(str(tmp_path / pattern)).paths]

    assert found("a[1]/x[2].rec") == ["a[1]/x[2].rec"]
    assert found("a[1]/x*.rec") == ["a[1]/x2.rec", "a[1]/x[2].rec"]
    assert found("a[[]1]/*2.rec") == ["a[1]/x2.rec"]
    assert found("[ab]/x[2].rec") == ["b/x2.rec"]
    assert found("a[12]/x[[]*") == ["a1/x[2].rec"]


@pytest.mark.parametrize("name", ["x.rec[0:3]", "\udcff.rec"])
def test_name_that_the_library_cannot_open_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="an ArrayRecord file must have a path in UTF-8 that does not end like"):
        write_array_record(make(), str(tmp_path / name))
    (tmp_path / name).touch()
    with pytest.raises(DataError, match="an ArrayRecord file must have a path in UTF-8 that does not end like"):
        ArrayRecordSource(str(tmp_path / "*"))


def test_pattern_without_match_raises_data_error(tmp_path):
    with pytest.raises(DataError, match=r"none-\*: no such file. Write it with `convoy data write`"):
        ArrayRecordSource(str(tmp_path / "none-*"))


def test_opening_a_file_of_another_format_raises_data_error(tmp_path):
    (tmp_path / "x.arrayrecord").write_bytes(b"not a record" * 100)
    with pytest.raises(DataError, match="not an ArrayRecord file"):
        ArrayRecordSource(str(tmp_path / "x.arrayrecord"))


def test_error_for_a_foreign_record_names_file_and_index(tmp_path):
    path = str(tmp_path / "x.arrayrecord")
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    writer.write(b"\x80\x04K\x01.")
    writer.close()
    with pytest.raises(DataError, match=r"record 0 of .*x.arrayrecord: This record was not written by convoy"):
        ArrayRecordSource(path)[0]
