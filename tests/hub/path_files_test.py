"""Files of `init.paths`: written and read, and files that are no such ones."""

import pytest

from engine.base.errors import CheckpointError
from engine.hub.path_files import read_paths, write_paths

ENTRIES = {"^a/kernel$": ("x.weight: ab->ba", "[2, 3]"), "^b$": (None, "random"), r'\d"': ("c\\1", "")}


def test_written_entries_are_read_and_can_be_imported(tmp_path, monkeypatch):
    write_paths(tmp_path / "names_there.py", ENTRIES, "Names.")
    wanted = {path: name for path, (name, _) in ENTRIES.items()}
    assert read_paths(tmp_path / "names_there.py", "--paths") == wanted
    monkeypatch.syspath_prepend(tmp_path)
    assert __import__("names_there").paths == wanted
    with pytest.raises(CheckpointError, match=r"names_there\.py: cannot be written .File exists.. Give the name of a"):
        write_paths(tmp_path / "names_there.py", ENTRIES, "Names.")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("paths = dict(a='b')", "cannot be read"),
        ("paths = {'a': 5}", "found the entry 'a': 5"),
        ("names = {}", "found 0 dictionaries paths"),
        ("paths = [", "cannot be read"),
        ("import os\npaths = {'a': os.sep}", "cannot be read"),
    ],
)
def test_other_files_are_refused_and_not_executed(tmp_path, text, found):
    (tmp_path / "p.py").write_text(text)
    with pytest.raises(CheckpointError) as error:
        read_paths(tmp_path / "p.py", "--paths")
    assert found in str(error.value) and str(error.value).endswith("all of text.")
