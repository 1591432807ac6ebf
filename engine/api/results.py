"""Results of evaluations: dicts, which notebooks show as tables."""

from engine.base import formatting, html
from engine.metrics.results import Bins, Curve, File, Image, Result, Table, titled

_MAX_ROWS = 100  # rows of a table; `dict(results)` shows all results


class Results(dict[str, Result]):
    """The results of one checkpoint: name -> result. A notebook shows numbers and tables, and names the others."""

    def _repr_html_(self) -> str:
        rows = [(name, _text(result)) for name, result in self.items() if not isinstance(result, Table)]
        rows = [*rows[:_MAX_ROWS], *([("...", f"{len(rows) - _MAX_ROWS} more")] if len(rows) > _MAX_ROWS else [])]
        tables = [_table(name, result) for name, result in self.items() if isinstance(result, Table)]
        return html.table(rows, header=("result", "value")) + "".join(tables)


class StepResults(list[Results]):
    """The results of several checkpoints, in order. A notebook shows the numbers in one table."""

    def _repr_html_(self) -> str:
        names = dict.fromkeys(name for found in self for name, x in found.items() if isinstance(x, int | float))
        rows = [[_number(found.get(name)) for name in names] for found in self[:_MAX_ROWS]]
        return html.table(rows, header=list(names))


def _number(result: object) -> str:
    return formatting.number(result) if isinstance(result, int | float) else "-"


def _text(result: Result) -> str:
    if isinstance(result, Curve):
        return f"curve of {len(result.x)} points"
    if isinstance(result, Bins):
        return f"histogram of {len(result.counts)} bins"
    if isinstance(result, Image):
        return "image" + (f": figures/{result.file}" if result.file else "")
    if isinstance(result, File):
        return f"file: {result.path}"
    if isinstance(result, int | float):
        return formatting.number(result)
    return f"array {list(getattr(result, 'shape', ()))}"


def _table(name: str, table: Table) -> str:
    columns = [[formatting.number(entry) for entry in column[:_MAX_ROWS]] for column in table.columns.values()]
    return html.table(list(zip(*columns, strict=True)), header=list(table.columns), title=titled(name, table))
