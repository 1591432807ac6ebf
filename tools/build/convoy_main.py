"""The command `convoy` as a Bazel target."""

import os
import sys
from typing import NoReturn


def main(argv: list[str]) -> NoReturn:
    """Runs the command line argv, without the name of the program, and exits with its code."""
    from engine.cli.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    # `bazel run` starts a program in the folder of its files. Paths on the command line are relative to the folder
    # where the user ran the command.
    os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    # Child processes import the same modules.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

    from engine.cli.main import run

    run(argv)
