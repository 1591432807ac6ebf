"""A written dataset records what it was written from, and the names that it holds."""

from pathlib import Path

import pytest

from engine.base.errors import DataError
from engine.datasets import lineage as recording
from engine.datasets.write import write_dataset
from engine.readers.array_record import ArrayRecordSource
from engine.readers.files import sample_hash
from engine.run import lineage
from engine.run.lineage import DATA
from tests.datasets.scans import Scans

SCANS = {"target": "tests.datasets.scans.Scans", "count": 20, "bad": [3], "on_error": "skip", "limit": 15}


def names_of(out: Path) -> lineage.Names:
    path = lineage.record_path(out)
    record = lineage.read(path)
    assert record is not None
    return lineage.read_names(lineage.names_path(path))[record.inputs[0].key]


def test_record_has_the_source_its_filters_and_the_names_of_its_examples(tmp_path):
    out = tmp_path / "a.arrayrecord"
    write_dataset(SCANS, out, shards=3, processes=1)
    record = lineage.read(lineage.record_path(out))
    assert record is not None and (record.kind, record.examples, record.left_out) == ("dataset", 14, 1)
    [source] = record.inputs
    assert (source.kind, source.examples, source.id) == (DATA, "15", "20 scans without (3,)[:15]")
    assert source.settings == {**{name: str(value) for name, value in SCANS.items()}, "bad": "(3,)"}
    assert record.packages["convoy"] and len(record.commit) in (0, 40)
    names = names_of(out)
    assert names.values == {"name": sorted(f"scan {n}" for n in range(15) if n != 3)} and names.files == {}
    again = write_dataset(ArrayRecordSource(str(out)), tmp_path / "b.arrayrecord", shards=1, processes=1)
    assert again.examples == 14
    copied = lineage.read(tmp_path / "b.arrayrecord.lineage.json")
    assert copied is not None and copied.inputs[0].datasets == (record.id,)
    found = names_of(tmp_path / "b.arrayrecord")
    assert found.values == names.values
    assert {Path(path): text for path, (_, text) in found.files.items()} == {
        path: sample_hash(str(path)) for path in tmp_path.glob("a-*.arrayrecord")
    }


def test_record_is_the_same_after_a_repair(tmp_path):
    out = tmp_path / "a.arrayrecord"
    write_dataset(Scans(12), out, shards=3, processes=1)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "a-00001-of-00003.arrayrecord").write_bytes(b"damaged")
    assert write_dataset(Scans(12), out, shards=3, processes=1).kept == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_names_are_left_out_if_those_of_a_shard_are_not_known(tmp_path):
    out = tmp_path / "a.arrayrecord"
    write_dataset(Scans(12), out, shards=3, processes=1)
    lineage.names_path(lineage.record_path(out)).unlink()  # as of an older version
    (tmp_path / "a-00001-of-00003.arrayrecord").write_bytes(b"damaged")
    write_dataset(Scans(12), out, shards=3, processes=1)
    assert not lineage.names_path(lineage.record_path(out)).exists() and lineage.record_path(out).exists()


def test_record_that_cannot_be_written_is_one_sentence(tmp_path):
    out = tmp_path / "a.arrayrecord"
    lineage.record_path(out).mkdir()
    with pytest.raises(DataError, match=r"a\.arrayrecord\.lineage\.json: cannot be written: .*directory"):
        recording.save_record(out, Scans(2), Scans(2), "c", [], None)
