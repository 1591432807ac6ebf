"""A module of this tree run as a program, as `python -m MODULE` would."""

import os
import runpy
import sys


def main(argv: list[str]) -> None:
    """Runs the module argv[0] with the arguments that follow."""
    # `bazel run` starts a program in a folder of its own; paths on the command line
    # are meant from where the command was given.
    os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    # Processes that the program starts find the same modules.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    sys.argv[1:] = argv[1:]
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
