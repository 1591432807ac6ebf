"""Results by name, and their form in JSON and as text."""

import subprocess
import sys

import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.metrics.results import (
    CURVE_POINTS,
    MAX_NUMBERS,
    Bins,
    Curve,
    Image,
    Table,
    json_values,
    named_results,
    result_text,
    scalars,
    too_large,
)


class Figure:
    """Like a figure of matplotlib, whose only method used here is `savefig`."""

    def savefig(self, file, format):
        file.write(b"PNG" if format == "png" else b"")


def test_entries_of_dicts_are_named_by_their_path():
    value = {"": 0.5, "car": {"0.5": np.float32(0.25), "1": np.array(1)}, 2: [1, 2]}
    found = named_results("heldout/ap", value, "Ap.compute")
    assert list(found) == ["heldout/ap", "heldout/ap/car/0.5", "heldout/ap/car/1", "heldout/ap/2"]
    assert scalars(found) == {"heldout/ap": 0.5, "heldout/ap/car/0.5": 0.25, "heldout/ap/car/1": 1}
    assert json_values(found)["heldout/ap/2"] == [1, 2]


def test_a_figure_becomes_a_png_image():
    found = named_results("m", Figure(), "M.compute")["m"]
    assert isinstance(found, Image)
    assert found.pixels == b"PNG"


@pytest.mark.parametrize("value", ["text", None, 1j, ["a"], np.array("a"), {"x": object()}])
def test_other_values_are_errors(value):
    with pytest.raises(TaskError, match=r"^M.compute returned a .* as 'm(/x)?'. Allowed: a number, an array"):
        named_results("m", value, "M.compute")


def test_equal_names_and_images_of_other_shapes_are_errors():
    with pytest.raises(TaskError, match=r"M.compute returned two values named 'm/a/b'. Rename one"):
        named_results("m", {"a/b": 1, "a": {"b": 2}}, "M.compute")
    with pytest.raises(TaskError, match=r"M.compute returned an Image of shape \[2, 2, 4\] as 'm'"):
        named_results("m", Image(np.zeros((2, 2, 4))), "M.compute")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Image(np.zeros((0, 3))), r"an Image of shape \[0, 3\] as 'm'"),
        (Image(b"GIF89a"), r"an Image of bytes that are no PNG file as 'm'. Save it as PNG"),
        (Curve(np.zeros(3), np.zeros(2)), r"a Curve of x \[3\] and y \[2\] as 'm'. Allowed: \[points\] for both"),
        (Table({"a": [1], "b": []}), r"a Table with columns of the lengths {'a': 1, 'b': 0} as 'm'. Allowed: columns"),
        (Table({"a": [None]}), r"a Table .* with numbers and text"),  # pyright: ignore[reportArgumentType]
        (Bins(np.zeros(3), np.zeros(3)), r"Bins of edges \[3\] and counts \[3\] as 'm'. Allowed: \[bins \+ 1\] and"),
    ],
)
def test_values_that_cannot_be_drawn_are_errors(value, text):
    with pytest.raises(TaskError, match=f"^M.compute returned {text}"):
        named_results("m", value, "M.compute")


def test_json_has_no_images_and_no_large_arrays():
    values = {"a": 1, "b": Image(np.zeros((2, 2))), "c": np.zeros(MAX_NUMBERS), "d": np.zeros(MAX_NUMBERS + 1)}
    values |= {"e": Bins(np.array([0.0, 1]), np.array([3])), "f": Curve(np.arange(2), np.ones(2), "recall", "p")}
    found = json_values(values)
    assert list(found) == ["a", "c", "e", "f"]
    assert found["e"] == {"edges": [0, 1], "counts": [3]}
    assert found["f"] == {"recall": [0, 1], "p": [1, 1]}
    assert too_large(values) == ["d"]


def test_long_curve_is_thinned_evenly_along_its_length():
    x = np.concatenate([np.zeros(100_000), np.linspace(0, 1, 100)])  # almost all points at the start
    curve = Curve(x, x**2).thinned()
    assert CURVE_POINTS / 4 < len(curve.x) <= CURVE_POINTS
    assert (curve.x[0], curve.x[-1]) == (0, 1)
    assert np.diff(curve.x).max() < 0.05
    np.testing.assert_array_equal(curve.y, curve.x**2)


def test_text_shows_numbers_and_short_arrays():
    assert result_text(0.123456789) == "0.123457"
    assert result_text(np.array([[1, 2], [3, 4]])) == "[[1., 2.], [3., 4.]]"
    assert result_text(np.zeros(17)) == result_text(Image(b"")) == ""


def test_text_of_a_table_has_at_most_ten_rows():
    assert result_text(Table({"slice": ["far", "a"], "loss": [0.5, 1 / 3]})) == (
        "\n  slice      loss\n    far       0.5\n      a  0.333333"
    )
    text = result_text(Table({"example": list(range(12))}))
    assert text.endswith("\n        9\n  and 2 more")
    assert json_values({"a": Table({"x": [1, 2], "y": ["p", "q"]})}) == {"a": {"x": [1, 2], "y": ["p", "q"]}}
    tables = {f"{rows}": Table(dict.fromkeys("abc", [0.5] * rows)) for rows in (MAX_NUMBERS, MAX_NUMBERS + 1)}
    assert too_large(tables) == ["4097"]


def test_importing_results_loads_no_jax():
    code = "import sys, engine.metrics.results; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
