"""A write that replaces a dataset does not replace the files that it reads."""

import pytest

from engine.base.errors import DataError
from engine.data.ragged.padded import Padded
from engine.datasets.write import write_dataset
from engine.readers import KittiObject
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
