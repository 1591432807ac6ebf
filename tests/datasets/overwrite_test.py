"""A write that replaces a dataset: only with `overwrite`, and never the files that it reads."""

import os
import tarfile

import pytest

from engine.base.errors import DataError
from engine.data.ragged.padded import Padded
from engine.data.sampling.mixture import Mixture
from engine.data.source import limited
from engine.datasets.check import checksums
from engine.datasets.write import write_dataset
from engine.readers import KittiObject, WebDataset
from engine.readers.array_record import ArrayRecordSource, write_array_record
from engine.readers.record_manifest import SEQUENCES, manifest_path
from tests.datasets.scans import Scans, content
from tests.readers.driving_files import write_kitti


def test_overwrite_refuses_files_in_the_folder_of_a_source(tmp_path):
    folder = write_kitti(tmp_path / "kitti")
    points = folder / "training/velodyne/000001.bin"
    before = points.read_bytes()
    source = KittiObject(str(folder), parts=["lidar"])
    for one in (source, Padded(source, fields="lidar", lengths=40)):
        with pytest.raises(DataError, match="are files of the source"):
            write_dataset(one, points, overwrite=True, processes=1)
    assert points.read_bytes() == before
    out = folder / "training/lidar.arrayrecord"  # a dataset in the folder may be written again
    for _ in range(2):
        assert write_dataset(source, out, overwrite=True, processes=1).examples == 4


def test_existing_file_without_manifest_needs_overwrite(tmp_path):
    out = tmp_path / "a.arrayrecord"
    write_array_record(Scans(3), str(out))
    with pytest.raises(DataError, match="exists, and is not a dataset with a manifest"):
        write_dataset(Scans(5), out)
    write_dataset(Scans(5), out, overwrite=True, processes=1)
    assert len(ArrayRecordSource(str(out))) == 5
    (tmp_path / f"a.arrayrecord{SEQUENCES}").touch()  # the index of the drives of the former frames
    write_dataset(Scans(7), out, overwrite=True, shards=7, processes=1)
    assert len(ArrayRecordSource(str(out))) == 7 and not out.exists()
    write_dataset(Scans(2), out, overwrite=True, processes=1)
    assert sorted(path.name.removeprefix("a.arrayrecord") for path in tmp_path.iterdir()) == [
        "", ".lengths.npz", ".lineage.json", ".manifest.json", ".names.json.gz",
    ]  # fmt: skip
    with pytest.raises(DataError, match="are files of the source"):
        write_dataset(limited(ArrayRecordSource(str(out)), 1), out, overwrite=True, processes=1)
    with pytest.raises(DataError, match="are files of the source"):
        write_dataset(ArrayRecordSource(str(out)), os.path.relpath(out), overwrite=True, processes=1)
    one = ArrayRecordSource(str(out))
    mixture = Mixture({"one": one, "two": one}, {"one": 1, "two": 1})
    assert checksums(mixture) == one.checksums() != {}
    with pytest.raises(DataError, match="are files of the source"):
        write_dataset(mixture, out, overwrite=True, processes=1)
    write_array_record(Scans(4), str(out))  # the manifest belonged to the file that it replaces
    assert len(ArrayRecordSource(str(out))) == 4


@pytest.mark.parametrize(
    ("source", "on_error", "text"),
    [
        (Scans(bad=[0]), "stop", "Example 0 of .*Scans: OSError: scan 0 is damaged"),
        (Scans(bad=range(60)), "skip", "11 of the examples 0 to 10 are bad"),
        (Scans(2, bad=[0, 1]), "skip", "every example is bad"),
    ],
)
def test_overwrite_keeps_the_dataset_if_the_source_cannot_be_read(tmp_path, source, on_error, text):
    out = tmp_path / "a.arrayrecord"
    write_dataset(Scans(4), out, shards=2, processes=1)
    before = content(tmp_path)
    with pytest.raises(DataError, match=text):
        write_dataset(source, out, overwrite=True, processes=1, on_error=on_error)
    assert content(tmp_path) == before
    write_dataset(Scans(12, bad=[0]), out, overwrite=True, processes=1, on_error="skip")
    assert len(ArrayRecordSource(str(out))) == 11


def test_overwrite_refuses_files_of_a_source_of_another_format(tmp_path):
    (tmp_path / "0.txt").write_text("text")
    out = tmp_path / "a.tar"
    with tarfile.open(out, "w") as tar:
        tar.add(tmp_path / "0.txt", "0.txt")
    before = out.read_bytes()
    with pytest.raises(DataError, match="are files of the source"):
        write_dataset(WebDataset(str(out)), out, overwrite=True, processes=1)
    assert out.read_bytes() == before


def test_existing_shards_without_manifest_need_overwrite(tmp_path):
    out = tmp_path / "a.arrayrecord"
    write_dataset(Scans(4), out, shards=2, processes=1)
    manifest_path(out).unlink()
    before = content(tmp_path)
    with pytest.raises(DataError, match=r"a-00000-of-00002.arrayrecord exists, and is not in a manifest\. Choose"):
        write_dataset(Scans(5), out, shards=2, processes=1)
    assert content(tmp_path) == before
    assert write_dataset(Scans(5), out, shards=2, processes=1, overwrite=True).examples == 5
