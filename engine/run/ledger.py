"""The ledger of examples: which example each step of a run consumed, for audits (`log.examples`).

Each process writes `examples/<process>-of-<processes>.jsonl`, one line per batch, when the step is dispatched: a killed
process loses no line. An example is identified by its address (`data/sampler.py`). If examples have tags, such as
classes or the sources of a mixture, a line has the number of rows with each tag. If several attempts have done a step,
the last attempt counts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.base.json_text import read_lines
from engine.run.jsonl import JsonLinesWriter
from engine.run.log import logger


class Ledger:
    """Writes the lines of one process in one attempt.

    Args:
        folder: folder of the ledger; created if it is missing.
        process: index of this process.
        processes: number of processes.
        attempt: number of the attempt.

    Raises:
        RunError: the folder or the file cannot be written.
    """

    def __init__(self, folder: Path, process: int, processes: int, attempt: int):
        self._lines = JsonLinesWriter(folder, process, processes, attempt).open()

    def write(
        self, batch: int, rows: Sequence[int], examples: Sequence[int], tags: Mapping[str, int] | None = None
    ) -> None:
        """Adds batch number `batch`, which step `batch + 1` consumes, and its rows with each tag. Raises RunError."""
        line = {"step": batch + 1, "batch": batch, "rows": rows, "examples": examples}
        self._lines.add({**line, "tags": tags} if tags else line)

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()


def read(folder: Path) -> dict[int, list[int]]:
    """Returns step -> the examples of its global batch in row order, as of the step's last attempt.

    Rows that several processes fed identically count once. A warning says how many damaged lines are skipped.
    """
    steps: dict[int, tuple[int, dict[int, int]]] = {}
    for path in filter(Path.is_file, folder.glob("*.jsonl")):
        for line in _lines(path):
            attempt, rows = steps.get(line["step"], (0, {}))
            own = dict(zip(line["rows"], line["examples"], strict=True))
            if line["attempt"] >= attempt:
                steps[line["step"]] = (line["attempt"], rows | own if line["attempt"] == attempt else own)
    return {step: [rows[row] for row in sorted(rows)] for step, (_, rows) in sorted(steps.items())}


def shares(folder: Path, first: int, last: int) -> dict[str, float]:
    """Returns tag -> share of the examples of steps `first` to `last` that have the tag, by name.

    Each row counts once, as in `read`. The result is empty if the examples have no tags.
    """
    steps: dict[int, tuple[int, dict[tuple[int, ...], dict[str, int]]]] = {}
    for path in filter(Path.is_file, folder.glob("*.jsonl")):
        for line in _lines(path):
            if first <= line["step"] <= last:
                attempt, parts = steps.get(line["step"], (0, {}))
                own = {tuple(line["rows"]): line.get("tags", {})}
                if line["attempt"] >= attempt:
                    steps[line["step"]] = (line["attempt"], parts | own if line["attempt"] == attempt else own)
    parts = [part for _, parts in steps.values() for part in parts.items()]
    total, counts = sum(len(rows) for rows, _ in parts), Counter[str]()
    for _, tags in parts:
        counts.update(tags)
    return {tag: counts[tag] / total for tag in sorted(counts)}


def _lines(path: Path) -> list[dict[str, Any]]:
    def problem(line: dict[str, Any]) -> str:
        return "" if len(line["rows"]) == len(line["examples"]) else "rows and examples have different lengths"

    shape = {"step": int, "attempt": int, "rows": [int], "examples": [int], "tags?": {str: int}}
    found = read_lines(path, shape, problem)
    if note := found.note(path):
        logger.warning("%s", note)
    return found.values
