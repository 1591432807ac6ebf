"""Numbers and tables as Markdown."""

import math
from collections.abc import Sequence

from engine.experiments.statistics import Interval

NONE = "-"


def number(value: object) -> str:
    """Returns a number with four significant digits, or another value as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def interval(found: Interval) -> str:
    """Returns an estimate and half the width of its interval, as "2.134 ± 0.012"."""
    if not math.isfinite(found.estimate):
        return NONE
    if not math.isfinite(found.low):
        return number(found.estimate)
    half = (found.high - found.low) / 2
    digits = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 4
    return f"{found.estimate:.{digits}f} ± {half:.{digits}f}"


def times(value: float, base: float) -> str:
    """Returns a value as a multiple of a base, as "0.85 x"; a dash if one of them is missing."""
    return f"{value / base:.2f} x" if math.isfinite(value) and math.isfinite(base) and base else NONE


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def titled(title: str, body: str) -> str:
    """Returns a section of a page."""
    return f"### {title}\n\n{body}"
