"""`convoy compare`: what differs between runs, and whether the differences of their results are noise."""

import argparse
from pathlib import Path

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster.exit_status import ExitStatus

DESCRIPTION = """
Prints what differs between runs: settings, code, data, environment, and each result with a 95 %
interval of its difference. The first run is the base. Runs that differ in nothing but the seed
count as one. With several seeds on both sides, intervals are over seeds. Otherwise they are over
the examples, by a bootstrap. That needs the metrics of each example, which a run keeps with
evaluations.NAME.per_example=True; convoy evaluate adds them to a finished run.

  convoy compare runs/digits runs/wide                 a table
  convoy compare runs/a-0 runs/a-1 runs/b-0 runs/b-1   two seeds of each of two configs
  convoy compare runs/digits runs/wide --group=scene   examples of one scene are not independent
  convoy compare runs/digits runs/wide --json          one JSON object
  convoy compare runs/digits runs/wide --html=a.html   a page with charts, which needs no network
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy compare`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("base", metavar="RUN", help="the run to compare with")
    parser.add_argument("others", metavar="RUN", nargs="+", help="the runs whose differences are shown")
    parser.add_argument("--group", default="", metavar="TAG", help="resample the values of a tag of the examples")
    parser.add_argument(
        "--examples", type=int, default=10, metavar="N", help="list the N examples that changed most (default: 10)"
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=2000,
        metavar="N",
        help="resamples of the bootstrap, up to 16 times as many where it is close (default: 2000)",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print a JSON object")
    shown.add_argument("--html", metavar="FILE", help="write a page with charts, as convoy report does")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy compare`."""
    from engine.base import json_text
    from engine.experiments.compare import Options, compare
    from engine.experiments.compare_table import text
    from engine.experiments.comparison import to_json
    from engine.observe.progress import CountProgress

    common.refuse_overrides(overrides, "compare")
    if not 100 <= args.resamples <= 10**6:
        raise ConfigError(f"--resamples = {args.resamples}: allowed are 100 to 1,000,000.")
    if args.examples < 0:
        raise ConfigError(f"--examples = {args.examples}: allowed is a whole number from 0.")
    progress = CountProgress("comparing", "parts", delay_s=3.0)
    try:
        options = Options(
            group=args.group, resamples=args.resamples, examples=args.examples, on_progress=progress.update
        )
        found = compare([Path(args.base), *map(Path, args.others)], options)
    finally:
        progress.close()
    if args.html:
        from engine.report.page import write_report

        write_report([args.base, *args.others], Path(args.html), found)
        print(f"wrote {args.html}")
    else:
        print(json_text.dumps(to_json(found)) if args.json else text(found))
    return ExitStatus.DONE
