import gzip
import json
import pickle
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from engine.base.errors import ConfigError, DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches
from engine.data.reader import read
from engine.readers import TFExample, TFRecord
from tests.readers.wire_format import example, write_tf_record

FIXTURES = Path(__file__).parent / "fixtures"
FEATURES = {
    "label": "int64",
    "ids": ("int64", [None]),
    "points": ("float32", [None, 3]),
    "scale": "float32",
    "name": "str",
    "image": ("uint8", [12]),
    "tags": ("str", [None]),
    "note": ("str", [], "none"),
}


def first_byte(record: bytes) -> dict:
    return {"first": np.uint8(record[0]), "size": np.int32(len(record))}


@pytest.fixture
def labels(tmp_path):
    """A file of 40 small records."""
    return write_tf_record(tmp_path / "labels.tfrecord", (example(label=[i], x=[i / 2, 1.0]) for i in range(40)))


@pytest.fixture
def fixture_file(tmp_path):
    return str(shutil.copy(FIXTURES / "examples.tfrecord", tmp_path))


def test_file_of_tensorflow_is_read_as_tensorflow_reads_it(fixture_file):
    source = TFRecord(fixture_file, TFExample(FEATURES))
    golden = json.loads((FIXTURES / "examples.json").read_text())
    assert len(source) == len(golden)
    for i, expected in enumerate(golden):
        found = source[i]
        assert found["points"].shape[1:] == (3,)
        assert {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()
        } == expected


def test_features_are_inferred_from_the_first_records(fixture_file):
    source = TFRecord(fixture_file)
    found = source[2]
    assert found["label"].shape == () and found["label"] == 2 and found["label"].dtype == np.int64
    assert found["points"].shape == (6,) and found["points"].dtype == np.float32
    assert found["name"] == "scene-2-é".encode()
    assert found["note"].tolist() == [b"seen"]
    assert source[0]["note"].shape == (0,)  # a missing feature has no values


def test_records_of_several_files_follow_each_other(tmp_path):
    for name, first in (("b", 5), ("a", 0)):
        write_tf_record(tmp_path / name, (example(label=[i]) for i in range(first, first + 5)))
    source = TFRecord(f"{tmp_path}/*")
    assert [int(source[i]["label"]) for i in range(10)] == list(range(10))
    assert source.paths == [str(tmp_path / "a"), str(tmp_path / "b")]
    again = TFRecord(f"{tmp_path}/*")  # the saved indexes are no files of the dataset
    assert len(again) == 10
    with pytest.raises(IndexError):
        source[10]


def test_pickled_source_resumes_with_the_same_batches(labels):
    source = TFRecord(str(labels))
    batches = Batches(source, 4, 7, True)
    resumed = read(
        Batches(pickle.loads(pickle.dumps(source)), 4, 7, True), range(13, 20), threads=2, workers=0, prefetch=4
    )
    assert [batch.examples["label"].tolist() for batch in resumed] == [
        batches[n].examples["label"].tolist() for n in range(13, 20)
    ]
    resumed.close()


def test_own_function_decodes_records(labels):
    for decoder in (first_byte, "tests.readers.tf_record_test.first_byte"):
        assert TFRecord(str(labels), decoder)[3]["first"] == 10
    with pytest.raises(ConfigError, match=r"no module 'tests.readers.nothing'|has no 'nothing'"):
        TFRecord(str(labels), "tests.readers.nothing.decode")


def test_damaged_data_is_one_bad_record(labels):
    stored = bytearray(labels.read_bytes())
    source = TFRecord(str(labels))
    damaged = int(source._offsets[17]) + 9
    stored[damaged] ^= 1
    labels.write_bytes(stored)
    source = TFRecord(str(labels), TFExample({"label": "int32"}))
    assert int(source[16]["label"]) == 16
    with pytest.raises(DataError, match=r"record 17 of .*labels.tfrecord: its data does not match its checksum"):
        source[17]
    batches = TolerantBatches(Batches(source, 40, 0, False))
    found = batches[0]
    assert [bad.address for bad in found.bad] == [17]
    assert found.batch.weight.sum() == 39


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_incomplete_file_loses_its_last_record_only(labels, cut):
    labels.write_bytes(labels.read_bytes()[:-cut])
    source = TFRecord(str(labels))
    assert len(source) == 40
    assert [int(source[i]["label"]) for i in range(39)] == list(range(39))
    with pytest.raises(DataError, match=r"record 39 of .*labels.tfrecord, at byte \d+: the file ends within this"):
        source[39]


