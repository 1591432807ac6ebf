"""The ledger of examples: which example each step of a run consumed, for audits (`log.examples`).

Each process writes `examples/<process>-of-<processes>.jsonl`, one line a batch, when the step is dispatched: a killed
process loses none. An example is the address that `data/sampler.py` gives it. Several attempts may have done a step;
the last one counts.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.run.jsonl import Lines


class Ledger:
    """The lines of one process in one attempt.

    Args:
        folder: of the ledger; made here.
        process: index of this process.
        processes: how many there are.
        attempt: of the run.

    Raises:
        RunError: the folder or the file cannot be written.
    """

    def __init__(self, folder: Path, process: int, processes: int, attempt: int):
        self._lines = Lines(folder, process, processes, attempt).open()

    def write(self, batch: int, rows: Sequence[int], examples: Sequence[int]) -> None:
        """Adds batch number `batch`, which makes step `batch + 1`. Raises RunError."""
        self._lines.add({"step": batch + 1, "batch": batch, "rows": rows, "examples": examples})

    def close(self) -> None:
        """Ends the file."""
        self._lines.close()


def read(folder: Path) -> dict[int, list[int]]:
    """Returns step -> the examples of its global batch, in the order of its rows, as of the step's last attempt.

    Rows that several processes fed alike count once. A line that a dying machine left half is passed over.
    """
    steps: dict[int, tuple[int, dict[int, int]]] = {}
    for path in folder.glob("*.jsonl"):
        for line in _lines(path):
            attempt, rows = steps.get(line["step"], (0, {}))
            own = dict(zip(line["rows"], line["examples"], strict=True))
            if line["attempt"] >= attempt:
                steps[line["step"]] = (line["attempt"], rows | own if line["attempt"] == attempt else own)
    return {step: [rows[row] for row in sorted(rows)] for step, (_, rows) in sorted(steps.items())}


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
