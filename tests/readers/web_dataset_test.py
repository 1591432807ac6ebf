import gzip
import hashlib
import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.bad_examples import TolerantBatches
from engine.data.batches import Batches
from engine.readers import WebDataset

FIXTURES = Path(__file__).parent / "fixtures"
FIELDS = ("png", "cls", "txt", "meta.json", "box.npy", "arrays.npz", "raw.bin")


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def labels(tmp_path):
    """A shard of 12 samples with the members cls and x.txt."""
    members = [(f"d/{i:02}.{suffix}", b"%d" % i) for i in range(12) for suffix in ("cls", "x.txt")]
    return write_tar(tmp_path / "labels.tar", members)


@pytest.fixture
def fixture_file(tmp_path):
    return str(shutil.copy(FIXTURES / "samples.tar", tmp_path))


def double(data):
    return np.int32(2 * int(data))


def test_shard_of_webdataset_is_read_as_webdataset_reads_it(fixture_file):
    source = WebDataset(fixture_file, FIELDS)
    golden = json.loads((FIXTURES / "samples.json").read_text())
    assert len(source) == len(golden)
    for i, expected in enumerate(golden):
        found = source[i]
        assert (found["__key__"], found["txt"]) == (expected["__key__"], expected["txt"])
        assert found["cls"] == expected["cls"] and found["cls"].shape == ()
        assert found["png"].tolist() == expected["png"] and found["png"].dtype == np.uint8
        meta = expected["meta.json"]
        assert {
            name: value if isinstance(value, str) else value.tolist() for name, value in found["meta.json"].items()
        } == meta
        assert found["box.npy"].tolist() == expected["box.npy"] and found["box.npy"].dtype == np.float32
        assert found["arrays.npz"]["a"].tolist() == expected["arrays.npz"]
        assert list(found["raw.bin"]) == expected["raw.bin"]


def test_members_are_those_of_the_first_sample_or_of_fields(labels):
    source = WebDataset(str(labels))
    assert source[3] == {"__key__": "d/03", "cls": 3, "x.txt": "3"}
    assert set(WebDataset(str(labels), ["cls"])[3]) == {"__key__", "cls"}
    for decoder in (double, "tests.readers.web_dataset_test.double"):
        assert WebDataset(str(labels), ["cls"], {"cls": decoder})[3]["cls"] == 6
    with pytest.raises(DataError, match=r"fields: no sample has a member 'clz'. Did you mean cls\? Found: cls, x.txt"):
        WebDataset(str(labels), ["clz"])
    with pytest.raises(DataError, match=r"decoders: no member 'clz' is read. Did you mean cls\?"):
        WebDataset(str(labels), decoders={"clz": double})


def test_members_that_some_samples_lack_have_a_value_or_no_entry(tmp_path, capfd):
    members = [("0.cls", b"0"), ("1.cls", b"1"), ("1.txt", b"one"), ("1.depth.npy", b""), ("2.cls", b"2")]
    path = str(write_tar(tmp_path / "x.tar", members))
    assert [sorted(WebDataset(path)[i]) for i in range(3)] == [["__key__", "cls"]] * 3
    assert "warning: members depth.npy, txt are not read, since the first sample has none" in capfd.readouterr().err
    source = pickle.loads(pickle.dumps(WebDataset(path, ["cls"], optional={"txt": ""})))
    assert [source[i]["txt"] for i in range(3)] == ["", "one", ""]
    assert "warning" not in capfd.readouterr().err
    missing = WebDataset(path, ["cls", "txt"], optional={"txt": None})
    assert ["txt" in missing[i] for i in range(3)] == [False, True, False]
    numbers = WebDataset(path, ["txt"], {"txt": len}, optional={"txt": 7})
    assert [int(numbers[i]["txt"]) for i in range(3)] == [7, 3, 7]
    assert len({one.fingerprint() for one in (source, missing, WebDataset(path, ["cls", "txt"]))}) == 3
    with pytest.raises(
        DataError, match=r"record 0 of .*x.tar, 0 has no member 'txt', found cls. Correct `fields`, or giv"
    ):
        WebDataset(path, ["cls", "txt"])[0]
    with pytest.raises(DataError, match=r"optional: no sample has a member 'text'. Did you mean txt\?"):
        WebDataset(path, ["cls"], optional={"text": ""})


