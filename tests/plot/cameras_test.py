"""Overlays on camera images are where the calibration puts them, in the colours of the views from above."""

import numpy as np
import pytest

from engine import plot
from engine.plot import cameras, style

pytest.importorskip("matplotlib")

INTRINSICS = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
IMAGE = np.zeros((80, 100, 3))


def test_overlay_leaves_out_what_is_behind_the_camera():
    np.testing.assert_allclose(plot.project([[1, 0.5, 10]], INTRINSICS), [[60, 45]])
    corners = np.array([[x, y, z] for y in (1, -1) for x, z in ((-1, 4), (1, 4), (1, 6), (-1, 6))], float)
    behind = corners - [0, 0, 10]
    figure = plot.camera(IMAGE, INTRINSICS, corners=[corners, behind], points=[[0, 0, 3], [0, 0, -3]])
    ax, bar = figure.axes
    assert len(ax.lines) == len(cameras.EDGES)
    assert ax.get_xlim() == (-0.5, 99.5)
    assert len(ax.collections[0].get_offsets()) == 1
    assert bar.get_ylabel() == "distance, m"


def test_cells_have_the_colours_of_the_masks():
    cells = {"vehicle": [[1, 0.5, 10], [0, 0, -3]], "line": [[0, 0, 5]]}
    [ax] = plot.camera(IMAGE, INTRINSICS, cells=cells).axes
    assert [line.get_color() for line in ax.lines] == [*style.MASKS[:2]]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[60, 45]])
