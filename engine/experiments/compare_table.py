"""The text of a comparison of runs, for a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.base import formatting
from engine.experiments.comparison import SURE, WHOLE, Change, Comparison, Difference, Variant
from engine.experiments.statistics import FEWEST_GROUPS

MOST_SLICES = 20  # lines of one metric
_LONGEST = 40  # characters of a tag


def text(found: Comparison) -> str:
    """Returns what differs, then each number in the base and another variant with the interval of its difference."""
    names = [variant.name for variant in found.variants]
    parts = [
        _seeds(found.variants),
        _table("settings", found.settings, names),
        *(_table(name, getattr(found, name), names) for name in ("code", "data", "environment")),
    ]
    if not found.results:
        parts.append("There is no result that both runs have.")
    for number in range(1, len(names)):
        own = [result for result in found.results if result.variant == number]
        pair = (names[0], names[number])
        parts += _results([result for result in own if result.part == WHOLE], pair)
        parts += _slices([result for result in own if result.part != WHOLE], pair)
        parts += _changes([change for change in found.changes if change.variant == number], pair)
    parts += ["\n".join(found.meanings), "\n".join(found.notes)]
    return "\n\n".join(part for part in parts if part)


def _seeds(variants: Sequence[Variant]) -> str:
    several = [variant for variant in variants if len(variant.runs) > 1]
    return "\n".join(
        f"{variant.name}: {len(variant.runs)} seeds, {', '.join(map(str, variant.seeds))}" for variant in several
    )


def _table(title: str, values: Mapping[str, Sequence[Any]], names: Sequence[str]) -> str:
    if not values:
        return f"{title}: the same" if title == "settings" else ""
    rows = [[name, *("-" if value is None else str(value) for value in each)] for name, each in values.items()]
    return "\n".join(formatting.aligned([[f"different {title}", *names], *rows]))


def _results(results: Sequence[Difference], names: tuple[str, str]) -> list[str]:
    if not results:
        return []
    rows = [[result.name, *_values(result), _p(result, result.interval.p)] for result in results]
    head = ["result", *names, "difference", "95 % interval", "over", "p"]
    return ["\n".join(formatting.aligned([head, *rows]))]


def _slices(results: Sequence[Difference], names: tuple[str, str]) -> list[str]:
    found = []
    for key in dict.fromkeys((result.evaluation, result.metric) for result in results):
        same = [result for result in results if (result.evaluation, result.metric) == key]
        head = [f"{'/'.join(key)} by slice", "examples", *names, "difference", "95 % interval", "over", "p (Holm)"]
        rows = [
            [
                result.part,
                f"{result.examples:,}" if result.examples else "-",
                *_values(result),
                _p(result, result.adjusted_p),
            ]
            for result in same[:MOST_SLICES]
        ]
        more = [f"and {len(same) - MOST_SLICES} more slices: --json has all."] if len(same) > MOST_SLICES else []
        found.append("\n".join([*formatting.aligned([head, *rows]), *more]))
    return found


def _values(result: Difference) -> list[str]:
    interval = result.interval
    numbers = [formatting.number(value) for value in (result.first, result.second)]
    limits, over = "too few" if 0 < result.groups < FEWEST_GROUPS else "-", "-"
    if not math.isnan(interval.low):
        limits = f"{interval.low:+.4g} to {interval.high:+.4g}"
        over = f"{result.groups:,} groups" if 0 < result.groups < result.examples else str(result.basis)
    return [*numbers, f"{interval.estimate:+.4g}", limits, over]


def _p(result: Difference, value: float) -> str:
    if math.isnan(value):
        return "-"
    shown = "< 0.001" if value < 0.001 else f"{value:.3f}"
    return " ".join(filter(None, (shown, "*" if value < SURE else "", result.verdict)))


def _changes(changes: Sequence[Change], names: tuple[str, str]) -> list[str]:
    found = []
    for evaluation, metric in dict.fromkeys((change.evaluation, change.metric) for change in changes):
        same = [change for change in changes if (change.evaluation, change.metric) == (evaluation, metric)]
        tags = list(dict.fromkeys(name for change in same for name in change.tags))
        head = [f"{evaluation}: most changed by {metric}", *tags, *names, "change"]
        rows = [
            [
                f"example {change.index}",
                *(str(change.tags.get(name, "-"))[:_LONGEST] for name in tags),
                *(formatting.number(value) for value in (change.first, change.second)),
                f"{change.second - change.first:+.4g}",
            ]
            for change in same
        ]
        lines = formatting.aligned([head, *rows])
        lines += [f"figure: {path}" for change in same for path in change.figures if path]
        if not any(path for change in same for path in change.figures):
            lines.append(
                f"No figure of them is drawn. To draw the worst examples, if the Task has figures: convoy evaluate RUN "
                f"--evaluations.{evaluation}.worst=100 --evaluations.{evaluation}.figures=100"
            )
        found.append("\n".join(lines))
    return found
