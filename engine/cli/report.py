"""`convoy report`: writes the report of runs as one HTML file."""

import argparse
from pathlib import Path

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster.exit_status import ExitStatus
from engine.storage.mounts import local_path, shown

DESCRIPTION = """
Writes what happened in one or several runs as one HTML file that needs no network: curves, time,
memory, results by slice, worst examples, settings and warnings. It reads the files of the runs,
also while they train.

  convoy report runs/digits                      runs/digits/report.html
  convoy report runs/digits --out=report.html
  convoy report runs/a runs/b --out=both.html    curves of both, and how the runs differ
  convoy report sweeps/digits                    trials, importance of settings, curves of a sweep
"""
NAME = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy report`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory, or the folder of a sweep")
    parser.add_argument(
        "--out", metavar="FILE", help=f"the file (default: {NAME} in the run directory; of several runs in this folder)"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy report`."""
    from engine.experiments.index import SWEEP
    from engine.report.page import write_report

    common.refuse_overrides(overrides, "report")
    output = local_path(args.out or (Path(args.runs[0]) / NAME if len(args.runs) == 1 else NAME))
    if output.suffix not in (".html", ".htm"):
        raise ConfigError(f"--out = {output}: found the ending {output.suffix!r}. Allowed: NAME.html.")
    if len(args.runs) == 1 and (local_path(args.runs[0]) / SWEEP).is_file():
        from engine.sweeps.report import write_sweep_report

        write_sweep_report(local_path(args.runs[0]), output)
    else:
        write_report(args.runs, output)
    print(f"wrote {shown(output)}")
    return ExitStatus.DONE
