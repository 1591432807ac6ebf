"""Figures of driving scenes hold what was passed, and wrong shapes are named."""

import sys

import numpy as np
import pytest

from engine import plot
from engine.base.errors import ConfigError, TaskError
from engine.metrics.results import Image, named_results

PAST = np.zeros((2, 3, 2)) + np.arange(3)[:, None]


def test_tracks_have_a_line_for_each_lane_and_agent_and_mode():
    pytest.importorskip("matplotlib")
    lanes = [np.zeros((4, 2)), np.ones((2, 2))]
    modes = np.zeros((2, 5, 4, 2))
    figure = plot.tracks(PAST, PAST + 3, modes, scores=np.full((2, 5), 0.01), lanes=lanes, title="scene 7")
    [ax] = figure.axes
    assert ax.get_title() == "scene 7"
    assert len(ax.lines) == 2 + 2 + 1 + 2 + 10
    assert min(line.get_alpha() or 1 for line in ax.lines) == 0.15
    faint = plot.tracks(PAST, predicted=modes, scores=np.full((2, 5), np.nan)).axes[0].lines
    assert {line.get_alpha() for line in faint} == {None, 0.15}
    assert len(plot.tracks(PAST, valid=[True, False]).axes[0].lines) == 1 + 1
    assert isinstance(named_results("a", figure, "T.figure")["a"], Image)


def test_boxes_are_rotated_and_have_their_scores():
    pytest.importorskip("matplotlib")
    np.testing.assert_allclose(plot.outline([1, 2, 4, 2, np.pi / 2]), [[0, 4], [0, 0], [2, 0], [2, 4]], atol=1e-12)
    found = np.array([[0, 0, 4, 2, 0], [5, 5, 4, 2, 1.0]])
    figure = plot.boxes(found, [0.9, 0.1], found[:1], points=np.zeros((9, 4)), names=["car", "van"], least=0.5)
    [ax] = figure.axes
    assert [text.get_text() for text in ax.texts] == ["car 0.90"]
    assert plot.boxes(found, [np.nan, 1]).axes[0].lines[0].get_alpha() == 0.2
    assert len(ax.lines) == 1 + 2 + 2  # points, a true box and a predicted one, each with its front


def test_overlay_leaves_out_what_is_behind_the_camera():
    pytest.importorskip("matplotlib")
    intrinsics = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    np.testing.assert_allclose(plot.project([[1, 0.5, 10]], intrinsics), [[60, 45]])
    corners = np.array([[x, y, z] for y in (1, -1) for x, z in ((-1, 4), (1, 4), (1, 6), (-1, 6))], float)
    behind = corners - [0, 0, 10]
    figure = plot.camera(np.zeros((80, 100, 3)), intrinsics, corners=[corners, behind], points=[[0, 0, 3], [0, 0, -3]])
    [ax] = figure.axes
    assert len(ax.lines) == len(plot.EDGES)
    assert ax.get_xlim() == (-0.5, 99.5)
    assert len(ax.collections[0].get_offsets()) == 1
    other = plot.tracks(PAST, ax=ax)
    assert other is figure


def test_wrong_shapes_and_a_missing_library_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"^engine.plot needs matplotlib, .* pip install .*\[plot\]'"):
        plot.tracks(PAST)
    with pytest.raises(TaskError, match=r"^engine.plot: past has shape \[2, 3, 4\], allowed is \[n, n, 2\]"):
        plot._array(np.zeros((2, 3, 4)), "past", (2,), 3)
