import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers.lidar_files import read_points


def test_points_are_the_rows_of_the_file(tmp_path):
    points = np.arange(12, dtype=np.float32).reshape(3, 4)
    points.tofile(tmp_path / "a.bin")
    assert read_points(str(tmp_path / "a.bin"), 4).tolist() == points.tolist()


@pytest.mark.parametrize("size", [0, 15, 16 + 3, 20])
def test_file_that_is_cut_off_is_refused(tmp_path, size):
    (tmp_path / "a.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=r"a.bin: has \d+ bytes, which are no points of 4 numbers each"):
        read_points(str(tmp_path / "a.bin"), 4)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"a.bin: cannot be read \(No such file or directory\)"):
        read_points(str(tmp_path / "a.bin"), 4)
