"""Compiles the train step for TPUs and GPUs that are absent, in addition to a plain jit, and compares the programs.

python -m benchmarks.aot [--rows=v5e-fsdp,h100-fsdp] [--json=FILE] [--hlo=FOLDER]
python -m benchmarks.aot --tiny      tries the programs at tiny sizes
python -m benchmarks.aot --list      lists the rows

It needs the extra `aot`, and no accelerator. A program of the 1 B decoder takes one to three minutes of one core for a
TPU and a quarter of a minute for a GPU. A row with train.remat=auto compiles three to five, and its plain jit is one
more. The table names what auto has chosen. Cycles are XLA's estimates of a TPU, with loops multiplied out, and FLOPs of
attention kernels at the peak of a v5e; waiting for collectives is not in them.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.aot.measures import Measures, measure
from benchmarks.aot.plain import compile_plain
from benchmarks.aot.programs import Compiled, Job, compile_engine
from benchmarks.aot.rows import ROWS, TINY, RowSpec
from engine.base.types import Device
from engine.parallel.targets import devices

type Compile = Callable[[Job, Sequence[Device]], Compiled]
COLUMNS = ("row", "program, remat", "M cycles", "+ kernels", "GiB sent", "synchronous", "args + temp, GiB", "compile s")


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles the rows and prints the table; returns 1 if a row failed."""
    args = _parse(argv)
    rows: Mapping[str, RowSpec] = TINY if args.tiny else ROWS
    names = list(rows) if args.rows is None else args.rows.split(",")
    if unknown := [name for name in names if name not in rows]:
        print(f"--rows: {', '.join(unknown)} is unknown. Rows: {', '.join(rows)}.", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(f"{name:14} {rows[name].job}" for name in names))
        return 0
    print(_line(COLUMNS), flush=True)
    failed, results = False, {}
    for name in names:
        programs: dict[str, Compile] = {"engine": compile_engine}
        if rows[name].plain:
            programs["plain jit"] = compile_plain
        for kind, compile_ in programs.items():
            try:
                found, remat, seconds = _measured(
                    compile_, rows[name].job, args.hlo and args.hlo / f"{name} {kind}.txt"
                )
            except Exception as error:
                failed = True
                print(f"{name}, {kind}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            more = {"remat": remat, "compile_s": round(seconds, 1)}
            results[f"{name} {kind}"] = {**dataclasses.asdict(found), **more}
            print(_line(_cells(name, f"{kind}, {remat}", found, seconds)), flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1))
    return int(failed)


def _measured(compile_: Compile, job: Job, hlo: Path | None) -> tuple[Measures, str, float]:
    """Returns the measures of a job, its `train.remat` and the seconds of its compilation; writes the HLO to a file."""
    there = devices(job.target)
    start = time.process_time()
    compiled = compile_(job, there)
    seconds = time.process_time() - start
    if hlo:
        hlo.parent.mkdir(parents=True, exist_ok=True)
        hlo.write_text(str(compiled.executable.as_text()))
    return measure(compiled.executable, compiled.mesh), compiled.remat, seconds


def _cells(name: str, kind: str, found: Measures, seconds: float) -> tuple[str, ...]:
    return (
        name,
        kind,
        f"{found.cycles / 1e6:.0f}" if found.cycles else "-",
        f"{found.kernel_cycles / 1e6:.0f}" if found.cycles else "-",
        f"{found.sent / 2**30:.2f}",
        f"{found.synchronous_share:.1%}",
        f"{found.argument_bytes / 2**30:.2f} + {found.temporary_bytes / 2**30:.2f}",
        f"{seconds:.0f}",
    )


def _line(cells: Sequence[str]) -> str:
    widths = (14, 15, 9, 10, 9, 12, 17, 9)
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", metavar="NAMES", help="the rows to compile, separated by commas (default: all)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes")
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measures")
    parser.add_argument("--hlo", type=Path, metavar="FOLDER", help="write the HLO of each program")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
