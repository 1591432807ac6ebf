import numpy as np
import pytest

from engine import ArraySource, Padded
from engine.augmentation.padding import restore_padding, without_padding
from engine.base.errors import DataError
from tests.augmentation.scenes import assert_same


class Ragged:
    """Two examples with 3 and 5 points, and 2 boxes."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        count = 3 + 2 * index
        return {
            "points": np.ones((count, 3), np.float32),
            "boxes": np.ones((2, 7)),
            "label": np.ones(2, int),
            "n": count,
        }


def ordered(example):
    """Returns the entries in the order of their names."""
    return {name: ordered(example[name]) for name in sorted(example)} if isinstance(example, dict) else example


FIELDS = {"points": ["points"], "boxes": ["boxes", "label"]}


@pytest.mark.parametrize(
    "padded",
    [Padded(Ragged(), {"points": 6, "boxes": 4}, FIELDS), Padded(Ragged(), 5, "points")],
    ids=["axes", "one axis"],
)
def test_padding_is_removed_and_restored(padded):
    for index, count in enumerate((3, 5)):
        raw, padding = without_padding(padded, padded[index])
        assert_same(ordered(raw), ordered(Ragged()[index]))
        assert len(raw["points"]) == count
        assert_same(ordered(restore_padding(raw, padding)), ordered(padded[index]))


def test_other_examples_have_no_padding():
    example = {"x": np.ones(3)}
    assert without_padding(ArraySource({"x": np.ones((2, 3))}), example) == (example, None)
    assert restore_padding(example, None) is example


def test_more_elements_than_the_padding_holds_are_an_error():
    padded = Padded(Ragged(), {"points": 6, "boxes": 4}, FIELDS)
    raw, padding = without_padding(padded, padded[0])
    text = "after augmentation, points have points 7 elements, but all are padded to 6"
    with pytest.raises(DataError, match=text):
        restore_padding({**raw, "points": np.ones((7, 3))}, padding)
    with pytest.raises(DataError, match="boxes have boxes 3, label 2 elements"):
        restore_padding({**raw, "boxes": np.ones((3, 7))}, padding)
