import os
import pickle

import numpy as np
import pytest
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from engine.config.errors import DataError
from engine.data.array_record import ArrayRecordSource, write_array_record
from engine.data.batches import Batches
from engine.data.source import ArraySource, example_spec, fingerprint


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


def test_what_was_written_is_read_back(path):
    source = make()
    assert write_array_record(source, path) == 10
    found = ArrayRecordSource(path)
    assert len(found) == 10
    for index in (0, 3, 9):
        one, two = found[index], source[index]
        assert one["image"].tolist() == two["image"].tolist()
        assert one["track"][0]["xy"].tolist() == two["track"][0]["xy"].tolist()
        assert one["track"][0]["valid"].dtype == np.bool_
        assert one["time"] == two["time"]
        assert one["time"].dtype == np.int64


def test_take_reads_a_batch(path):
    source = make()
    write_array_record(source, path)
    indices = np.array([7, 0, 7])
    one, two = ArrayRecordSource(path).take(indices), source.take(indices)
    assert one["track"][0]["xy"].tolist() == two["track"][0]["xy"].tolist()
    assert one["time"].tolist() == two["time"].tolist()


def test_what_is_read_may_be_written_to(path):
    write_array_record(make(), path)
    source = ArrayRecordSource(path)
    source[0]["image"][:] = 0
    source.take(np.array([0]))["image"][:] = 0
    assert source[0]["image"].any()


def test_files_of_a_pattern_follow_each_other_by_name(path):
    for name, first in (("b", 10), ("a", 0)):
        write_array_record(make(10, first), path.replace("train", name))
    source = ArrayRecordSource(path.replace("train", "*"))
    assert [int(source[i]["time"]) - 2**40 for i in (0, 9, 10, 19)] == [0, 9, 10, 19]
    assert (source.take(np.array([15, 2]))["time"] - 2**40).tolist() == [15, 2]


def test_a_file_feeds_batches_also_from_a_copy_in_another_process(path):
    arrays = {"label": np.arange(10, dtype=np.int32)}
    write_array_record(ArraySource(arrays), path)
    memory = Batches(ArraySource(arrays), 4, 0, True)
    disk = pickle.loads(pickle.dumps(Batches(ArrayRecordSource(path), 4, 0, True)))
    assert [disk[n].examples["label"].tolist() for n in range(9)] == [
        memory[n].examples["label"].tolist() for n in range(9)
    ]
    assert example_spec(ArrayRecordSource(path))["label"].dtype == np.int32


def test_a_fingerprint_follows_files_and_content_not_their_folder(path, tmp_path):
    write_array_record(make(10), path)
    first = fingerprint(ArrayRecordSource(path))
    elsewhere = str(tmp_path / "train.arrayrecord")
    write_array_record(make(10), elsewhere)
    assert fingerprint(ArrayRecordSource(elsewhere)) == first
    write_array_record(make(10, 1), elsewhere)
    assert fingerprint(ArrayRecordSource(elsewhere)) != first


def test_paths_in_a_list_are_read_in_its_order(tmp_path):
    paths = [str(tmp_path / f"{name}.arrayrecord") for name in "ab"]
    for first, path in enumerate(paths):
        write_array_record(make(3, 10 * first), path)

    def times(source):
        return [source[i]["time"] - 2**40 for i in range(len(source))]

    forwards, backwards = ArrayRecordSource(paths), ArrayRecordSource(paths[::-1])
    assert times(forwards) == times(ArrayRecordSource(str(tmp_path / "*.arrayrecord"))) == [0, 1, 2, 10, 11, 12]
    assert times(backwards) == [10, 11, 12, 0, 1, 2]
    assert fingerprint(forwards) != fingerprint(backwards)
    with pytest.raises(DataError, match=r"c\.arrayrecord: no such file"):
        ArrayRecordSource([*paths, str(tmp_path / "c.arrayrecord")])
    with pytest.raises(DataError, match="an empty list of paths"):
        ArrayRecordSource([])


def test_progress_is_told(path):
    told = []
    write_array_record(make(3), path, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_file_appears_only_when_it_is_whole(path):
    class Broken:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"x": np.zeros(2)} if index < 2 else {"x": "text"}

    with pytest.raises(DataError, match=r"example 2 of .*Broken/x has dtype <U4"):
        write_array_record(Broken(), path)
    assert os.listdir(os.path.dirname(path)) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written: .*Choose another path"):
        write_array_record(make(1), str(tmp_path / "file" / "x.arrayrecord"))


def test_a_pattern_without_files_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"none-\*: no such file. Write it with `convoy data write`"):
        ArrayRecordSource(str(tmp_path / "none-*"))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.arrayrecord").write_bytes(b"not a record" * 100)
    with pytest.raises(DataError, match="no ArrayRecord file"):
        ArrayRecordSource(str(tmp_path / "x.arrayrecord"))


def test_a_record_of_another_kind_is_named(tmp_path):
    path = str(tmp_path / "x.arrayrecord")
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    writer.write(b"\x80\x04K\x01.")
    writer.close()
    with pytest.raises(DataError, match=r"record 0 of .*x.arrayrecord: This record was not written by convoy"):
        ArrayRecordSource(path)[0]
