"""Readers agree with the golden files that outside programs wrote and read, without these programs.

Written by: python -m benchmarks.references --only=NOUN --golden=tests/benchmarks/golden/references
"""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.references.file_exchange import plain, tree_difference

GOLDEN = Path(__file__).parent / "golden" / "references"
ROWS = {"argoverse2_map": 4, "images": 31, "tables": 12, "tf_record": 6, "web_dataset": 1}
"""Noun -> number of items that its comparison prints."""


@pytest.mark.parametrize("noun", ROWS)
def test_golden_files_are_read_as_the_outside_program_reads_them(noun, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / noun, tmp_path / noun))  # readers write an index next to the files
    rows = list(importlib.import_module(f"benchmarks.references.{noun}").compared(folder))
    assert [row.item for row in rows if not row.agrees] == []
    assert len(rows) == ROWS[noun]


def test_each_golden_folder_has_a_comparison():
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(ROWS)


@pytest.mark.parametrize("noun", ["tables", "tf_record", "web_dataset"])
def test_changed_result_is_a_difference(noun, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / noun, tmp_path / noun))
    results = folder / "results.json"
    results.write_text(results.read_text().replace("1", "2"))
    assert not all(row.agrees for row in importlib.import_module(f"benchmarks.references.{noun}").compared(folder))


def test_difference_of_trees_is_that_of_their_numbers():
    found = plain({"a": np.array([1.0, 2.5]), "b": [b"x", (np.int64(2**62 + 1),)], "c": "t"})
    assert json.loads(json.dumps(found)) == found
    assert tree_difference(found, {"a": [1.0, 2.0], "b": ["x", [2**62 + 1]], "c": "t"}) == 0.5
    assert tree_difference([2**62 + 1], [2**62]) == 1
    for wrong in ({"a": [1.0]}, {**found, "c": "u"}, {**found, "a": [1.0]}, {**found, "c": 1}):
        assert tree_difference(found, wrong) == float("inf")
