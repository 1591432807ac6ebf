"""Figures become PNG images, and what a Task draws wrongly is named."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from engine.base.errors import ConfigError, DataError, TaskError
from engine.observe.figure_files import png_bytes
from engine.training.figures import draw_example, draw_figure
from tests import zoo
from tests.drawing import Draw
from tests.predicting import Unreadable

EXAMPLE, PREDICTION = {"x": np.ones(16), "id": "a"}, {"scores/logits": np.zeros(4)}


def drawing(result):
    class Drawing(zoo.Classify):
        def figure(self, example, prediction):
            return result(example, prediction)

    return Drawing()


def missing(example, prediction):
    raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")


def test_image_has_the_name_of_its_file():
    image = draw_figure(Draw(), EXAMPLE, PREDICTION, "a/1.png")
    assert image.file == "a/1.png"
    assert png_bytes(image).startswith(b"\x89PNG")


def test_only_figures_of_matplotlib_are_closed(monkeypatch):
    closed = []
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", SimpleNamespace(close=closed.append))
    draw_figure(Draw(), EXAMPLE, PREDICTION, "")
    assert not closed
    figure = SimpleNamespace(savefig=lambda file, format: file.write(b"\x89PNG\r\n\x1a\n"))
    draw_figure(drawing(lambda example, prediction: figure), EXAMPLE, PREDICTION, "")
    assert closed == [figure]


@pytest.mark.parametrize(
    ("result", "kind", "text"),
    [
        (
            lambda example, prediction: 3.0,
            TaskError,
            r"^Drawing.figure returned a float. Return a figure of matplotlib",
        ),
        (
            lambda example, prediction: example["y"],
            TaskError,
            r"^Drawing.figure: there is no 'y' \(.*\). It got example: id text, x float64\[16\]; prediction: score",
        ),
        (lambda example, prediction: 1 / 0, TaskError, r"^Drawing.figure failed: ZeroDivisionError: .*_test.py:\d+"),
        (
            lambda example, prediction: example["x"][16],
            TaskError,
            r"^Drawing.figure failed: IndexError: .*_test.py:\d+ in <lambda>\). It got example: id text, x "
            r"float64\[16\]; prediction: scores/logits float64\[4\]\.$",
        ),
        (
            lambda example, prediction: example["id"] + 1,
            TaskError,
            r"failed: TypeError: .* It got example: id text, x ",
        ),
        (missing, ConfigError, r"^Drawing.figure needs matplotlib, .*: pip install .*\[plot\]'"),
    ],
)
def test_wrong_figures_are_named(result, kind, text):
    with pytest.raises(kind, match=text):
        draw_figure(drawing(result), EXAMPLE, PREDICTION, "")


def test_example_that_cannot_be_read_again_is_a_data_error():
    image = draw_example(Draw(), Unreadable(), 3, PREDICTION, "a.png")
    np.testing.assert_array_equal(image.pixels, draw_figure(Draw(), Unreadable()[3], PREDICTION, "").pixels)
    with pytest.raises(DataError, match=r"^example 3 of .*Unreadable: cannot be read for its figure: OSError: gone \("):
        draw_example(Draw(), Unreadable({3}), 3, PREDICTION, "a.png")


def test_object_that_pyplot_cannot_close_is_named(monkeypatch):
    def close(figure):
        raise TypeError("close() argument must be a Figure")

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", SimpleNamespace(close=close))
    figure = SimpleNamespace(savefig=lambda file, format: file.write(b"\x89PNG\r\n\x1a\n"))
    with pytest.raises(TaskError, match=r"^Drawing.figure failed: TypeError: close\(\) argument must be a Figure"):
        draw_figure(drawing(lambda example, prediction: figure), EXAMPLE, PREDICTION, "")
