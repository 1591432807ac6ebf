"""The command `convoy` as a Bazel target."""

import os
import sys


def main(argv: list[str]) -> int | None:
    """Runs the command line argv, without the name of the program, and returns its exit code."""
    from engine.tuning.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()
    # `bazel run` starts a program in a folder of its own; paths on the command line
    # are meant from where the command was given.
    os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    # Processes that the program starts find the same modules.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

    from engine.main import main as convoy

    return convoy(argv)
