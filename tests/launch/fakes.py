"""Stand-ins for a scheduler's commands on the PATH, and the linters that come as packages."""

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def stand_in(folder: Path, name: str, text: str) -> None:
    """Writes a shell script of that name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def path_with(folder: Path) -> str:
    """The PATH on which the stand-ins of a folder come first."""
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def linter(name: str) -> str:
    """A program of the test packages: beside Python in an environment, in `bin` beside the packages under Bazel."""
    folders = [str(Path(sys.executable).parent), *(str(Path(folder) / "bin") for folder in sys.path)]
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))
    assert found, f"{name} is missing. It comes with pip install -e '.[test]'."
    return found
