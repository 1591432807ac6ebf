"""Summaries of datasets, and the lines that describe a changed dataset."""

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.data import dataset_summary
from engine.data.sampling.mixture import Mixture
from engine.data.source import ArraySource
from engine.readers.array_record import ArrayRecordSource, write_array_record


def source(n=5, offset=0.0):
    return ArraySource({"x": np.arange(2 * n, dtype=np.float32).reshape(n, 2) + offset, "y": np.zeros(n, np.int32)})


def test_summary_holds_count_spec_and_fingerprint():
    summary = dataset_summary.summarize(source())
    assert summary == {"examples": "5", "each": "x float32[2], y int32[]", "content": source().fingerprint()}
    assert dataset_summary.changes(summary, dataset_summary.summarize(source()), "data") == []


def test_changes_lists_one_line_per_difference():
    before, after = dataset_summary.summarize(source()), dataset_summary.summarize(source(6))
    lines = dataset_summary.changes(before, after, "data")
    assert lines[0] == "data: examples: 5 -> 6"
    assert lines[1] == f"data: content: {before['content']} -> {after['content']}"
    assert len(lines) == 2


def test_changes_names_the_differing_files_and_sources(tmp_path):
    for name, n, offset in (("a", 3, 0), ("b", 4, 0)):
        write_array_record(source(n, offset), str(tmp_path / f"{name}.arrayrecord"))
    before = dataset_summary.summarize(ArrayRecordSource(str(tmp_path / "*.arrayrecord")))
    write_array_record(source(4, 0.5), str(tmp_path / "b.arrayrecord"))
    lines = dataset_summary.changes(
        before, dataset_summary.summarize(ArrayRecordSource(str(tmp_path / "*.arrayrecord"))), "data"
    )
    assert [line.split()[2] for line in lines] == ["b.arrayrecord", "records"]
    write_array_record(source(4, 0.5), str(tmp_path / "c.arrayrecord"))
    lines = dataset_summary.changes(
        before, dataset_summary.summarize(ArrayRecordSource(str(tmp_path / "*.arrayrecord"))), "data"
    )
    assert lines[0] == "data: examples: 7 -> 11"
    assert any(line.startswith("data: content: new c.arrayrecord ") for line in lines)

    def mixed(offset):
        return dataset_summary.summarize(Mixture({"one": source(), "two": source(offset=offset)}, {"one": 1, "two": 2}))

    (line,) = dataset_summary.changes(mixed(0), mixed(1), "evaluations.a.data")
    assert line.startswith("evaluations.a.data: content: two 2: ")


def test_changes_lists_at_most_eight_parts():
    before, after = ({"content": "; ".join(f"{i} {x}" for i in range(20))} for x in "ab")
    lines = dataset_summary.changes(before, after, "data")
    assert (len(lines), lines[-1]) == (dataset_summary.MAX_SHOWN + 1, "data: content: ... and 12 more")


def test_summaries_survive_a_round_trip_through_the_file(tmp_path):
    summary = {
        "data": dataset_summary.summarize(source()),
        "evaluations.heldout.data": dataset_summary.summarize(source(3)),
    }
    path = tmp_path / "data.json"
    assert dataset_summary.read(path) == {}
    path.write_text(dataset_summary.to_text(summary))
    assert dataset_summary.read(path) == summary
    path.write_text("not JSON")
    with pytest.raises(DataError, match=r"data\.json: cannot be read .* Move the file away to continue"):
        dataset_summary.read(path)
