"""What a row's function gets: the machine, the time that is left, and where results go.

A row runs in a process of its own (`child.py`). It appends each result to a file at once, so that a row which is
stopped leaves what it has measured. This file imports no jax.
"""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config import hardware

type Value = float | str | Sequence[float]
"""A number, a text, or one number for each turn."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What `probe.py` found."""

    platform: str  # cpu, gpu or tpu
    kind: str  # jax.Device.device_kind
    devices: int
    memory_bytes: int  # memory of a device; 0 if unknown
    torch: str  # interpreter with torch; empty without
    no_torch: str  # why torch is not measured
    versions: str

    def peak_flops(self, precision: str, devices: int) -> float | None:
        """Returns the peak FLOP/s of so many devices, or None for unknown devices."""
        return hardware.peak_flops(self.kind, precision, devices)


class Skipped(Exception):
    """This row cannot be measured on this machine, for the reason in the text."""


@dataclasses.dataclass
class Context:
    """The context of one row.

    Attributes:
        machine: the machine.
        tiny: whether sizes are tiny, to try the programs.
        results: the file to which results are appended, as JSON lines.
        deadline: monotonic time at which the row is stopped.
    """

    machine: Machine
    tiny: bool
    results: Path
    deadline: float

    def remaining_s(self) -> float:
        """Returns the seconds until the row is stopped."""
        return self.deadline - time.monotonic()

    def record(self, name: str, **values: Value) -> None:
        """Adds a line to the table of this row."""
        finite = {key: _finite(value) for key, value in values.items()}
        self._append({"line": {"name": name, **finite}})

    def summary(self, text: str, ratio: float | None = None) -> None:
        """Sets the summary of this row.

        Args:
            text: for people.
            ratio: the engine's time, or another value of which less is better, over that of the better baseline.
        """
        self._append({"summary": text, "ratio": ratio})

    def note(self, text: str) -> None:
        """Adds a sentence below the table of this row."""
        self._append({"note": text})

    def problem(self, text: str, late: bool = False) -> None:
        """Makes this row a failed one, although its other measurements continue.

        Args:
            text: the reason.
            late: whether the reason is only the time limit, which is no failure if it is that of all rows.
        """
        self._append({"problem": text, "late": late})

    def _append(self, line: dict[str, Any]) -> None:
        with open(self.results, "a") as file:
            print(json.dumps(line, allow_nan=False), file=file)


def _finite(value: Value) -> Value:
    """Returns a number as text if it is not finite, which JSON does not allow."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
