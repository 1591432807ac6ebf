"""What a source reads: its files, and the names of datasets that have a record."""

import os
from pathlib import Path

import numpy as np

from engine.data import file_states, source_lineage
from engine.data.adapt import as_source
from engine.data.dataset_summary import reads_files
from engine.data.file_states import FileStates
from engine.data.sampling.mixture import Mixture
from engine.data.source import ArraySource, BaseSource, limited
from engine.run import lineage
from engine.run.lineage import Names, Record
from engine.storage import mounts


class Files(BaseSource):
    """A source of files."""

    def __init__(self, *paths: Path):
        self.file_states = FileStates([str(path) for path in paths])

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int):
        return {"x": np.float32(index)}


def test_files_of_all_inner_sources_are_found_with_their_sizes(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("four")
    monkeypatch.chdir(tmp_path)
    one = Files(Path("a"))
    mixed = Mixture({"one": one, "two": Files(tmp_path / "gone")}, {"one": 1, "two": 1})
    source = limited(one, 3)
    assert reads_files(mixed) and reads_files(source) and not reads_files(ArraySource({"x": np.zeros(3)}))
    assert source_lineage.names_of(source).files == {str(tmp_path / "a"): (4, "")}
    assert source_lineage.names_of(mixed).files.keys() == {str(tmp_path / "a"), str(tmp_path / "gone")}


def test_files_of_which_only_the_first_are_known_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(file_states, "MOST_AT_START", 2)
    found = source_lineage.names_of(Files(*(tmp_path / str(n) for n in range(5))))
    assert len(found.files) == 2 and found.omitted == {"file": 5}


def test_names_of_a_dataset_with_a_record_are_taken_over(tmp_path):
    shard = tmp_path / "scans-00000-of-00001.arrayrecord"
    shard.write_text("x")
    (tmp_path / "scans.arrayrecord.lineage.json").write_text(Record(kind="dataset", id="d1").to_text())
    held = Names({"/logs/a.mcap": (5, "ff")}, {"scene": ["s1"]})
    lineage.write_names(tmp_path / "scans.arrayrecord.names.json.gz", {"data@1": held})
    summary = {"content": "c", "examples": "8"}
    found, names = (
        source_lineage.describe(Files(shard), "data", summary, {"limit": "2"}),
        source_lineage.names_of(Files(shard)),
    )
    assert (found.datasets, found.path, found.settings) == (
        ("d1",),
        str(tmp_path / "scans.arrayrecord"),
        {"limit": "2"},
    )
    assert names.values == {"scene": ["s1"]} and names.files.keys() == {"/logs/a.mcap", str(shard)}
    os.replace(tmp_path / "scans.arrayrecord.names.json.gz", tmp_path / "scans.arrayrecord.lineage.json")  # damaged
    assert source_lineage.describe(Files(shard), "data", summary, {}).datasets == ()
    assert not source_lineage.names_of(Files(shard)).values


def test_dataset_in_a_mounted_bucket_has_its_record_and_its_address(tmp_path, monkeypatch):
    monkeypatch.setitem(mounts._copies, str(tmp_path), "s3://team/a")
    (tmp_path / "scans.arrayrecord").write_text("x")
    (tmp_path / "scans.arrayrecord.lineage.json").write_text(Record(kind="dataset", id="d1").to_text())
    source = Files(tmp_path / "scans.arrayrecord")
    found = source_lineage.describe(source, "data", {"content": "c", "examples": "8"}, {})
    assert (found.datasets, found.path) == (("d1",), "s3://team/a/scans.arrayrecord")
    assert source_lineage.names_of(source).files == {"s3://team/a/scans.arrayrecord": (1, "")}


def test_folder_of_many_files_is_listed_once(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(source_lineage.lineage, "read", tried.append)
    monkeypatch.setattr(source_lineage.lineage, "read_names", tried.append)
    source = Files(*(tmp_path / f"{n}.mp4" for n in range(5)))
    source_lineage.describe(source, "data", {"content": "c", "examples": "5"}, {})
    source_lineage.names_of(source)
    assert not tried


class Kitti:
    """A source of a user, which knows the names of its frames."""

    known_names = {"frame": ["000002", "000001"]}  # noqa: RUF012, as a user writes it

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int):
        return {"x": np.float32(index)}


def test_names_that_a_source_knows_are_recorded():
    source = limited(as_source(Kitti(), "data"), 1)
    assert reads_files(source)
    assert source_lineage.names_of(source).values == {"frame": ["000001", "000002"]}


def test_short_texts_of_an_example_are_names():
    example = {"scene": "s1", "meta": {"raw": b"\xe9", "n": 3}, "caption": "long " * 99, "x": np.zeros(3), "none": ""}
    assert list(source_lineage.text_names(example)) == [("scene", "s1"), ("meta/raw", "\\xe9")]
    assert list(source_lineage.text_names([1])) == []
