"""Finding the examples that several runs share: by keys, or by indices of the same data."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from engine.experiments.joined import Joined, join
from engine.experiments.record import RunRecord
from engine.experiments.variants import Run
from engine.metrics.slices import Examples
from tests.experiments.made import mean_of


def joined(*found: Examples, contents: tuple[str, ...] = ()) -> Joined | str:
    """Joins runs, the first of which is the base."""
    files = {Path(str(number)): examples for number, examples in enumerate(found)}
    runs = []
    for number, path in enumerate(files):
        data = {"evaluations.val.data": contents[number] if contents else "same"}
        runs.append(Run(Path(f"run{number}"), RunRecord(path="", state=""), {}, {}, data))
        runs[-1].__dict__["files"] = {"val": path}  # a cached property
    return join("val", runs[:1], runs[1:], files.__getitem__)


def examples(indices: np.ndarray, keys: np.ndarray | None = None) -> Examples:
    tags = {} if keys is None else {"key": keys}
    return Examples(indices, {"odd": indices % 2 == 1}, {"error": mean_of(indices)}, tags)


def totals(found: Joined | str) -> list[list[float]]:
    assert isinstance(found, Joined)
    return [np.asarray(run.metrics["error"].total).tolist() for side in found.sides for run in side]  # pyright: ignore[reportAttributeAccessIssue]


def test_examples_are_paired_by_their_index():
    found = joined(examples(np.arange(6)), examples(np.array([2, 3, 5, 8])))
    assert totals(found) == [[2, 3, 5], [2, 3, 5]]
    assert isinstance(found, Joined)
    assert [note.split(" are ")[0] for note in found.notes] == [
        "val: 3 of the 6 examples of run0",
        "val: 1 of the 4 examples of run1",
    ]
    assert [(name, rows.tolist()) for name, rows in found.slice_rows()] == [("odd", [1, 2])]


@pytest.mark.parametrize("keys", [np.array(["a", "b", "c", "d"]), np.array([4, 3, 2, 1])])
def test_examples_of_other_data_are_paired_by_their_keys(keys):
    found = joined(examples(np.arange(4), keys), examples(np.arange(3), keys[[2, 0, 1]]), contents=("x", "y"))
    assert totals(found) == [[0, 1, 2], [1, 2, 0]]


def test_keys_that_repeat_are_not_used():
    keys = np.array(["a", "a", "b"])
    assert totals(joined(examples(np.arange(3), keys), examples(np.arange(3), keys))) == [[0, 1, 2]] * 2
    reason = joined(examples(np.arange(3), keys), examples(np.arange(3), keys), contents=("x", "y"))
    assert isinstance(reason, str) and "the runs were evaluated on other examples" in reason


def test_file_says_which_data_it_is_of():
    """`convoy evaluate` may have read other data than those of the config, of which the run knows the content."""
    one, other = (dataclasses.replace(examples(np.arange(3)), content=content) for content in "xy")
    reason = joined(one, other)
    assert isinstance(reason, str) and "the runs were evaluated on other examples" in reason
    assert isinstance(joined(one, one, contents=("y", "z")), Joined)


def test_indices_of_unknown_data_are_paired_with_a_note():
    found = joined(examples(np.arange(3)), examples(np.arange(3)), contents=("x", ""))
    assert isinstance(found, Joined)
    assert [note.split(", so")[0] for note in found.notes] == [
        "val: it is not recorded which data run1 was evaluated on"
    ]


def test_slice_with_other_examples_in_another_run_has_a_note():
    one, other = examples(np.arange(4)), examples(np.arange(4))
    other = dataclasses.replace(other, slices={"odd": np.arange(4) > 1})
    found = joined(one, other)
    assert isinstance(found, Joined) and [rows.tolist() for _, rows in found.slice_rows()] == [[1, 3]]
    assert [note.partition(".")[0] for note in found.notes] == ["val: the slice odd has other examples in some runs"]


def test_no_common_example_is_a_reason():
    reason = joined(examples(np.arange(3)), examples(np.arange(3, 6)))
    assert reason == "val: the runs have no example in common by their index, so no interval is given."


def test_groups_are_the_values_of_a_tag():
    tags = {"scene": np.array(["x", "x", "y"]), "key": np.array([1, 2, 3]), "time": np.arange(3), "all": np.zeros(3)}
    found = joined(*[Examples(np.arange(3), {}, {"error": mean_of(np.arange(3))}, tags)] * 2)
    assert isinstance(found, Joined)
    assert found.groups("scene").tolist() == [0, 0, 1] and found.groups("").tolist() == [0, 1, 2]
    assert found.group_tags() == {"scene": 2}
