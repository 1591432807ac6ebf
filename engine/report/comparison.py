"""The part of a report that compares its runs: what differs, how sure the differences of results are, changed examples.

`engine/experiments/comparison.py` says what the values mean.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.experiments.comparison import SURE, WHOLE, Change, Comparison, Difference
from engine.report.gather import rounded
from engine.report.images import Budget

MOST_SLICES = 100  # of one metric
MOST_DIFFERENCES = 200  # settings, packages and such
PARTS = ("settings", "code", "data", "environment")


def comparison_data(found: Comparison, names: Mapping[str, str], budget: Budget) -> dict[str, Any]:
    """Returns a comparison as values of JSON.

    Args:
        found: the comparison.
        names: path of a run -> its name in the report.
        budget: what figures of examples may take.
    """
    variants = [_variant_name(variant.name, len(variant.runs), names) for variant in found.variants]
    changes = [_change(change, budget) for change in found.changes]
    left_out = [f"Figures of examples that are left out, since all are too large together: {budget.left_out}."]
    return {
        "variants": variants,
        "differences": [
            [part, *_rows(getattr(found, part))] for part in PARTS if getattr(found, part) and len(variants) > 1
        ],
        "results": [_result(result) for result in _shown(found.results)],
        "more": len(found.results) - len(_shown(found.results)),
        "changes": changes,
        "level": SURE,
        "meanings": list(found.meanings),
        "notes": [*found.notes, *(left_out if budget.left_out else [])],
    }


def _change(change: Change, budget: Budget) -> dict[str, Any]:
    return {
        "variant": change.variant,
        "evaluation": change.evaluation,
        "metric": change.metric,
        "example": change.index,
        "tags": {name: str(value) for name, value in change.tags.items()},
        "first": rounded(change.first),
        "second": rounded(change.second),
        "change": rounded(change.second - change.first),
        "figures": [budget.take(Path(path)) if path else None for path in change.figures],
    }


def _variant_name(path: str, runs: int, names: Mapping[str, str]) -> str:
    name = names.get(path, path)
    return f"{name} ({runs} seeds)" if runs > 1 else name


def _rows(values: Mapping[str, Sequence[Any]]) -> list[list[Any]]:
    rows = [[name, ["–" if value is None else str(value) for value in each]] for name, each in values.items()]
    return rows[:MOST_DIFFERENCES]


def _shown(results: Sequence[Difference]) -> list[Difference]:
    """Returns the results without the least sure slices of metrics that have very many."""
    counts: dict[tuple[int, str, str], int] = {}
    found = []
    for result in results:
        key = (result.variant, result.evaluation, result.metric)
        counts[key] = counts.get(key, 0) + (result.part != WHOLE)
        if result.part == WHOLE or counts[key] <= MOST_SLICES:
            found.append(result)
    return found


def _result(result: Difference) -> dict[str, Any]:
    interval = result.interval
    p = interval.p if result.part == WHOLE else result.adjusted_p
    return {
        "variant": result.variant,
        "evaluation": result.evaluation,
        "part": result.part,
        "metric": result.metric,
        "examples": result.examples,
        "first": rounded(result.first),
        "second": rounded(result.second),
        "difference": rounded(interval.estimate),
        "interval": None if math.isnan(interval.low) else [rounded(interval.low), rounded(interval.high)],
        "over": f"{result.groups:,} groups" if 0 < result.groups < result.examples else str(result.basis),
        "p": None if math.isnan(p) else float(f"{p:.2g}"),
        "verdict": result.verdict,
    }
