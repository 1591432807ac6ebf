"""Readers agree with the golden files that outside programs wrote and read, without these programs.

Written by: python -m benchmarks.references --only=NOUN --golden=tests/benchmarks/golden/references
"""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.references.environment import Environment
from benchmarks.references.file_exchange import compare_files, exchanged, plain, tree_difference
from benchmarks.references.rows import Row

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


@dataclasses.dataclass(frozen=True)
class Writes(Environment):
    """An outside program that writes one text for each set."""

    text: str = ""

    def run(self, folder):
        for item in json.loads((folder / "inputs.json").read_text())["sets"]:
            (folder / item).mkdir()
            (folder / item / "text").write_text(self.text)
        (folder / "results.json").write_text("{}")


def test_golden_files_of_other_items_stay_as_they_are(tmp_path):
    def compare(text, *items):
        environment = Writes("backbones", tmp_path, tmp_path / "golden", items=items, text=text)
        return [
            row.item
            for row in compare_files(
                environment,
                {"sets": ["a", "b", "c"]},
                lambda folder: (Row(x, 1, 0.0) for x in exchanged(folder)[0]),
                golden_sets=2,
            )
        ]

    folder = tmp_path / "golden" / "backbones"
    assert compare("first") == ["a", "b", "c"]
    (folder / "inputs.json").unlink()
    assert compare("second", "c", "b") == ["b", "c"]
    assert {path.name: (path / "text").read_text() for path in folder.iterdir() if path.is_dir()} == {
        "a": "first",
        "b": "second",
    }
    assert exchanged(folder)[0] == ["a", "b"]
