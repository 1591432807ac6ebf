"""Finds the runs below a folder, with an index that makes the next search fast.

The index is a JSON file in the folder. It holds the record of each run with the times and sizes of the files that the
record was made of, and only runs whose files have changed are read again. It may be deleted at any time.
"""

import dataclasses
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.base import json_text
from engine.base.errors import ConvoyError, RunError
from engine.base.files import replacing
from engine.experiments.record import FILES, STATUS, RunRecord, is_run, read_record
from engine.run import status

INDEX = ".convoy_runs.json"
SWEEP, TRIALS = "sweep.json", "trials"
"""The definition of a sweep in its folder, and the folder of its runs there."""
_VERSION = 3  # of the index; another one is ignored
_SHAPE = {
    "version": int,
    "runs": {
        str: {
            "stamp": [[int]],
            "record": {
                "path": str, "state": str, "step": int, "total_steps": int | None, "attempt": int, "started": str,
                "updated": str, "problem": str, "best": int | None, "config": {str: object}, "metrics": {str: float},
            },
        }
    },
}  # fmt: skip

type _Stamp = list[list[int]]
"""Time of the last change, size and inode of each of FILES; an empty list for one that is missing."""


class Deadline:
    """Bounds the time of a search, which keeps what it has found by then.

    Args:
        seconds: from now on; None never ends a search.

    Attributes:
        passed: whether a search was ended.
    """

    def __init__(self, seconds: float | None = None):
        self._end = math.inf if seconds is None else time.monotonic() + seconds
        self.passed = False

    def share(self) -> "Deadline":
        """Returns one with the same end for another search, which says whether that one was ended."""
        other = Deadline()
        other._end = self._end
        return other

    def ends_search(self) -> bool:
        """Returns whether a search must end now."""
        self.passed = self.passed or time.monotonic() >= self._end
        return self.passed


@dataclass(frozen=True)
class Found:
    """The runs below a folder.

    Attributes:
        runs: their records, sorted by path.
        others: folders with files of which none belongs to a run, relative to the folder.
    """

    runs: list[RunRecord]
    others: list[str]


def find_runs(folder: Path, deadline: Deadline | None = None) -> Found:
    """Returns the runs below a folder, or the run that the folder itself is.

    Hidden folders, links to folders, and folders inside of runs are not searched. Of a sweep, only its trials are.

    Args:
        folder: the folder.
        deadline: ends the search early.

    Raises:
        RunError: the folder cannot be read.
    """
    deadline = deadline or Deadline()
    known, entries, others = _read_index(folder), {}, []
    for path in _walk(folder, others, deadline):
        if deadline.ends_search():
            break
        run = folder / path
        stamp, entry = _stamp(run), known.get(path)
        if entry is None or entry["stamp"] != stamp:
            entry = {"stamp": stamp, "record": dataclasses.asdict(read_record(run, path))}
        entries[path] = entry
    listed = {**known, **entries} if deadline.passed else entries
    if listed != known and "." not in listed:  # a run directory is written by its run alone
        _write_index(folder, listed)
    runs = [_with_end(folder / path, RunRecord(**entries[path]["record"])) for path in sorted(entries)]
    return Found(runs, sorted(others))


def _walk(folder: Path, others: list[str], deadline: Deadline) -> list[str]:
    """Returns the paths of runs below a folder, and appends folders with files but no run to `others`."""
    if is_run(folder):
        return ["."]
    runs, waiting = [], [""]
    while waiting and not deadline.passed:
        name = waiting.pop()
        try:
            inside = list(os.scandir(folder / name))
        except OSError as error:
            if not name:
                raise RunError(f"{folder}: cannot be read ({error.strerror}). Give a folder with runs.") from error
            others.append(name)
            continue
        below = [entry for entry in inside if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)]
        if any(entry.name == SWEEP for entry in inside):
            below = [entry for entry in below if entry.name == TRIALS]
        if not below and inside and name:
            others.append(name)
        for entry in below:
            if deadline.ends_search():
                break
            path = f"{name}/{entry.name}" if name else entry.name
            (runs if is_run(folder / path) else waiting).append(path)
    return runs


def _stamp(run: Path) -> _Stamp:
    found: _Stamp = []
    for name in FILES:
        try:
            stat = os.stat(run / name)
            found.append([stat.st_mtime_ns, stat.st_size, stat.st_ino])
        except OSError:
            found.append([])
    return found


def _with_end(run: Path, record: RunRecord) -> RunRecord:
    """Returns the record of a run, with its end if its process was killed and could not write how it ended."""
    if record.state in status.RUNNING:
        with suppress(ConvoyError):
            if text := status.missing_end(run / STATUS):
                return dataclasses.replace(record, state="killed", problem=text)
    return record


def _read_index(folder: Path) -> dict[str, Any]:
    """Returns path -> entry; empty if there is no index, or none of this version."""
    with suppress(OSError, ValueError):
        stored = json_text.read(folder / INDEX, _SHAPE)
        return stored["runs"] if stored["version"] == _VERSION else {}
    return {}


def _write_index(folder: Path, entries: dict[str, Any]) -> None:
    """Writes the index; a folder that cannot be written stays without one."""
    with suppress(OSError), replacing(folder / INDEX) as file:
        file.write(json_text.dumps({"version": _VERSION, "runs": entries}).encode())