def test_damaged_length_makes_the_rest_of_the_file_one_bad_record(labels):
    stored = bytearray(labels.read_bytes())
    stored[int(TFRecord(str(labels))._offsets[20]) - 12] ^= 1
    labels.write_bytes(stored)
    source = TFRecord(str(labels))
    assert len(source) == 21
    with pytest.raises(DataError, match=r"record 20 of .*: its length does not match the checksum of the length"):
        source[20]


def test_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "x.tfrecord"
    for data in (b"\x1f\x8b" + bytes(50), b"not a record" * 100):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"does not match the checksum of.*Check that .* is a TFRecord file"):
            TFRecord(str(path))
    with pytest.raises(DataError, match=r"y.tfrecord: no such file"):
        TFRecord(str(tmp_path / "y.tfrecord"))
    path.write_bytes(b"")
    assert len(TFRecord(str(path))) == 0


@pytest.mark.parametrize("module", [gzip, zlib])
def test_compressed_file_is_read_at_random(labels, tmp_path, module):
    packed = tmp_path / "packed.tfrecord"
    packed.write_bytes(module.compress(labels.read_bytes()))
    plain, source = TFRecord(str(labels)), TFRecord([str(packed), str(labels)])
    assert len(source) == 80
    assert [source[i]["label"] for i in (39, 0, 40)] == [39, 0, 0]
    assert [source.record(i) for i in range(40)] == [plain.record(i) for i in range(40)]
    assert [TFRecord(str(packed))[i]["label"] for i in (3, 1)] == [3, 1]
    assert pickle.loads(pickle.dumps(source))[5]["label"] == 5
    fingerprint = source.fingerprint()
    shutil.rmtree(tmp_path / ".convoy_index")
    assert TFRecord([str(packed), str(labels)]).fingerprint() == fingerprint
    next((tmp_path / ".convoy_index").glob("*.plain")).unlink()  # only the copy is lost
    assert TFRecord(str(packed))[7]["label"] == 7


@pytest.mark.parametrize("module", [gzip, zlib])
def test_damaged_end_of_a_compressed_file_is_a_bad_record(labels, tmp_path, module):
    packed = tmp_path / "packed.tfrecord"
    packed.write_bytes(module.compress(labels.read_bytes())[:-5])  # the data is complete, and its checksum is not
    source = TFRecord(str(packed))
    assert (len(source), source[39]["label"]) == (41, 39)
    with pytest.raises(
        DataError, match=r"record 40 of .*packed.tfrecord, at byte .*: the file ends within this record"
    ):
        source[40]
    records = b"".join(labels.read_bytes() for _ in range(3))
    packed.write_bytes(module.compress(records, 0)[: len(records) // 2])
    source = TFRecord(str(packed))
    assert 40 < len(source) < 80
    assert source[45]["label"] == 5
    with pytest.raises(DataError, match="the file ends within this record"):
        source[len(source) - 1]


def test_empty_compressed_file_has_no_records(labels, tmp_path):
    (tmp_path / "b.tfrecord").write_bytes(gzip.compress(b""))
    assert len(TFRecord([str(labels), str(tmp_path / "b.tfrecord")])) == 40


def test_first_record_whose_length_looks_like_gzip_is_read(tmp_path):
    path = write_tf_record(tmp_path / "x.tfrecord", [bytes(0x8B1F)])
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    assert TFRecord(str(path), first_byte)[0]["size"] == 0x8B1F


def test_fingerprint_depends_on_content_and_decoder_and_not_on_folder(labels, tmp_path):
    first = TFRecord(str(labels)).fingerprint()
    (tmp_path / "copy").mkdir()
    copy = shutil.copy(labels, tmp_path / "copy")
    assert TFRecord(str(copy)).fingerprint() == first
    assert TFRecord(str(copy), TFExample({"label": "int8"})).fingerprint() != first
    write_tf_record(Path(copy), (example(label=[i], x=[i / 2, 1.0]) for i in range(1, 41)))
    assert TFRecord(str(copy)).fingerprint() != first


def test_missing_library_is_named_with_its_extra(labels, monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(DataError, match=r"TFRecord files need google-crc32c.*pip install .*\[tfrecord\]'"):
        TFRecord(str(labels))
