import numpy as np

from engine.datasets.shards import ShardJob, ShardWriter, merge_lengths, shard_lengths
from engine.readers.array_record import ArrayRecordSource
from engine.readers.record_manifest import checksum, load_lengths
from tests.datasets.scans import Scans


class Uneven(Scans):
    """Scans of which some lack a field, or have another one."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        if index == 11:
            del example["points"]
        return {**example, "lanes": np.zeros((index, 2))} if index > 12 else example


def test_shard_holds_its_range_and_the_lengths_of_its_fields(tmp_path):
    path, reported = tmp_path / "a.rec", []
    shard, kept = ShardWriter(Uneven(), "stop")(ShardJob(path, 10, 15), reported.append)
    assert not kept and (shard.examples, shard.bytes) == (5, path.stat().st_size)
    assert shard.checksum == checksum(path) and sum(reported) == 5
    assert [ArrayRecordSource(str(path))[n]["name"] for n in range(5)] == [f"scan {n}" for n in range(10, 15)]
    lengths = {name: found.tolist() for name, found in load_lengths(shard_lengths(path)).items()}
    assert lengths == {"points": [2, -1, 4, 5, 6], "lanes": [-1, -1, -1, 13, 14]}
    assert ShardWriter(Uneven(), "stop")(ShardJob(path, 10, 15, shard), reported.append) == (shard, True)
    assert sum(reported) == 10


def test_merged_lengths_fill_the_fields_that_a_shard_lacks():
    merged = merge_lengths([{"a": np.array([1, 2])}, {"b": np.array([3])}], [2, 1])
    assert {name: found.tolist() for name, found in merged.items()} == {"a": [1, 2, -1], "b": [-1, -1, 3]}
