"""Writes metrics as CSV files: one for each group of tags, such as `train.csv` and `heldout.csv`, a column per metric.

After a rollback or a resume, the rows of repeated steps replace the earlier ones.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.base.files import replacing
from engine.metrics.results import Table
from engine.trackers.entries import Entry
from engine.trackers.folders import folder_of_run, local_folder
from engine.trackers.run_info import RunInfo
from engine.trackers.tracker import Tracker

type _Rows = dict[int, dict[str, Any]]
"""Step -> column -> value."""


class Csv(Tracker):
    """Writes CSV files. Tables are files of their own, `tables/TAG/STEP.csv`; images are left out.

    Args:
        folder: folder with a folder for each run; empty: `csv/` in the run directory.
    """

    kind = "csv"
    replaces = True

    def __init__(self, folder: str = ""):
        super().__init__(uri=folder and os.path.abspath(folder))
        self._folder, self._path = local_folder(folder), Path()
        self._columns: dict[str, list[str]] = {}  # of each file that was opened
        self._last: dict[str, int] = {}  # last step of each file

    @property
    def destination(self) -> str:
        """The folder."""
        return os.path.abspath(self._folder) if self._folder else "csv"

    def start(self, run: RunInfo) -> None:
        """Writes `settings.csv` and `tags.csv`."""
        parent = Path(self._folder) if self._folder else run.path
        self._path = folder_of_run(parent, run.name if self._folder else "csv", self.kept)
        self._write_pairs("settings", run.settings)
        self._write_pairs("tags", run.tags)

    def write(self, entries: Sequence[Entry]) -> None:
        """Appends rows; rewrites a file that gets another column, or whose steps are repeated."""
        groups: dict[str, _Rows] = {}
        for entry in entries:
            for tag, value in entry.values.items():
                group, _, column = tag.partition("/")
                if isinstance(value, Table):
                    self._write_table(tag, entry.step, value)
                elif isinstance(value, int | float):
                    rows = groups.setdefault(group, {})
                    if rows and entry.step < next(reversed(rows)):
                        rows = groups[group] = {step: row for step, row in rows.items() if step <= entry.step}
                    rows.setdefault(entry.step, {"step": entry.step})[column or group] = value
                    rows[entry.step]["time"] = entry.time
        for group, rows in groups.items():
            self._write_group(group, rows)

    def finish(self, state: str, reason: str) -> None:
        """Writes `end.csv`."""
        self._write_pairs("end", {"state": state, "reason": reason})

    def _write_group(self, group: str, rows: _Rows) -> None:
        path = self._path / f"{group}.csv"
        if group not in self._columns:
            known = _read(path)
            self._columns[group] = list(dict.fromkeys(name for row in known.values() for name in row))
            self._last[group] = max(known, default=-1)
        columns = list(
            dict.fromkeys(["step", "time", *self._columns[group], *(n for row in rows.values() for n in row)])
        )
        first = next(iter(rows))
        if columns != self._columns[group] or first <= self._last[group] or not _is_whole(path):
            kept: _Rows = {step: row for step, row in _read(path).items() if step <= first}
            kept[first] = {**kept.get(first, {}), **rows[first]}
            _replace(path, [columns, *_lines(columns, {**kept, **{s: row for s, row in rows.items() if s != first}})])
        else:
            with open(path, "a", newline="") as file:
                csv.writer(file).writerows(_lines(columns, rows))
        self._columns[group], self._last[group] = columns, next(reversed(rows))

    def _write_table(self, tag: str, step: int, table: Table) -> None:
        path = self._path / "tables" / tag / f"{step}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, table_lines(table))

    def _write_pairs(self, name: str, values: Mapping[str, Any]) -> None:
        _replace(self._path / f"{name}.csv", [["name", "value"], *values.items()])


def table_lines(table: Table) -> list[Sequence[Any]]:
    """Returns the names of the columns of a table, and its rows."""
    return [list(table.columns), *zip(*table.columns.values(), strict=True)]


def csv_text(lines: Iterable[Iterable[Any]]) -> str:
    """Returns lines as the text of a CSV file."""
    csv.writer(text := io.StringIO()).writerows(lines)
    return text.getvalue()


def _replace(path: Path, lines: Iterable[Iterable[Any]]) -> None:
    with replacing(path) as file:
        file.write(csv_text(lines).encode())


def _is_whole(path: Path) -> bool:
    """Whether a file ends with a complete line: a crash, or a full disk, may have cut the last one."""
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _lines(columns: Sequence[str], rows: _Rows) -> list[list[Any]]:
    return [[row.get(name, "") for name in columns] for row in rows.values()]


def _read(path: Path) -> _Rows:
    """Returns the rows of a file, of which a crash may have left the last one incomplete."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        return {int(row["step"]): row for row in rows if row.get("step") and None not in row.values()}
