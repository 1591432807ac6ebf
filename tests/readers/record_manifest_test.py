import os
from pathlib import Path

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers import record_manifest
from engine.readers.record_manifest import BadRecord, RecordManifest, Shard

SHARD = Shard("a.rec", 0, 5, 4, 10, "xxh3_128:0", (BadRecord(3, "damaged"),))
SOURCE = {"name": "shop.Scans", "examples": "5", "content": "hash"}


def save(out, manifest):
    record_manifest.manifest_path(out).write_text(manifest.to_text())


def test_manifest_round_trips(tmp_path):
    manifest = RecordManifest(SOURCE, "skip", [SHARD, None], False)
    save(tmp_path / "a.rec", manifest)
    assert record_manifest.read_manifest(tmp_path / "a.rec") == manifest
    assert record_manifest.read_manifest(tmp_path / "b.rec") is None


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "shards": [{}]}'])
def test_damaged_manifest_is_reported_with_what_to_do(tmp_path, text):
    record_manifest.manifest_path(tmp_path / "a.rec").write_text(text)
    with pytest.raises(DataError, match=r"a.rec.manifest.json: the manifest cannot be read .*delete this file"):
        record_manifest.read_manifest(tmp_path / "a.rec")


@pytest.mark.parametrize("name", ["a.rec", "a", "a.b.rec", "a-00001-of-00002.rec", "[a]*.rec"])
@pytest.mark.parametrize("count", [1, 3])
def test_dataset_of_a_shard_is_its_output(name, count):
    out = Path("folder") / name
    names = [record_manifest.shard_name(out, number, count) for number in range(count)]
    assert len(set(names)) == count
    if count > 1 or name != "a-00001-of-00002.rec":
        assert {record_manifest.dataset_of(out.with_name(shard)) for shard in names} == {out}


def test_lengths_round_trip_with_any_field_names_and_equal_bytes(tmp_path):
    lengths = {"file": np.arange(3, dtype=np.int32), "a/b": np.array([-1, 2, 2], np.int32)}
    record_manifest.save_lengths(tmp_path / "a.npz", lengths)
    record_manifest.save_lengths(tmp_path / "b.npz", dict(reversed(lengths.items())))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = record_manifest.load_lengths(tmp_path / "a.npz")
    assert {name: values.tolist() for name, values in found.items()} == {"file": [0, 1, 2], "a/b": [-1, 2, 2]}
    assert record_manifest.load_lengths(tmp_path / "a.npz", ["file"]).keys() == {"file"}
    assert record_manifest.load_lengths(tmp_path / "none.npz") == {}
    (tmp_path / "a.npz").write_bytes(b"PK damaged")
    with pytest.raises(DataError, match="the length index cannot be read"):
        record_manifest.load_lengths(tmp_path / "a.npz")


def test_processes_with_the_same_id_may_write_one_length_index(tmp_path, monkeypatch):
    path, lengths, rename = tmp_path / "a.npz", {"x": np.arange(3, dtype=np.int32)}, os.replace

    def late_rename(*paths):
        monkeypatch.setattr(os, "replace", rename)
        record_manifest.save_lengths(path, lengths)  # the other process is faster
        rename(*paths)

    monkeypatch.setattr(os, "replace", late_rename)
    record_manifest.save_lengths(path, lengths)
    assert record_manifest.load_lengths(path)["x"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["a.npz"]


def test_files_of_an_incomplete_dataset_and_of_another_size_are_refused(tmp_path):
    out = tmp_path / "a.rec"
    out.write_bytes(bytes(10))
    save(out, RecordManifest(SOURCE, "stop", [SHARD], True))
    (found,) = record_manifest.known_shards([str(out)]).values()
    assert (found.first, found.count, found.checksum) == (0, 4, SHARD.checksum)
    out.write_bytes(bytes(9))
    with pytest.raises(DataError, match=r"a.rec: has 9 bytes, but 10 were written \(a.rec.manifest.json\)"):
        record_manifest.known_shards([str(out)])
    save(out, RecordManifest(SOURCE, "stop", [SHARD, None], False))
    with pytest.raises(DataError, match=r"1 of 2 shards are written. Run the same `convoy data write` again"):
        record_manifest.known_shards([str(tmp_path / "a-00000-of-00002.rec")])


def test_checksum_depends_on_every_byte(tmp_path):
    (tmp_path / "a").write_bytes(bytes(9_000_000))
    (tmp_path / "b").write_bytes(bytes(8_999_999) + b"\1")
    assert record_manifest.checksum(tmp_path / "a") != record_manifest.checksum(tmp_path / "b")
