"""`convoy goodput`: prints how the time of a run was spent."""

import argparse

from engine.cli import common
from engine.cluster.exit_status import ExitStatus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy goodput`."""
    parser.add_argument("run", help="run directory")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy goodput`."""
    from engine.api.saved_run import goodput

    common.refuse_overrides(overrides, "goodput")
    common.warn_of_missing_end(args.run)
    print(goodput(args.run))
    return ExitStatus.DONE
