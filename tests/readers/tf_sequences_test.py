"""Steps of a sequence are stacked, or stay a list where their lengths differ."""

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers.tf_features import parse_feature
from engine.readers.tf_sequences import sequence_entry
from tests.readers.image_files import encoded, picture


def entry(spec, steps):
    return sequence_entry("x", parse_feature("x", spec), steps)


def test_steps_are_stacked_or_listed():
    assert entry("float32", [("float32", [1.0]), ("float32", [2.0])]).tolist() == [1, 2]
    ragged = ("int64", [None, 2])
    found = entry(ragged, [("int64", [1, 2]), ("int64", [3, 4, 5, 6])])
    assert [step.tolist() for step in found] == [[[1, 2]], [[3, 4], [5, 6]]]
    assert entry(ragged, [("int64", [1, 2]), ("int64", [3, 4])]).shape == (2, 1, 2)
    assert [step.tolist() for step in entry(("str", [None]), [("bytes", [b"a"]), None])] == [["a"], []]
    assert entry("bytes", [("bytes", [b"a\0"])]).tolist() == [b"a\0"]


@pytest.mark.parametrize(
    ("spec", "shape", "kind"),
    [("int8", (0,), "i"), (("float32", [None, 3]), (0, 0, 3), "f"), ("str", (0,), "U"), ("image", (0, 0, 0, 3), "u")],
)
def test_sequence_without_steps_has_the_shape_of_its_description(spec, shape, kind):
    found = entry(spec, [])
    assert (found.shape, found.dtype.kind) == (shape, kind)


def test_images_of_one_size_are_stacked():
    images = [("bytes", [encoded(picture(4, 6, seed), "PNG")]) for seed in range(2)]
    assert entry("image", images).tolist() == [picture(4, 6, seed).tolist() for seed in range(2)]
    assert entry(("image", [2, 2]), images).shape == (2, 2, 2, 3)
    assert entry(("image", [2, 2]), []).shape == (0, 2, 2, 3)


def test_step_without_values_has_the_default_or_is_an_error():
    assert entry(("float32", [], -1.0), [("float32", [1.0]), None]).tolist() == [1, -1]
    with pytest.raises(DataError, match="step 1: feature 'x' is missing"):
        entry("float32", [("float32", [1.0]), None])
    with pytest.raises(DataError, match=r"step 0: feature 'x' has 1 values, which do not fit the shape \[2\]"):
        entry(("float32", [2]), [("float32", [1.0])])
    assert isinstance(entry("float32", [("float32", [1.0])]), np.ndarray)
