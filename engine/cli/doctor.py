"""`convoy doctor`: prints the processes, versions and devices of this machine, and tests a collective."""

import argparse

from engine.cli import common
from engine.cluster import processes
from engine.cluster.exit_status import ExitStatus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy doctor`."""
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for other processes (default: 60)")
    common.add_process_flags(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy doctor`."""
    from engine.launch import doctor

    common.refuse_overrides(overrides, "doctor")
    detection = common.detection(args)
    for line in doctor.before_joining(detection):
        print(line, flush=True)
    processes.initialize(detection.process, timeout_s=args.timeout)
    for line in doctor.after_joining():
        print(line, flush=True)
    return ExitStatus.DONE
