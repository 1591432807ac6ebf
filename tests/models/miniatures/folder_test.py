"""A miniature is written to its default folder, if that is absent, and to no other folder."""

import sys
import types
from pathlib import Path

import pytest

from convoy_zoo.models.miniatures import folder
from convoy_zoo.models.miniatures.folder import make_if_default


@pytest.fixture
def written(tmp_path, monkeypatch) -> list[Path]:
    """Folders that a dataset of this test was written to."""
    found: list[Path] = []

    def write(where):
        Path(where).mkdir(parents=True)
        found.append(Path(where))

    name = f"{folder.__package__}.of_test"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[name], "write", write, raising=False)
    monkeypatch.chdir(tmp_path)
    return found


def test_only_an_absent_default_folder_is_made(written):
    make_if_default("of_test", "data/other")
    assert not written
    for _ in range(2):
        make_if_default("of_test", "data/miniatures/of_test")
    assert len(written) == 1 and [path.name for path in Path("data/miniatures").iterdir()] == ["of_test"]


def test_the_faster_of_two_processes_wins(written, monkeypatch):
    rename = Path.rename

    def late(path, target):
        Path(target).mkdir()
        (Path(target) / "theirs").touch()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    make_if_default("of_test", "data/miniatures/of_test")
    assert [str(path) for path in Path("data").rglob("*")] == [
        "data/miniatures",
        "data/miniatures/of_test",
        "data/miniatures/of_test/theirs",
    ]
