"""`convoy plot`: shows the curves of runs in the terminal, or writes them as a picture."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from engine.cli import common
from engine.cluster import output
from engine.cluster.exit_status import ExitStatus

DESCRIPTION = """
Shows the curves of runs: of the loss, and of the metrics of the Task, in training and in each
evaluation. It reads metrics.jsonl, also while a run trains.

  convoy plot runs/digits                                in the terminal
  convoy plot runs/digits --metric=accuracy              one metric, of training and of evaluations
  convoy plot runs/digits --metric=learning_rate         of the engine
  convoy plot runs/a runs/b --metric=heldout/loss        runs in one chart
  convoy plot runs/digits --out=curves.png               a picture: png, svg or pdf (extra: plot)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy plot`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory")
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="metric to show; may be given several times"
    )
    parser.add_argument("--out", metavar="FILE", help="write a picture instead: NAME.png, NAME.svg or NAME.pdf")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy plot`."""
    from engine.checkpoint.bucket_copy import readable
    from engine.plot.curves import choose_panels, read_curves
    from engine.plot.picture import check_file, write_picture
    from engine.plot.terminal import chart
    from engine.run.directory import RunDirectory

    common.refuse_overrides(overrides, "plot")
    if args.out:
        check_file(Path(args.out))
    found = {name: read_curves(RunDirectory(readable(name)).metrics) for name in args.runs}
    panels = choose_panels(_short(found), args.metric)
    if args.out:
        write_picture(Path(args.out), panels)
        print(f"wrote {', '.join(panel.title for panel in panels)} to {args.out}")
        return ExitStatus.DONE
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    color = output.is_terminal(sys.stdout) and "NO_COLOR" not in os.environ
    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    charts = []
    for panel in panels:
        told_apart = color or len(panel.curves) == 1  # dots of two curves look alike without colour
        charts.append(chart(panel, width, color=color, ascii_only="utf" not in encoding or not told_apart))
    print("\n\n".join(charts))
    return ExitStatus.DONE


def _short[T](runs: dict[str, T]) -> dict[str, T]:
    """Returns the runs by the last part of their names, if these differ."""
    short = {name.rstrip("/").rpartition("/")[2]: value for name, value in runs.items()}
    return short if len(short) == len(runs) else runs
