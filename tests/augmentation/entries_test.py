import numpy as np
import pytest

from engine.augmentation.entries import array, entry, mask, replaced
from engine.base.errors import DataError

EXAMPLE = {"a": {"b": np.zeros((3, 4), np.float32), "c": {"d": np.ones(2, bool)}}, "e": "text"}


def test_replaced_copies_only_the_dicts_on_the_path():
    found = replaced(EXAMPLE, {"a/c/d": 1, "a/new/x": 2})
    assert found["a"]["c"] == {"d": 1} and found["a"]["new"] == {"x": 2}
    assert found["a"]["b"] is EXAMPLE["a"]["b"] and found["e"] is EXAMPLE["e"]
    assert EXAMPLE["a"]["c"]["d"] is not found["a"]["c"]["d"] and "new" not in EXAMPLE["a"]
    assert replaced(EXAMPLE, {}) is EXAMPLE


def test_missing_entry_is_named_with_a_similar_one():
    with pytest.raises(DataError, match=r"Rotate: the example has no entry 'a/g'. It has a/b, a/c/d, e. Did you"):
        entry(EXAMPLE, "a/g", "Rotate")


@pytest.mark.parametrize(
    ("path", "columns", "found"), [("a/b", (5,), r"float32\[3, 4\]"), ("a/c/d", (), r"bool\[2\]"), ("e", (), "a str")]
)
def test_other_shapes_and_dtypes_are_refused(path, columns, found):
    with pytest.raises(DataError, match=f"Rotate: {path} is {found}, allowed is a floating-point array SHAPE"):
        array(EXAMPLE, path, "Rotate", "SHAPE", columns)


def test_array_allows_at_least_so_many_columns():
    assert array(EXAMPLE, "a/b", "Rotate", "", (-4,)) is EXAMPLE["a"]["b"]
    with pytest.raises(DataError):
        array(EXAMPLE, "a/b", "Rotate", "", (-5,))


def test_mask_needs_bool_of_its_shape():
    assert mask(EXAMPLE, "a/c/d", "Rotate", (2,)).all()
    with pytest.raises(DataError, match=r"a/c/d is bool\[2\], allowed is bool\[3\]"):
        mask(EXAMPLE, "a/c/d", "Rotate", (3,))
