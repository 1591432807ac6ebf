"""`convoy bench`: measures the latency of the programs of a bundle."""

import argparse
import re
import sys

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster.exit_status import ExitStatus

DESCRIPTION = """
Measures each program of a bundle in a process of its own: the times of calls after a
warm-up, of the first call, and of loading; the memory; and what its layers cost. A
call takes arrays of NumPy and returns arrays of NumPy.

  convoy export runs/digits --format=stablehlo --out=digits.zip
  convoy bench digits.zip --eager=runs/digits         and the model of the run
  convoy bench digits.zip --limit=predict:p99:500ms   exit code 1 if it is slower

ONNX programs need onnxruntime, in this environment, or in that of --onnx-python
or CONVOY_ONNX_PYTHON.
On a machine without Convoy, python measure.py in a bundle does the same.
"""
MOST_CALLS = 10**6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy bench`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", help="folder or zip file of convoy export")
    parser.add_argument("--entry", action="append", default=[], metavar="NAME", help="an entry point (default: all)")
    parser.add_argument("--program", choices=("stablehlo", "onnx"), help="default: both")
    parser.add_argument("--calls", type=int, default=1000, metavar="N", help="measured calls (default: 1000)")
    parser.add_argument("--warmup", type=int, default=100, metavar="N", help="calls before them (default: 100)")
    parser.add_argument("--batch", type=int, metavar="N", help="rows of a call (default: 1)")
    parser.add_argument("--cores", default="", metavar="LIST", help="such as 0,2-3 (default: the first usable core)")
    parser.add_argument("--onnx-python", metavar="PATH", help="a Python interpreter that has onnxruntime")
    parser.add_argument("--eager", metavar="RUN", help="measure the model of the run, too, without jax.jit")
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="ENTRY:NAME:VALUE",
        help="exit code 1 above it: predict:p99:2ms, predict:memory:500MiB; may be repeated",
    )
    parser.add_argument("--layers", type=int, default=10, metavar="N", help="layers in a table (default: 10)")
    parser.add_argument("--json", metavar="FILE", help="write the results, in seconds and bytes")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy bench`."""
    from engine.base import json_text
    from engine.bundles import bench, bench_text
    from engine.run import atomic
    from engine.storage.mounts import local_path

    common.refuse_overrides(overrides, "bench")
    limits = [bench.Limit.parse(text) for text in args.limit]
    options = bench.Options(
        entries=args.entry,
        programs=(args.program,) if args.program else bench.Options.programs,
        calls=_checked("calls", args.calls, 1),
        warmup=_checked("warmup", args.warmup, 0),
        batch=None if args.batch is None else _checked("batch", args.batch, 1),
        cores=cores_of(args.cores),
        onnx_python=args.onnx_python,
        eager=args.eager,
    )
    _checked("layers", args.layers, 0)
    report = local_path(args.json) if args.json else None
    if report is not None and (report.is_dir() or not report.parent.is_dir()):
        raise ConfigError(f"--json={args.json}: no file can be written there. Name a file in a folder that exists.")
    found = bench.bench(args.bundle, options, on_message=common.say)
    exceeded = bench.check_limits(limits, found)
    if report is not None:
        atomic.write_text(report, json_text.dumps(bench_text.to_json(found)) + "\n")
    print(bench_text.text(found, args.layers))
    for sentence in exceeded:
        print(sentence, file=sys.stderr)
    return ExitStatus.USER_ERROR if exceeded else ExitStatus.DONE


def _checked(name: str, value: int, least: int) -> int:
    if not least <= value <= MOST_CALLS:
        raise ConfigError(f"--{name}={value}: allowed is a whole number from {least} to {MOST_CALLS:,}.")
    return value


def cores_of(text: str) -> list[int]:
    """Returns the numbers in a list such as "0,2-3". Raises ConfigError if it is none."""
    found: list[int] = []
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise ConfigError(f"--cores={text}: found {part!r}. Write numbers of cores: 0, or 0,2-3.")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found
