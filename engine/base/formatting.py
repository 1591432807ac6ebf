"""Formats numbers, times, sizes and tables as readable ASCII text, which every terminal and log can show."""

import math
from collections.abc import Collection, Mapping, Sequence

_IN_A_LINE = 6  # values
_WIDTH = 100  # characters of a table
_MAX_LINES = 30  # largest number of lines in a table


def number(value: float | str | None) -> str:
    """Returns four significant digits, and whole numbers in full: 0.04213, 98.5, 31,250, 1.2e-05, nan; text as is."""
    if isinstance(value, str | bool | None):
        return str(value)
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if 1000 <= abs(value) < 1e9:
        return f"{round(value):,}"
    return f"{value:.4g}"


def progress(done: int, total: int) -> str:
    """Returns how much of a known number is done: 1,350/1,500."""
    return f"{done:,}/{total:,}"


def duration(seconds: float) -> str:
    """Returns `0.42 s`, `12.3 s`, `3 min 05 s`, `2 h 07 min` or `3 d 04 h`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part:02d} {smaller}"
    return f"{whole // 60} min {whole % 60:02d} s"


def seconds_text(seconds: float) -> str:
    """Returns a time as text in s, ms or us."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def size_text(size: float) -> str:
    """Returns a size in bytes as text in B, KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """Returns rows as lines of aligned columns; a row may have fewer cells than the longest.

    What no terminal prints as it is, such as a line break in a name, is escaped.

    Args:
        rows: the cells of each row.
        right: align to the right instead of to the left.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    count = max(map(len, rows), default=0)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(count)]
    justify = str.rjust if right else str.ljust
    return ["  ".join(justify(cell, width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def printable(text: str) -> str:
    """Returns a text with escapes in place of line breaks, of codes for a terminal, and of anything else invisible."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def line(values: Mapping[str, float], first: Collection[str] = ()) -> str:
    """Returns up to 6 values in one line; of more values 5, and how many are left out.

    Names in `first`, losses, and names with few slashes, which are those of no slice or class, come before the others.
    """
    if len(values) <= _IN_A_LINE:
        return pairs(values)
    ranked = sorted(values, key=lambda name: (name not in first, not name.endswith("/loss"), name.count("/")))
    chosen = ranked[: _IN_A_LINE - 1]
    shown = pairs({name: value for name, value in values.items() if name in chosen})
    return f"{shown}  and {len(values) - len(chosen)} more in metrics.jsonl"


def table(values: Mapping[str, float]) -> str:
    """Returns up to 6 values in one line, and more as a table, in several columns from top to bottom.

    A table has at most 30 lines; its last line says how many values are left out.
    """
    if len(values) <= _IN_A_LINE:
        return pairs(values)
    width, texts = max(map(len, values)), {name: number(value) for name, value in values.items()}
    cell = width + 1 + max(map(len, texts.values()))
    columns = max(1, _WIDTH // (cell + 2))
    lines = math.ceil(len(values) / columns)
    shown = min(lines, _MAX_LINES)
    cells = [f"{name:{width}} {text:>{cell - width - 1}}" for name, text in texts.items()]
    rows = ["  ".join(cells[row::lines]) for row in range(shown)]
    if shown < lines:
        left = len(values) - sum(len(cells[row::lines]) for row in range(shown))
        rows.append(f"and {left} more in metrics.jsonl")
    return "".join(f"\n  {row}" for row in rows)


def pairs(values: Mapping[str, float]) -> str:
    """Returns `loss 0.4213  accuracy 0.9` in the order of `values`."""
    return "  ".join(f"{name} {number(value)}" for name, value in values.items())
