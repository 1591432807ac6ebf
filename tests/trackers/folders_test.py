"""A run keeps its folder; another run of the same name gets one with a number."""

from typing import Any

from engine.trackers.folders import folder_of_run


def test_names_are_taken_once(tmp_path):
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    assert folder_of_run(tmp_path / "new", "a", first).name == "a"
    assert folder_of_run(tmp_path / "new", "a", second).name == "a-2"
    assert folder_of_run(tmp_path / "new", "a", first).name == "a"
    (tmp_path / "new" / "a-2").rmdir()
    assert folder_of_run(tmp_path / "new", "a", second).name == "a-2"
