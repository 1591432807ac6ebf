"""Charts of curves as text for a terminal, drawn with the dots of Braille characters, 2 x 4 in each."""

import math
from collections.abc import Sequence

from engine.base import formatting
from engine.plot.curves import Curve, Panel

HEIGHT = 12  # lines of a chart
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bits of the dots, by line and column
_COLORS = (34, 33, 32, 35, 36, 31)  # of SGR, in the order of the curves
_MARKS = "*+ox#@"  # of the curves, where there is no colour


def chart(
    panel: Panel,
    width: int,
    *,
    color: bool = True,
    ascii_only: bool = False,
    ends: tuple[str, str] | None = None,
) -> str:
    """Returns the chart of a panel as lines: title, curves with their range, steps and labels.

    Args:
        panel: the curves.
        width: columns of the terminal.
        color: whether the terminal shows colours.
        ascii_only: draw one character for each point, in ASCII.
        ends: labels of the first and of the last step; by default, their numbers.
    """
    scale, back = (math.log10, lambda y: 10**y) if panel.is_log else (float, float)
    values = [scale(value) for curve in panel.curves.values() for value in curve.values()]
    steps = [step for curve in panel.curves.values() for step in curve]
    low, high, first, last = min(values), max(values), min(steps), max(steps)
    rows = (0, HEIGHT // 2, HEIGHT - 1)
    labels = {row: formatting.number(back(high - (high - low) * row / (HEIGHT - 1))) for row in rows}
    margin = max(map(len, labels.values()))
    columns = max(8, width - margin - 3)
    canvas = _Canvas(columns, HEIGHT, 1 if ascii_only else 2, 1 if ascii_only else 4)
    for number, curve in enumerate(panel.curves.values()):
        scaled = {step: scale(value) for step, value in curve.items()}
        canvas.draw(_shares(scaled, (first, last), (low, high)), number)
    lines = [f"{panel.title}, logarithmic" if panel.is_log else panel.title]
    for row in range(HEIGHT):
        lines.append(f"{labels.get(row, ''):>{margin}} | {canvas.line(row, color, ascii_only)}".rstrip())
    start, end = ends or (f"step {first:,}", f"{last:,}")
    lines.append(f"{'':{margin}} | {start}{end:>{max(1, columns - len(start))}}")
    marks = [_MARKS[i % len(_MARKS)] if ascii_only else "--" for i in range(len(panel.curves))]
    entries = []
    for i, (label, curve) in enumerate(panel.curves.items()):
        mark = f"\033[{_COLORS[i % len(_COLORS)]}m{marks[i]}\033[0m" if color else marks[i]
        entries.append(f"{mark} {label} {formatting.number(list(curve.values())[-1])}")
    return "\n".join([*lines, f"{'':{margin}}   {'   '.join(entries)}"])


def _shares(curve: Curve, x: tuple[float, float], y: tuple[float, float]) -> list[tuple[float, float]]:
    """Returns the points of a curve as shares of the axes, 0..1, from the upper left corner."""
    return [
        ((step - x[0]) / ((x[1] - x[0]) or 1), 1 - (value - y[0]) / (y[1] - y[0]) if y[1] > y[0] else 0.5)
        for step, value in curve.items()
    ]


class _Canvas:
    """Cells of characters, each with a few dots."""

    def __init__(self, columns: int, rows: int, across: int, down: int):
        self._size, self._dots = (columns * across, rows * down), (across, down)
        self._cells: dict[tuple[int, int], tuple[int, int]] = {}  # row and column -> bits, number of the curve

    def draw(self, points: Sequence[tuple[float, float]], number: int) -> None:
        """Draws the lines between points, whose coordinates are 0..1."""
        width, height = self._size
        places = [(x * (width - 1), y * (height - 1)) for x, y in points]
        for (x, y), (x2, y2) in zip(places, places[1:] or places, strict=False):
            count = max(1, math.ceil(max(abs(x2 - x), abs(y2 - y))))
            for i in range(count + 1):
                self._dot(round(x + (x2 - x) * i / count), round(y + (y2 - y) * i / count), number)

    def _dot(self, x: int, y: int, number: int) -> None:
        across, down = self._dots
        key = (y // down, x // across)
        bits, _ = self._cells.get(key, (0, 0))
        self._cells[key] = bits | _DOTS[y % down][x % across], number

    def line(self, row: int, color: bool, ascii_only: bool) -> str:
        """Returns a line of text."""
        text, before = "", None
        for column in range(max((c for r, c in self._cells if r == row), default=-1) + 1):
            bits, number = self._cells.get((row, column), (0, 0))
            mark = _MARKS[number % len(_MARKS)] if ascii_only else chr(0x2800 + bits)
            if color and bits and number != before:
                text, before = f"{text}\033[{_COLORS[number % len(_COLORS)]}m", number
            text += mark if bits else " "
        return text + ("\033[0m" if before is not None else "")
