"""The table of all rows, as text and as JSON, each written as a whole: a reader never sees half of one."""

import dataclasses
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.context import Machine
from benchmarks.accelerator.runner import FAILED, OK, RowResult


def write(path: Path, header: Sequence[str], machine: Machine, results: Sequence[RowResult]) -> None:
    """Writes `path` as JSON and the text table to the same path with the suffix .txt."""
    content = {
        "header": list(header),
        "machine": dataclasses.asdict(machine),
        "rows": [dataclasses.asdict(result) for result in results],
    }
    _replace(path, json.dumps(content, indent=1) + "\n")
    _replace(path.with_suffix(".txt"), text(header, results))


def _replace(path: Path, content: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(content)
    os.replace(new, path)


def text(header: Sequence[str], results: Sequence[RowResult]) -> str:
    """Returns the summary of all rows, then the table of each."""
    width = max(len(result.name) for result in results)
    lines = [*header, "", *(f"{result.name:{width}}  {outcome(result)}" for result in results)]
    return "\n".join([*lines, "", *(block(result) for result in results if result.lines)]) + "\n"


def outcome(result: RowResult) -> str:
    """Returns the outcome of a row in one line."""
    if result.status == OK:
        return f"{result.summary or 'done'} ({result.seconds:.0f} s)"
    label = result.status.upper() if result.status == FAILED else result.status
    measured = f"; {result.summary}" if result.summary else ""
    log = f" (log: {result.log})" if result.log else ""
    return f"{label}: {result.reason}{measured}{log}"


def block(result: RowResult) -> str:
    """Returns the table of one row with its notes."""
    columns = list(dict.fromkeys(name for line in result.lines for name in line))
    cells = [[name.replace("_", " ") if name != "name" else "" for name in columns]]
    cells += [[_cell(line.get(name, "")) for name in columns] for line in result.lines]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    padded = (zip(row, widths, strict=True) for row in cells)
    table = ["  " + "  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in padded]
    return "\n".join([f"{result.name}: {result.description}", *table, *(f"  {note}" for note in result.notes), ""])


def _cell(value: Any) -> str:
    if isinstance(value, list):
        low, high = min(value), max(value)
        return _number(statistics.median(value)) + (f" ({_number(low)}-{_number(high)})" if len(value) > 1 else "")
    return _number(value) if isinstance(value, float | int) else str(value)


def _number(value: float) -> str:
    """Returns a number with three or four significant digits."""
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
