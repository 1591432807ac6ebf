"""`convoy compare`: what differs between two runs, and whether the differences of their results are noise."""

import argparse
import dataclasses
from pathlib import Path

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster.exit_status import ExitStatus

DESCRIPTION = """
Prints what differs between two runs: settings, code, data, and each result with a 95 % interval
of its difference. Intervals are those of a bootstrap over examples. They need the metrics of each
example, which a run keeps with evaluations.NAME.per_example=True; convoy evaluate adds them to a
finished run.

  convoy compare runs/digits runs/digits               a table
  convoy compare runs/digits runs/digits --json        one JSON object
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy compare`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("first", metavar="RUN", help="the run to compare with")
    parser.add_argument("second", metavar="RUN", help="the run whose differences are shown")
    parser.add_argument("--resamples", type=int, default=2000, help="resamples of the bootstrap (default: 2000)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy compare`."""
    from engine.base import json_text
    from engine.experiments.compare import compare
    from engine.experiments.compare_table import text
    from engine.observe.progress import CountProgress

    common.refuse_overrides(overrides, "compare")
    if not 100 <= args.resamples <= 10**6:
        raise ConfigError(f"--resamples = {args.resamples}: allowed are 100 to 1,000,000.")
    progress = CountProgress("comparing", "parts", delay_s=3.0)
    try:
        found = compare(Path(args.first), Path(args.second), args.resamples, progress.update)
    finally:
        progress.close()
    if args.json:
        runs = [run.path for run in found.runs]
        results = [{**dataclasses.asdict(result), "interval": result.interval._asdict()} for result in found.results]
        parts = {"settings": found.settings, "code": found.code, "data": found.data}
        print(json_text.dumps({"runs": runs, **parts, "results": results, "notes": list(found.notes)}))
    else:
        print(text(found))
    return ExitStatus.DONE
