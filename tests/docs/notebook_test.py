"""The notebooks of the docs run in empty folders, and are stored with the outputs of a run.

With CONVOY_UPDATE_GOLDENS=1 the test stores the outputs: run it after a change of a notebook.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests import runs
from tests.cells import code_cells
from tests.docs import pages

FOLDER = pages.ROOT / "docs" / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
NAMES = [file.name for file in FILES]
UPDATE = "CONVOY_UPDATE_GOLDENS" in os.environ


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A folder with the notebooks after a run of all cells. They run in one process, on one device as for a user."""
    folder = tmp_path_factory.mktemp("notebooks")
    words = [sys.executable, "-W", "error", "-m", "tests.cells", *map(str, FILES)]
    env = runs.environment(PYTHONPATH=str(pages.ROOT), **({} if UPDATE else runs.COMPILING))
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    if UPDATE:
        for name in NAMES:
            shutil.copy(folder / name, FOLDER / name)
    return folder


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def kinds(cell):
    """What a cell prints and shows: streams, and MIME types."""
    return [output.get("name") or sorted(output["data"]) for output in cell["outputs"]]


def test_there_are_three_notebooks():
    assert NAMES == ["first-run.ipynb", "inspect-a-run.ipynb", "own-model.ipynb"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_and_is_stored_with_outputs(name, found):
    stored, now = read(FOLDER / name), read(found / name)
    assert [kinds(cell) for cell in code_cells(stored)] == [kinds(cell) for cell in code_cells(now)]
    assert [cell["source"] for cell in stored["cells"]] == [cell["source"] for cell in now["cells"]]
    assert "stderr" not in str([kinds(cell) for cell in code_cells(now)]), "a warning"
    assert not any(text in json.dumps(stored) for text in (str(pages.ROOT), str(found), "/tmp/"))


@pytest.mark.parametrize("name", NAMES)
def test_each_figure_has_a_description(name):
    for cell in code_cells(read(FOLDER / name)):
        assert any("image/png" in kind for kind in kinds(cell)) == bool(cell["metadata"].get("alt"))
