"""Figures of scenes from above hold what was passed, with units, a scale bar, a legend and the ego vehicle."""

import numpy as np
import pytest

from engine import plot
from engine.base.errors import TaskError
from engine.metrics.results import Image, named_results
from engine.plot import style

pytest.importorskip("matplotlib")

PAST = np.zeros((2, 3, 2)) + np.arange(3)[:, None]
BOXES = np.array([[0, 0, 4, 2, 0], [5, 5, 4, 2, 1.0]])


def lines(ax, label):
    return [line for line in ax.lines if line.get_label() == label]


def legend(ax):
    return {text.get_text() for text in ax.get_legend().get_texts()}


def test_tracks_have_a_line_for_each_lane_and_agent_and_mode():
    lanes = [np.zeros((4, 2)), np.ones((2, 2))]
    modes = np.zeros((2, 5, 4, 2))
    figure = plot.tracks(PAST, PAST + 3, modes, scores=np.full((2, 5), 0.01), lanes=lanes, title="scene 7")
    [ax] = figure.axes
    assert ax.get_title() == "scene 7"
    drawn = {label: len(lines(ax, label)) for label in ("lane", "past", "now", "true future", "prediction")}
    assert drawn == {"lane": 2, "past": 2, "now": 1, "true future": 2, "prediction": 10}
    assert {line.get_alpha() for line in lines(ax, "prediction")} == {0.15}
    faint = plot.tracks(PAST, predicted=modes, scores=np.full((2, 5), np.nan)).axes[0]
    assert {line.get_alpha() for line in lines(faint, "prediction")} == {0.15}
    assert len(lines(plot.tracks(PAST, valid=[True, False]).axes[0], "past")) == 1
    assert isinstance(named_results("a", figure, "T.figure")["a"], Image)


def test_legend_names_each_kind_once_and_axes_have_units():
    figure = plot.tracks(PAST, PAST + 3, PAST + 2, lanes=[np.zeros((2, 2))], ego=(1, 2, 0))
    [ax] = figure.axes
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(names) == ["ego vehicle", "lane", "now", "past", "prediction", "true future"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x, m", "y, m")


def test_second_call_on_the_same_axes_replaces_legend_and_scale_bar():
    ax = plot.tracks(PAST).axes[0]
    assert plot.boxes(BOXES, ax=ax) is ax.figure
    assert {"past", "predicted box", "ego vehicle"} <= legend(ax)
    assert len([artist for artist in ax.get_children() if artist.get_gid() == style.DECORATION]) == 1


def test_boxes_have_their_classes_and_scores():
    found = plot.boxes(BOXES, [0.9, 0.1], BOXES[:1], points=np.zeros((9, 4)), names=["car", "van"], least=0.5)
    [ax] = found.axes
    assert [text.get_text() for text in ax.texts] == ["car 0.90"]
    assert len(lines(ax, "true box")) == len(lines(ax, "predicted box")) == 1
    [unknown, _] = lines(plot.boxes(BOXES, [np.nan, 1], ego=None).axes[0], "predicted box")[::-1]
    assert unknown.get_alpha() == 0.2
    assert "ego vehicle" not in legend(plot.boxes(BOXES, ego=None).axes[0])


def test_note_says_how_many_labels_have_no_room():
    crowd = np.tile([[0, 0, 4, 2, 0]], (300, 1))
    [ax] = plot.boxes(crowd, np.full(300, 0.5), names=["pedestrian"] * 300).axes
    labels = [text for text in ax.texts if text.get_text() == "pedestrian 0.50"]
    assert 0 < len(labels) < 300
    assert f"no room for the labels of {300 - len(labels)} of 300 boxes" in [text.get_text() for text in ax.texts]


def test_masks_are_areas_in_metres():
    masks = np.zeros((8, 10, 2))
    masks[2:4, 5:8, 0] = 1
    [ax] = plot.masks(masks, masks, extent=(-10, 10, -8, 8), names=["vehicle", "line"]).axes
    assert legend(ax) == {"predicted vehicle", "predicted line", "true masks", "ego vehicle"}
    assert (ax.get_xlim(), ax.get_ylim()) == ((-10, 10), (-8, 8))
    [area, border] = [artist for artist in ax.collections if len(artist.get_paths()[0])]
    for drawn in (area, border):
        corners = np.concatenate([path.vertices for path in drawn.get_paths()])
        # Rows 2 and 3 have their centres at y = -3 and -1, columns 5 to 7 at x = 1, 3 and 5.
        assert (corners.min(0) >= [-1, -5]).all() and (corners.max(0) <= [7, 1]).all()
    with pytest.raises(TaskError, match=r"predicted has shape \[8, 10, 2\], allowed is \[n, n, 1\]"):
        plot.masks(masks, extent=(-10, 10, -8, 8), names=["vehicle"])
