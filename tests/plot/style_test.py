"""Labels do not overlap, scale bars have round lengths, and a missing library or a wrong shape is named."""

import itertools
import sys

import numpy as np
import pytest

from engine import plot
from engine.base.errors import ConfigError, TaskError
from engine.plot import style


@pytest.mark.parametrize(("most", "length"), [(1, 1), (4.9, 2), (5, 5), (19, 10), (0.03, 0.02), (0, 1), (np.nan, 1)])
def test_scale_bar_has_a_round_length(most, length):
    assert style.round_length(most) == pytest.approx(length)


def test_boxes_are_rotated():
    expected = [[0, 4], [0, 0], [2, 0], [2, 4]]
    np.testing.assert_allclose(plot.outline([1, 2, 4, 2, np.pi / 2]), expected, atol=1e-12)


def test_labels_of_crowded_boxes_do_not_overlap_when_drawn():
    agg = pytest.importorskip("matplotlib.backends.backend_agg")
    random = np.random.default_rng(0)
    boxes = np.column_stack([random.uniform(-20, 20, (25, 2)), np.full((25, 2), 1.0), random.uniform(0, 6, 25)])
    figure = plot.boxes(boxes, random.uniform(0, 1, 25), boxes + 0.2, names=["pedestrian"] * 25)
    canvas = agg.FigureCanvasAgg(figure)
    canvas.draw()
    [ax] = figure.axes
    labels = [text for text in ax.texts if text.get_text().startswith("pedestrian")]
    assert len(labels) >= 20
    extents = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    assert [(one, other) for one, other in itertools.combinations(extents, 2) if one.overlaps(other)] == []
    inside = ax.get_window_extent()
    assert all(inside.x0 <= extent.x0 and extent.x1 <= inside.x1 for extent in extents)


def test_figure_takes_the_shape_of_its_scene():
    pytest.importorskip("matplotlib")
    road = np.stack([np.linspace(0, 100, 20), np.zeros(20)], -1)
    width, height = plot.tracks([road]).get_size_inches()
    assert width == style.SIZE and height < style.SIZE / 1.5


def test_wrong_shapes_and_a_missing_library_are_named(monkeypatch):
    with pytest.raises(TaskError, match=r"^engine.plot: past has shape \[2, 3, 4\], allowed is \[n, n, 2\]"):
        style.array(np.zeros((2, 3, 4)), "past", (2,), 3)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"^engine.plot needs matplotlib, .* pip install .*\[plot\]'"):
        plot.tracks(np.zeros((2, 3, 2)))
