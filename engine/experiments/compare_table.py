"""The text of a comparison of two runs, for a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.base import formatting
from engine.experiments.compare import WHOLE, Comparison, Difference

MOST_SLICES = 20  # lines of one metric
SURE = 0.05  # p-value below which a difference is marked


def text(found: Comparison) -> str:
    """Returns what differs, then each number in both runs with the interval of its difference."""
    names = [run.path for run in found.runs]
    parts = [
        _table("settings", found.settings, names),
        _table("code", found.code, names),
        _table("data", found.data, names),
        _results([result for result in found.results if result.part == WHOLE], names),
        *_slices([result for result in found.results if result.part != WHOLE], names),
        "\n".join(found.notes),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(title: str, values: Mapping[str, tuple[Any, Any]], names: Sequence[str]) -> str:
    if not values:
        return f"{title}: the same" if title == "settings" else ""
    rows = [[name, *("-" if value is None else str(value) for value in pair)] for name, pair in values.items()]
    return "\n".join(formatting.aligned([[f"different {title}", *names], *rows]))


def _results(results: Sequence[Difference], names: Sequence[str]) -> str:
    if not results:
        return "There is no result that both runs have."
    rows = [[f"{result.evaluation}/{result.metric}", *_values(result), _p(result.interval.p)] for result in results]
    return "\n".join(formatting.aligned([["result", *names, "difference", "95 % interval", "p"], *rows]))


def _slices(results: Sequence[Difference], names: Sequence[str]) -> list[str]:
    found = []
    for key in dict.fromkeys((result.evaluation, result.metric) for result in results):
        same = [result for result in results if (result.evaluation, result.metric) == key]
        head = [f"{'/'.join(key)} by slice", "examples", *names, "difference", "95 % interval", "p (Holm)"]
        rows = [
            [result.part, f"{result.examples:,}", *_values(result), _p(result.adjusted_p)]
            for result in same[:MOST_SLICES]
        ]
        more = [f"and {len(same) - MOST_SLICES} more slices: --json has all."] if len(same) > MOST_SLICES else []
        found.append("\n".join([*formatting.aligned([head, *rows]), *more]))
    return found


def _values(result: Difference) -> list[str]:
    interval = result.interval
    numbers = [formatting.number(value) for value in (result.first, result.second)]
    limits = "too few" if result.examples else "-"
    if not math.isnan(interval.low):
        limits = f"{interval.low:+.4g} to {interval.high:+.4g}"
    return [*numbers, f"{interval.estimate:+.4g}", limits]


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    shown = "< 0.001" if value < 0.001 else f"{value:.3f}"
    return f"{shown} *" if value < SURE else shown
