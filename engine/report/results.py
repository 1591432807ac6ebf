"""What evaluations and hooks have returned beside single numbers, in the form in which a report shows it.

`metrics.jsonl` has a table, a curve and a histogram as objects of lists, without their class. The names of the lists
and their lengths tell which of them it is; a curve is shown as a table, too.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from engine.report.rows import Rows

COUNT = "examples"  # metric of a slice: the number of its examples, as in `engine/metrics/slices.py`, which imports JAX
WORST_EXAMPLES, WORST_SLICES = "worst_examples", "worst_slices"  # tables that the engine adds to an evaluation
MOST_RESULTS, MOST_ROWS, MOST_CELLS = 80, 256, 48  # results of a run, rows of a table, rows and columns of a matrix
MOST_SLICES, MOST_METRICS = 400, 8  # rows and columns of a table of slices


def shown(rows: Rows) -> list[dict[str, Any]]:
    """Returns the results that are no numbers, except for the tables of slices and worst examples."""
    names = [name for name in rows.results if name.rpartition("/")[2] not in (WORST_EXAMPLES, WORST_SLICES)]
    found = [{"name": name, "step": rows.results[name][0], **_form(rows.results[name][1])} for name in names]
    return [result for result in found if "kind" in result][:MOST_RESULTS]


def _form(value: Any) -> dict[str, Any]:
    """Returns the kind of a result with its content; {} for one that no metric writes."""
    if isinstance(value, list):
        return _array(value)
    columns = {str(name): column for name, column in value.items() if isinstance(column, list)}
    is_histogram = set(columns) == {"edges", "counts"} and len(columns["edges"]) == len(columns["counts"]) + 1
    if is_histogram and _all_numbers(columns.values()):
        return {"kind": "histogram", "edges": columns["edges"], "counts": columns["counts"]}
    if not columns or len({len(column) for column in columns.values()}) > 1:
        return {}
    if len(columns) == 2 and _all_numbers(columns.values()) and len(next(iter(columns.values()))) > 2:
        (x_name, x), (y_name, y) = columns.items()
        return {"kind": "curve", "x": x, "y": y, "xName": x_name, "yName": y_name}
    return table(columns)


def table(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Returns a table of named columns, with at most MOST_ROWS rows."""
    rows = list(zip(*columns.values(), strict=True))
    return {"kind": "table", "columns": list(columns), "rows": rows[:MOST_ROWS], "more": max(0, len(rows) - MOST_ROWS)}


def _array(value: list[Any]) -> dict[str, Any]:
    if value and all(isinstance(row, list) for row in value):
        is_matrix = len({len(row) for row in value}) == 1 and _all_numbers(value)
        fits = len(value) <= MOST_CELLS and len(value[0]) <= MOST_CELLS
        return {"kind": "matrix", "rows": value} if is_matrix and fits else {}
    if not value or not _all_numbers([value]):
        return {}
    return table({"index": list(range(len(value))), "value": value})


def _all_numbers(columns: Iterable[list[Any]]) -> bool:
    return all(isinstance(entry, int | float) and not isinstance(entry, bool) for column in columns for entry in column)


def slices(rows: Rows, settings: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns a table for each evaluation with slices: the metrics of all examples, then those of each slice."""
    found = []
    for evaluation in _names_of(settings, "evaluations"):
        named = _names_of(settings, f"evaluations.{evaluation}.slices")
        parts = [part for part in _parts(rows, evaluation) if part.partition("/")[0] in named]
        if not parts:
            continue
        last = {name: curve.values[-1] for name, curve in rows.curves.items() if curve.values}
        metrics = dict.fromkeys(
            name.removeprefix(f"{evaluation}/{part}/")
            for part in parts
            for name in last
            if name.startswith(f"{evaluation}/{part}/")
        )
        columns = sorted((name for name in metrics if name != COUNT), key=lambda name: name.count("/"))[:MOST_METRICS]
        whole = [last.get(f"{evaluation}/{metric}") for metric in columns]
        cells = [
            [part, last.get(f"{evaluation}/{part}/{COUNT}"), *(last.get(f"{evaluation}/{part}/{m}") for m in columns)]
            for part in parts
        ]
        step = max(rows.curves[f"{evaluation}/{part}/{COUNT}"].steps[-1] for part in parts)
        found.append(
            {
                "evaluation": evaluation,
                "step": step,
                "metrics": columns,
                "whole": whole,
                "rows": cells[:MOST_SLICES],
                "more": max(0, len(cells) - MOST_SLICES),
            }
        )
    return found


def slice_prefixes(rows: Rows, settings: Mapping[str, str]) -> tuple[str, ...]:
    """Returns what the names of the curves of slices start with."""
    return tuple(
        f"{evaluation}/{name}/"
        for evaluation in _names_of(settings, "evaluations")
        for name in _names_of(settings, f"evaluations.{evaluation}.slices")
    )


def _parts(rows: Rows, evaluation: str) -> list[str]:
    """Returns the slices of an evaluation: `heldout/digit/9/examples` belongs to the slice digit/9."""
    names = (name for name, curve in rows.curves.items() if curve.values and name.endswith(f"/{COUNT}"))
    return [
        name[len(evaluation) + 1 : -len(COUNT) - 1]
        for name in names
        if name.startswith(f"{evaluation}/") and name != f"{evaluation}/{COUNT}"
    ]


def _names_of(settings: Mapping[str, str], section: str) -> dict[str, None]:
    """Returns the names of the entries of a section, such as those of the evaluations, in their order."""
    start = f"{section}."
    return dict.fromkeys(name.removeprefix(start).partition(".")[0] for name in settings if name.startswith(start))


def worst_examples(rows: Rows) -> dict[str, dict[str, Any]]:
    """Returns evaluation -> the table of its worst examples, with the step."""
    found = {}
    for name, (step, value) in rows.results.items():
        evaluation, _, last = name.rpartition("/")
        if last == WORST_EXAMPLES and isinstance(value, dict):
            columns = {str(column): entries for column, entries in value.items() if isinstance(entries, list)}
            if columns and len({len(entries) for entries in columns.values()}) == 1:
                found[evaluation] = {"step": step, **table(columns)}
    return found
