"""Remembers in the run directory what a tracker has received: `trackers/KIND.json`, one entry for each destination.

So a resumed run continues the same run of the tracker, also on another machine, and a second push sends nothing twice.
"""

import dataclasses
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.base import json_text
from engine.base.errors import RunError
from engine.run.directory import RunDirectory

FOLDER = "trackers"
_writing = threading.Lock()  # two trackers of one kind write to one file, each in its thread
_SHAPE = {str: {"kept": {str: object}, "offset": int, "last": {str: int}, "state": str}}


@dataclass
class Position:
    """What one destination has received.

    Attributes:
        kept: what the tracker needs to find its run again, such as an id.
        offset: bytes of `metrics.jsonl` that were sent.
        last: tag -> last step with a value.
        state: how the run ended, as the tracker was told; "" if it was not.
    """

    kept: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    last: dict[str, int] = field(default_factory=dict)
    state: str = ""


class PositionFile:
    """The positions of one kind of tracker.

    Args:
        directory: the run directory.
        kind: the kind of tracker, such as "mlflow".
        destination: where it sends to; holds no password.
    """

    def __init__(self, directory: RunDirectory, kind: str, destination: str):
        self._directory, self._destination = directory, destination
        self.path: Path = directory.path / FOLDER / f"{kind}.json"

    def read(self) -> Position:
        """Returns the position; that of the start if nothing was sent yet. Raises RunError if the file is damaged."""
        found = self._read().get(self._destination)
        return Position() if found is None else Position(**found)

    def write(self, position: Position) -> None:
        """Stores the position. Raises RunError if it cannot be written, and LeaseLost."""
        self.path.parent.mkdir(exist_ok=True)
        with _writing:
            found = {**self._read(), self._destination: dataclasses.asdict(position)}
            self._directory.lease.replace_text(self.path, json_text.dumps(found) + "\n")

    def _read(self) -> dict[str, Any]:
        try:
            return json_text.read(self.path, _SHAPE)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.path}: cannot be read ({json_text.reason(error)}), so what was sent is not known. "
                "Remove it to send the whole run to a new run of the tracker."
            ) from error
