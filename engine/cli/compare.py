"""`convoy compare`: what differs between runs, and whether the differences of their results are noise."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster.exit_status import ExitStatus
from engine.storage.mounts import local_path

if TYPE_CHECKING:
    from engine.experiments.comparison import Comparison
    from engine.experiments.gates import GateResult

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
  convoy compare runs/digits runs/wide --gate=a.toml   exit code 1 if a rule of a.toml fails
  convoy compare runs/wide --gate=b.toml               the same without a base
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy compare`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("base", metavar="RUN", help="the run to compare with")
    parser.add_argument("others", metavar="RUN", nargs="*", help="the runs whose differences are shown")
    parser.add_argument("--group", default="", metavar="TAG", help="resample the values of a tag of the examples")
    parser.add_argument(
        "--examples", type=int, default=10, metavar="N", help="list the N examples that changed most (default: 10)"
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=1000,
        metavar="N",
        help="resamples of the bootstrap, up to 16 times as many where it is close (default: 1000)",
    )
    parser.add_argument(
        "--gate", metavar="FILE", help="judge the runs by the rules of a TOML file; exit code 1 if one fails"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the verdicts of the gate for a code review")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print a JSON object")
    shown.add_argument("--html", metavar="FILE", help="write a page with charts, as convoy report does")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy compare`."""
    from engine.experiments import gate_text
    from engine.experiments.gate_file import read_rules
    from engine.experiments.gates import judge

    common.refuse_overrides(overrides, "compare")
    _check(args)
    gate = None
    with gate_text.written(args.markdown) as markdown:
        rules = read_rules(Path(args.gate)) if args.gate else ()
        found = _compared(args) if args.others else None
        if rules:
            gate = judge(rules, args.gate, found, [Path(args.base)], resamples=args.resamples, group=args.group)
            markdown.append(gate.markdown)
    _show(args, found, gate)
    return ExitStatus.DONE if gate is None or gate.passed else ExitStatus.USER_ERROR


def _check(args: argparse.Namespace) -> None:
    if not 100 <= args.resamples <= 10**6:
        raise ConfigError(f"--resamples = {args.resamples}: allowed are 100 to 1,000,000.")
    if args.examples < 0:
        raise ConfigError(f"--examples = {args.examples}: allowed is a whole number from 0.")
    if not args.others and not args.gate:
        raise ConfigError("compare: found one run. Give two or more, or one and --gate=FILE.")
    if not args.others and args.html:
        raise ConfigError("--html: found one run. Give two or more; convoy report writes a page of one.")
    if args.html and Path(args.html).suffix not in (".html", ".htm"):
        raise ConfigError(f"--html = {args.html}: found the ending {Path(args.html).suffix!r}. Allowed: NAME.html.")
    if args.markdown and not args.gate:
        raise ConfigError("--markdown: writes the verdicts of a gate. Add --gate=FILE.")


def _compared(args: argparse.Namespace) -> "Comparison":
    from engine.experiments.compare import Options, compare
    from engine.observe.progress import CountProgress

    progress = CountProgress("comparing", "parts", delay_s=3.0)
    options = Options(group=args.group, resamples=args.resamples, examples=args.examples, on_progress=progress.update)
    try:
        return compare([Path(args.base), *map(Path, args.others)], options)
    finally:
        progress.close()


def _show(args: argparse.Namespace, found: "Comparison | None", gate: "GateResult | None") -> None:
    from engine.base import json_text
    from engine.experiments import gate_text
    from engine.experiments.compare_table import text
    from engine.experiments.comparison import to_json

    if args.json:
        print(json_text.dumps((to_json(found) if found else {}) | ({"gate": gate_text.to_json(gate)} if gate else {})))
        return
    compared = found and text(found)
    if args.html:
        from engine.report.page import write_report

        write_report([args.base, *args.others], local_path(args.html), found)
        compared = f"wrote {args.html}"
    print(*filter(None, (compared, gate and gate.text)), sep="\n\n")
