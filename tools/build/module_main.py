"""Runs a module of the repository as a program, as `python -m MODULE` does."""

import os
import runpy
import sys


def main(argv: list[str]) -> None:
    """Runs the module argv[0] with the arguments that follow."""
    # `bazel run` starts a program in the folder of its files. Paths on the command line are relative to the folder
    # where the user ran the command.
    os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    # Child processes import the same modules.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    sys.argv[1:] = argv[1:]
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
