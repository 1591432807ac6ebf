import dataclasses
import json

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data.source import ArraySource, limited
from engine.datasets.check import check_dataset
from engine.datasets.write import write_dataset
from engine.readers.array_record import ArrayRecordSource
from tests.datasets.scans import Scans, Transformed

pytestmark = pytest.mark.multiprocess

MEASURED = {"throughput", "advice"}  # parts of a report that differ between runs


def same(report):
    return {name: value for name, value in dataclasses.asdict(report).items() if name not in MEASURED}


def test_corrupted_file_names_its_records_in_one_and_in_two_processes(tmp_path):
    out = tmp_path / "scans.arrayrecord"
    write_dataset(Scans(90), out, shards=2, processes=1)
    first = check_dataset(ArrayRecordSource(str(out)), processes=1)
    assert (first.faults, first.files, first.damaged) == (0, 2, [])

    shard = tmp_path / "scans-00001-of-00002.arrayrecord"
    damaged = bytearray(shard.read_bytes())
    damaged[1500:1700] = bytes(byte ^ 0xFF for byte in damaged[1500:1700])  # longer than what is between two records
    shard.write_bytes(damaged)
    source = ArrayRecordSource(str(out))
    bad = {}
    for index in range(90):
        try:
            source[index]
        except DataError:
            bad[index] = f"record {index - 45} of {shard}"
    assert bad  # the file is damaged in a record, not between two

    one, two = check_dataset(source, processes=1), check_dataset(source, processes=2)
    assert same(one) == same(two)
    assert one.damaged == [str(shard)]
    assert {found.index: found.file for found in one.bad} == bad
    assert one.faults == len(bad) + 1
    assert one.to_text().splitlines()[1].startswith(f"  bad: example {min(bad)}: {bad[min(bad)]}: ")
    assert f"checksums: 1 of 2 files are as they were written\n  damaged: {shard}" in one.to_text()
    assert json.loads(two.to_json())["bad"][0]["file"] == bad[min(bad)]


def test_report_describes_every_field():
    report = check_dataset(Scans(), processes=1)
    assert (report.examples, report.bad_count, report.files, report.advice) == (60, 0, 0, report.advice)
    assert report.fields["points"]["lengths"]["min"] == 1 and report.fields["points"]["lengths"]["max"] == 9
    assert report.fields["label"]["classes"] == {"0": 20, "1": 20, "2": 20}
    assert report.fields["name"]["dtype"] == "text"
    assert report.bytes["total"] == sum(12 * (n % 9 + 1) + 4 + len(repr(f"scan {n}")) for n in range(60))
    assert report.notes == [
        "points has 9 different shapes, and a batch needs one. Pad, bucket or pack it (engine.Padded, engine.Bucketed, "
        "engine.Packed)."
    ]
    assert report.throughput["stages_s"].keys() <= {"read", "decode", "transform", "collate"}


def test_bad_examples_have_index_and_reason():
    class Mixed(Scans):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            if index == 5:
                example["extra"] = 1
            if index == 6:
                example["points"] = example["points"].astype(np.float64)
            return example

    report = check_dataset(Mixed(bad=[3, 50]), processes=1)
    assert [found.index for found in report.bad] == [3, 5, 6, 50]
    assert report.bad[0].reason.startswith("OSError: scan 3 is damaged (")
    assert report.bad[1].reason == (
        "It has extra int64, label int32, name text, points float32[?, ?]; other examples have label int32, name text, "
        "points float32[?, ?]."
    )
    assert "points float64[?, ?]" in report.bad[2].reason
    assert report.faults == 4


def test_dataset_whose_last_examples_are_all_bad_is_checked():
    report = check_dataset(Scans(20, bad=range(16, 20)), processes=1)
    assert [found.index for found in report.bad] == [16, 17, 18, 19]
    report = check_dataset(Scans(2, bad=[0, 1]), processes=1)
    assert (report.examples, report.bad_count, report.fields) == (2, 2, {})
    assert report.to_text().startswith(f"{report.source}: 2 examples, 2 bad")


def test_structured_arrays_are_bad_examples():
    class Structured(Scans):
        def __getitem__(self, index):
            return {"points": np.zeros(4, [("x", np.float32), ("y", np.float32)])}

    report = check_dataset(Structured(2), processes=1)
    assert [found.reason for found in report.bad] == ["points holds neither numbers nor text."] * 2


def test_transform_is_applied_and_its_failures_are_bad_examples():
    report = check_dataset(Transformed(), processes=1)
    assert [found.index for found in report.bad] == list(range(2, 60, 3))
    assert report.bad[0].reason.startswith("Its transform failed: ValueError: no such label")
    assert report.throughput["stages_s"]["transform"] > 0


def test_duplicates_constants_and_values_that_are_not_finite_are_reported():
    x = np.arange(20, dtype=np.float32)
    x[7], x[12] = np.nan, 3
    arrays = {"x": x, "one": np.ones((20, 2), np.uint8), "time": np.full(20, 2**40)}
    report = check_dataset(ArraySource(arrays), processes=1)
    assert report.fields["x"]["not_finite"] == {"examples": 1, "first": [7]}
    assert report.duplicates == {"examples": 1, "pairs": [[3, 12]]}
    assert report.notes == [
        "one is the same in all examples, so that a model learns nothing from it.",
        f"time has values from {2**40} to {2**40}, which do not fit int32, the type on the devices. Shift or rescale "
        "it in the source, or set JAX_ENABLE_X64=1.",
        "time is the same in all examples, so that a model learns nothing from it.",
        "x is infinite or not a number in 1 examples. Mask or repair them.",
    ]
    assert report.throughput["stages_s"]["collate"] > 0
    assert report.faults == 0


def test_progress_counts_every_example_once():
    calls = []
    check_dataset(limited(Scans(bad=[1]), 40), processes=1, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 40) for n in range(1, 41)]
    with pytest.raises(DataError, match="Scans: no examples"):
        check_dataset(Scans(0))