def test_number_in_json_has_the_dtype_of_the_first_samples(tmp_path):
    texts = (b'{"v": 0.5, "n": 1}', b'{"v": 1, "n": 1.5}')
    path = str(write_tar(tmp_path / "x.tar", [(f"{i}.a.json", texts[i // 20]) for i in range(21)]))
    source = WebDataset(path, dtypes={"a.json.n": "float32"})
    assert [source[i]["a.json"]["v"].dtype for i in (0, 20)] == [np.float64] * 2
    assert [source[i]["a.json"]["n"].tolist() for i in (0, 20)] == [1, 1.5]
    with pytest.raises(DataError, match=r"20, a.json: field a.json.n is an integer in the first examples"):
        WebDataset(path)[20]
    with pytest.raises(DataError, match=r"no field 'json.n' in JSON. Did you mean a.json.n or a.json.v\? Found"):
        WebDataset(path, dtypes={"json.n": "float32"})


def test_members_are_grouped_as_webdataset_groups_them(tmp_path):
    long = "x" * 150
    members = [
        ("README", b"no suffix"),
        ("a.b/1.CLS", b"1"),
        ("a.b/1.left.txt", b"l"),
        (f"{long}.cls", b"2"),
        (f"{long}.left.txt", b"m"),
        ("é.cls", b"3"),
        ("é.left.txt", b"n"),
        ("a.b/1.cls", b"4"),
        ("a.b/1.left.txt", b"o"),
    ]
    source = WebDataset(str(write_tar(tmp_path / "x.tar", members)))
    found = [source[i] for i in range(len(source))]
    assert [sample["__key__"] for sample in found] == ["a.b/1", long, "é", "a.b/1"]
    assert [(int(sample["cls"]), sample["left.txt"]) for sample in found] == [(1, "l"), (2, "m"), (3, "n"), (4, "o")]


def test_samples_of_several_shards_follow_each_other(tmp_path, labels):
    write_tar(tmp_path / "more.tar", [(f"{i}.{suffix}", b"%d" % i) for i in (12, 13) for suffix in ("cls", "x.txt")])
    source = pickle.loads(pickle.dumps(WebDataset(f"{tmp_path}/*.tar")))
    assert [int(source[i]["cls"]) for i in range(14)] == list(range(14))
    batches = Batches(source, 7, 3, True)
    seen = np.concatenate([batches[n].examples["cls"] for n in range(2)])
    assert sorted(seen.tolist()) == list(range(14))


@pytest.mark.parametrize("cut", [700, 300])
def test_incomplete_shard_loses_its_last_sample_only(labels, cut):
    with tarfile.open(labels) as tar:
        last = tar.getmembers()[-1]
    labels.write_bytes(labels.read_bytes()[: last.offset_data + 512 - cut])  # within the last header, or its member
    if cut == 300:  # the data of the member, a single byte, is still complete
        labels.write_bytes(labels.read_bytes()[: last.offset_data])
    source = WebDataset(str(labels), ["cls", "x.txt"])
    assert [int(source[i]["cls"]) for i in range(11)] == list(range(11))
    with pytest.raises(DataError):
        source[11]
    found = TolerantBatches(Batches(source, len(source), 0, False))[0]
    assert found.batch.weight.sum() == 11


def test_shard_that_ends_within_the_padding_of_a_member_lacks_samples(labels):
    with tarfile.open(labels) as tar:
        last = tar.getmembers()[-1]
    labels.write_bytes(labels.read_bytes()[: last.offset_data + 100])
    source = WebDataset(str(labels))
    assert len(source) == 13
    assert int(source[11]["cls"]) == 11
    with pytest.raises(DataError, match=rf"the file is damaged or ends at byte {last.offset_data + 100}"):
        source[12]


def test_shard_without_end_marker_is_named(labels, tmp_path, capsys):
    with tarfile.open(labels) as tar:
        last = tar.getmembers()[-3]
    WebDataset(str(labels))
    assert capsys.readouterr().err == ""
    labels.write_bytes(labels.read_bytes()[: last.offset_data + 512])
    shutil.copy(labels, tmp_path / "more.tar")
    for _ in range(2):  # also when the index is reused
        assert len(WebDataset(f"{tmp_path}/*.tar")) == 22
        assert f"no end marker of tar in {labels} and 1 more. If the" in capsys.readouterr().err


def test_sparse_members_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo("1.cls")
        member.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(member)
    with pytest.raises(DataError, match=r"x.tar: 1.cls is sparse. Write the shard without --sparse"):
        WebDataset(str(tmp_path / "x.tar"))


def test_damaged_header_makes_the_rest_of_the_shard_one_bad_sample(labels):
    with tarfile.open(labels) as tar:
        offset = tar.getmembers()[8].offset
    stored = bytearray(labels.read_bytes())
    stored[offset + 20] ^= 1
    labels.write_bytes(stored)
    source = WebDataset(str(labels))
    assert len(source) == 5
    assert int(source[3]["cls"]) == 3
    with pytest.raises(DataError, match=rf"record 4 of .*: the file is damaged or ends at byte {offset}"):
        source[4]


def test_sample_with_two_members_of_a_name_is_a_data_error(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("1.cls", b"1"), ("2.cls", b"1"), ("2.CLS", b"2")])
    source = WebDataset(str(path))
    assert source[0]["cls"] == 1
    with pytest.raises(DataError, match=r"record 1 of .*x.tar, 2 has two members 'cls'"):
        source[1]


def test_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(gzip.compress(bytes(2000)))
    with pytest.raises(DataError, match=r"is compressed by gzip, which allows no random access. Decompress it"):
        WebDataset(str(path))
    path.write_bytes(b"not a tar file" * 100)
    with pytest.raises(DataError, match="is no tar file: "):
        WebDataset(str(path))
    write_tar(path, [("README", b"")])
    with pytest.raises(DataError, match=r"no samples in 1 files. Members are named like 17.jpg and 17.cls"):
        WebDataset(str(path))


def test_fingerprint_depends_on_content_and_members_and_not_on_folder(labels, tmp_path):
    first = WebDataset(str(labels)).fingerprint()
    (tmp_path / "copy").mkdir()
    copy = Path(shutil.copy(labels, tmp_path / "copy"))
    assert WebDataset(str(copy)).fingerprint() == first
    assert WebDataset(str(copy), ["cls"]).fingerprint() != first
    assert WebDataset(str(copy), decoders={"cls": double}).fingerprint() != first
    stored = bytearray(copy.read_bytes())
    stored[512] = ord("5")
    copy.write_bytes(stored)
    assert WebDataset(str(copy)).fingerprint() != first


def test_fingerprint_does_not_depend_on_the_order_of_a_set(tmp_path):  # which differs between processes
    suffixes = "hgfedcba"
    members = [(f"{i}.{suffix}", f"{i}{suffix}".encode()) for i in range(3) for suffix in suffixes]
    path = write_tar(tmp_path / "x.tar", members)
    found = hashlib.blake2b(f"x.tar {path.stat().st_size} bytes".encode(), digest_size=16)
    for i in range(3):
        for suffix in suffixes:
            found.update(f"{suffix}{i}{suffix}".encode())
    assert f"samples {found.hexdigest()}" in WebDataset(str(path)).fingerprint().split("; ")
