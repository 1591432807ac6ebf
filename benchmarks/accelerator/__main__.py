"""Measures the engine on an accelerator: correctness of every kernel, and speed compared with plain JAX and PyTorch.

python -m benchmarks.accelerator [--rows=decoder-125m,vit] [--limit=540] [--json=FILE]
python -m benchmarks.accelerator --tiny      tries every row at tiny sizes, on any machine
python -m benchmarks.accelerator --list      lists the rows

Each row runs in a process of its own. Text table and JSON file are rewritten after every result, so that a command
which is stopped leaves what it has measured. A row that fails does not stop the others; then the exit code is 1. It
needs nothing but the packages that the engine needs. torch is a baseline where it is installed, except on a TPU.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.accelerator import runner, table
from benchmarks.accelerator.rows import ROWS, RowSpec

ROW_LIMIT_S = 150.0
"""Longest time of one row, with its baselines."""
TINY_ROW_LIMIT_S = 600.0
"""The same at tiny sizes, which measure nothing and may run on a busy machine."""


def parse(argv: Sequence[str] | None, rows: Mapping[str, RowSpec]) -> argparse.Namespace:
    """Parses the command line; `rows` becomes a list of names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", metavar="NAMES", help="the rows to run, separated by commas (default: all)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="stop after so many seconds")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the programs")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=Path("accelerator.json"),
        help="results; the table is in the same folder",
    )
    parser.add_argument("--torch", metavar="PYTHON", default="", help="an interpreter that has torch (default: this)")
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    args = parser.parse_args(argv)
    args.rows = list(rows) if args.rows is None else args.rows.split(",")
    if unknown := [name for name in args.rows if name not in rows]:
        parser.error(f"--rows: {', '.join(unknown)} is unknown. Rows: {', '.join(rows)}.")
    return args


def main(argv: Sequence[str] | None = None, rows: Mapping[str, RowSpec] = ROWS) -> int:
    """Runs the rows and returns 1 if one of them failed."""
    began = time.monotonic()
    args = parse(argv, rows)
    if args.list:
        width = max(map(len, rows))
        print("\n".join(f"{name:{width}}  {rows[name].description}" for name in args.rows))
        return 0
    try:
        machine = runner.find_machine(args.torch)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    header = [
        f"Convoy on {machine.devices} x {machine.kind} ({machine.platform}), {machine.versions}; "
        f"PyTorch: {machine.no_torch or 'measured'}{'; tiny sizes' if args.tiny else ''}",
        report.machine(),
    ]
    print("\n".join(header), flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    results: list[runner.RowResult] = []

    def changed(found: list[runner.RowResult]) -> None:
        results[:] = found
        table.write(args.json, header, machine, results)

    for result in runner.run_rows(
        {name: rows[name] for name in args.rows},
        machine,
        tiny=args.tiny,
        row_limit_s=TINY_ROW_LIMIT_S if args.tiny else ROW_LIMIT_S,
        deadline=began + args.limit if args.limit else float("inf"),
        logs=args.json.with_name(f"{args.json.stem}-logs"),
        changed=changed,
    ):
        print(f"{result.name}: {table.outcome(result)}", flush=True)
    print(f"\n{table.text(header, results)}\nwritten to {args.json} and {args.json.with_suffix('.txt')}")
    return 1 if any(result.status == runner.FAILED for result in results) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
