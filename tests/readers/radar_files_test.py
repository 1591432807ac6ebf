import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers.radar_files import FIELDS, read_radar
from tests.readers.driving_files import radar_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "radar.pcd"


def test_valid_points_are_read(path):
    path.write_bytes(radar_file(5, invalid=2))
    points = read_radar(str(path))
    assert (points.shape, points.dtype) == ((3, 18), np.float32)
    assert points[:, FIELDS.index("vx_comp")].tolist() == [10, 11, 12]


def test_file_without_points_holds_one_point_of_nan(path):
    stored = radar_file(1, invalid=0)
    begin = stored.index(b"DATA binary\n") + len(b"DATA binary\n")
    path.write_bytes(stored[:begin] + np.float32(np.nan).tobytes() + stored[begin + 4 :])
    assert read_radar(str(path)).shape == (0, 18)


def test_damaged_file_is_a_data_error(path):
    stored = radar_file(5)
    for damaged in (
        stored[:-20],
        stored[:100],
        b"",
        stored.replace(b"rcs", b"rxs"),
        stored.replace(b"WIDTH 5", b"WIDTH"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"radar.pcd: is no radar file: .*Copy the file again"):
            read_radar(str(path))
    with pytest.raises(DataError, match=r"nothing.pcd: cannot be read"):
        read_radar(str(path.with_name("nothing.pcd")))
