"""Runs the short benchmarks one after the other and writes the table of docs/benchmarks.md.

tools/bazel run //benchmarks:all [-- --only=loop,dispatch --output=FILE]
python -m benchmarks.all

Each benchmark is a process. One that fails becomes a row with the reason, the others run, and the exit code is 1. The
table replaces the text between two markers of the page. With --only or --tiny it is printed, and written only if
--output names a file, since it would replace the rows of other benchmarks. Ctrl-C prints the table so far and writes
nothing.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.report import Row

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "loop": ("--turns", "20"),
    "dispatch": ("--turns", "12"),
    "data_wait": (),
    "save_stall": ("--rounds", "5"),
    "first_step": ("--rounds", "5"),
    "decoder": (),
    "ragged": (),
    "input": (),
}
"""Name -> arguments of the published run."""
MINUTES = {
    "loop": 1.5,
    "dispatch": 4.0,
    "data_wait": 1.0,
    "save_stall": 1.0,
    "first_step": 1.5,
    "decoder": 5.0,
    "ragged": 1.5,
    "input": 4.0,
}
"""Name -> time of the published run on 2 cores."""
TINY_MINUTES = 0.15

PAGE = Path("docs") / "benchmarks.md"
BEGIN, END = "<!-- benchmarks.all: begin -->", "<!-- benchmarks.all: end -->"
TIMEOUT_S = 1800.0
"""Longest time of one benchmark."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The rows of one benchmark, and why it failed, or an empty text."""

    command: str
    rows: Sequence[Row]
    error: str = ""
    interrupted: bool = False


def run_benchmark(
    name: str, arguments: Sequence[str], timeout_s: float = TIMEOUT_S, torch: str | None = None
) -> Result:
    """Runs one benchmark as a process, whose output goes to this process's. Ends its process group.

    The result does not name the interpreter `torch`, whose path is of no use on another machine.
    """
    command = shlex.join(["python", "-m", f"benchmarks.{name}", *arguments, *(["--torch=PYTHON"] if torch else [])])
    arguments = [*arguments, *([f"--torch={torch}"] if torch else [])]
    with tempfile.TemporaryDirectory(prefix="convoy-benchmarks-") as folder:
        file = Path(folder) / "rows.jsonl"
        words = [sys.executable, "-m", f"benchmarks.{name}", *arguments, f"--rows={file}"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        failure, interrupted = "", False
        process = subprocess.Popen(words, env=env, start_new_session=True)
        try:
            if code := process.wait(timeout_s):
                failure = f"exit code {code}"
        except subprocess.TimeoutExpired:
            failure = f"no result after {timeout_s:g} s"
        except KeyboardInterrupt:
            failure, interrupted = "interrupted", True
        finally:
            with contextlib.suppress(ProcessLookupError):  # its workers may outlive it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        rows, error = report.read_rows(file)
    why = failure if interrupted else error or failure or ("" if rows else "no rows")
    return Result(command, rows, why.replace(torch, "PYTHON") if torch else why, interrupted)


def table(results: Sequence[Result], machine: str) -> str:
    """Returns the machine and a table of all rows, as Markdown."""
    lines = [f"{machine}.", "", "| what | result | target | command |", "|---|---|---|---|"]
    for result in results:
        lines += [_line(row.what, row.result, row.target, f"`{result.command}`") for row in result.rows]
        if result.error:
            lines.append(_line(f"`{result.command}`", f"failed: {result.error}", "", f"`{result.command}`"))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def replace_table(page: str, new: str) -> str:
    """Returns the page with a new text between its markers.

    Raises:
        ValueError: the page has no markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the lines {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def parse(argv: Sequence[str] | None, benchmarks: Mapping[str, Sequence[str]]) -> argparse.Namespace:
    """Parses the command line; `only` is a list of names, `output` a path or None."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(benchmarks)}")
    parser.add_argument(
        "--output", type=Path, help=f"page with the markers (default: {PAGE}, without --only and --tiny)"
    )
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch, for decoder and input")
    parser.add_argument("--tiny", action="store_true", help="measure as little as possible, to try the programs")
    args = parser.parse_args(argv)
    names = list(benchmarks) if args.only is None else args.only.split(",")
    if unknown := [name for name in names if name not in benchmarks]:
        parser.error(f"--only: {', '.join(unknown)} is unknown. Allowed: {', '.join(benchmarks)}.")
    if args.output is None and args.only is None and not args.tiny:
        args.output = Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", Path(__file__).parents[1])) / PAGE
    args.only = names
    return args


def main(argv: Sequence[str] | None = None, benchmarks: Mapping[str, Sequence[str]] = BENCHMARKS) -> int:
    """Runs the benchmarks and returns 1 if one of them failed."""
    args = parse(argv, benchmarks)
    if args.output is not None:
        try:
            replace_table(args.output.read_text(), "")  # before the measurements, not after them
        except (OSError, ValueError) as error:
            print(f"{args.output}: {error}", file=sys.stderr)
            return 1
    results, began = [], time.monotonic()
    for i, name in enumerate(args.only):
        torch = args.torch if name in ("decoder", "input") else None
        left = sum(TINY_MINUTES if args.tiny else MINUTES.get(each, 1.0) for each in args.only[i:])
        print(f"\n[{i + 1}/{len(args.only)}] {name}; about {math.ceil(left)} min left on 2 cores", flush=True)
        results.append(run_benchmark(name, ("--tiny",) if args.tiny else benchmarks[name], torch=torch))
        if results[-1].error:
            print(f"{name} failed: {results[-1].error}", file=sys.stderr, flush=True)
        if results[-1].interrupted:
            break
    text = table(results, report.machine())
    print(f"\n{text}\n\n{len(results)} benchmarks took {(time.monotonic() - began) / 60:.1f} min")
    if any(result.interrupted for result in results):
        return 130
    if args.output is not None:
        args.output.write_text(replace_table(args.output.read_text(), text))
        print(f"written to {args.output}")
    return 1 if any(result.error for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
