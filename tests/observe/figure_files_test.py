"""Images with a file name are written as PNG files."""

import numpy as np

from engine.metrics.results import Image
from engine.observe.figure_files import write_figures
from tests.observe.images import decode


def test_only_images_with_a_file_name_are_written(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    write_figures(tmp_path / "figures", {"a": Image(pixels), "b": Image(pixels, "night/7.png"), "c": 1.0})
    [file] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert file == tmp_path / "figures" / "night" / "7.png"
    np.testing.assert_array_equal(decode(file.read_bytes()), pixels)
