"""Fake commands of a scheduler on the PATH, and the linters that are installed as Python packages."""

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fake_command(folder: Path, name: str, text: str) -> None:
    """Writes an executable shell script of that name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def path_with(folder: Path) -> str:
    """Returns a PATH on which the fake commands of a folder come first."""
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def linter(name: str) -> str:
    """Returns the path of a linter: next to Python in a virtual environment, in `bin` next to the packages in Bazel."""
    folders = [str(Path(sys.executable).parent), *(str(Path(folder) / "bin") for folder in sys.path)]
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))
    assert found, f"{name} is missing. Install it: pip install -e '.[test]'."
    return found
