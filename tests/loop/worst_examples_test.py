"""The table of the worst examples has their indices, their scores and their text."""

import numpy as np

from engine import ArraySource
from engine.loop.worst_examples import WorstExamples
from tests.predicting import NAMES, Unreadable


def test_table_names_examples_by_index_and_text():
    table = WorstExamples(Unreadable({7})).table("loss", np.array([3.0, 2.0, 1.0]), np.array([4, 7, 0]))
    assert table.columns == {
        "example": [4, 7, 0],
        "loss": [3.0, 2.0, 1.0],
        "id": [NAMES[4], "", NAMES[0]],
        "raw": ["\x004", "", "\x000"],
    }


def test_examples_without_text_are_not_read_again():
    source = ArraySource({"x": np.zeros((2, 3))})
    worst = WorstExamples(source)
    source.arrays = {}
    assert worst.table("loss", np.array([1.0]), np.array([1])).columns == {"example": [1], "loss": [1.0]}
