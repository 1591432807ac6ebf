"""Rows of measured values: how a benchmark returns, prints and stores what it measured.

A benchmark is a module with `add_arguments(parser)` and `run(args)`, a generator of rows; `main` makes a program of it.
`--rows=FILE` also writes the rows as JSON lines, which `all.py` reads. `--tiny` measures as little as possible: the
tests run each benchmark so.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

PROGRESS_EVERY_S = 10.0
"""Time between two lines of progress where standard error is not a terminal."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured quantity.

    Attributes:
        what: the quantity, for people.
        values: one for each turn or round.
        unit: unit of the values; empty for a ratio.
        digits: decimal places to print.
        at_most: the target, where smaller is better.
        at_least: the target, where larger is better.
        note: what belongs to the result, such as the absolute times behind a ratio.
    """

    what: str
    values: tuple[float, ...]
    unit: str = ""
    digits: int = 2
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)

    @property
    def result(self) -> str:
        """The median, with the range in brackets, and the note."""
        return "; ".join(filter(None, (spread(self.values, self.digits, self.unit), self.note)))

    @property
    def target(self) -> str:
        """The target and whether the median meets it; empty without a target."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}{_with_space(self.unit)}: {_verdict(self.median <= self.at_most)}"
        if self.at_least is not None:
            return f"at least {self.at_least:g}{_with_space(self.unit)}: {_verdict(self.median >= self.at_least)}"
        return ""

    def __str__(self) -> str:
        return "  ".join(filter(None, (f"{self.what}: {self.result}", self.target)))


def _verdict(met: bool) -> str:
    return "met" if met else "not met"


def _with_space(unit: str) -> str:
    return f" {unit}" if unit else ""


def spread(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    """Returns "median (smallest-largest) unit"."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f}){_with_space(unit)}"


def ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """Returns the ratio of each pair of values."""
    return tuple(a / b for a, b in zip(above, below, strict=True))


def progress(text: str) -> None:
    """Shows how far a measurement is: on a terminal in one line, elsewhere as a line every ten seconds."""
    global _progress_at
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
    elif time.monotonic() >= _progress_at:
        _progress_at = time.monotonic() + PROGRESS_EVERY_S
        print(text, file=sys.stderr, flush=True)


_progress_at = 0.0


def clear_progress() -> None:
    """Removes the progress line of a terminal."""
    if sys.stderr.isatty():
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def machine() -> str:
    """Returns one line: CPU model, cores, memory, versions, date. It imports no jax."""
    from importlib.metadata import version

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = f"jax {version('jax')}, Python {platform.python_version()}"
    return f"{model}, {cores} cores, {memory:.0f} GiB of memory; {versions}; {datetime.date.today().isoformat()}"


def main(
    doc: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], Iterable[Row]],
    argv: Sequence[str] | None = None,
    tiny: Sequence[str] = (),
) -> None:
    """Parses the command line, runs a benchmark, and prints each row as soon as it is measured.

    Args:
        doc: the docstring of the benchmark, for `--help`.
        add_arguments: adds the arguments of the benchmark.
        run: measures and yields rows.
        argv: the command line; that of the process by default.
        tiny: the arguments that `--tiny` stands for.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--rows", type=Path, metavar="FILE", help="also write the rows here, as JSON lines")
    parser.add_argument("--tiny", action="store_true", help=f"try the program: {' '.join(tiny)}")
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words)
    if args.tiny:
        args = parser.parse_args([*tiny, *words])
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}", flush=True)
    with RowFile(args.rows) as file:
        for row in run(args):
            clear_progress()
            print(row, flush=True)
            file.write(row)


class RowFile:
    """Writes rows as JSON lines, and the error that ended the benchmark. A context manager.

    Args:
        path: the file; None writes nothing.
    """

    def __init__(self, path: Path | None):
        self._path = path

    def write(self, row: Row) -> None:
        """Appends a row."""
        self._append({"row": dataclasses.asdict(row)})

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self._append({"error": f"{type(error).__name__}: {error}".strip(": ")})

    def _append(self, line: dict[str, object]) -> None:
        if self._path is not None:
            with open(self._path, "a") as file:
                print(json.dumps(line), file=file)


def read_rows(path: Path) -> tuple[list[Row], str]:
    """Returns the rows of a file that a benchmark wrote, and the error that ended it, or an empty text."""
    rows, error = [], ""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            content = json.loads(line)
        except ValueError:
            return rows, "killed while it wrote a row"
        if "row" in content:
            rows.append(Row(**content["row"] | {"values": tuple(content["row"]["values"])}))
        else:
            error = content["error"]
    return rows, error
