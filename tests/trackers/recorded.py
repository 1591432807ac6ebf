"""A tracker of a user, which keeps in memory what it receives, and fails or waits when it is asked to."""

import threading
from collections.abc import Sequence
from typing import Any

from engine.trackers.entries import Entry
from engine.trackers.run_info import RunInfo
from engine.trackers.tracker import Tracker


class Recorded(Tracker):
    """Keeps all calls of all objects in `calls`, which a test clears.

    Args:
        place: the destination.
        failures: number of calls of `write` that raise an error.
    """

    kind = "recorded"
    calls: list[tuple[Any, ...]] = []  # noqa: RUF012
    waits = threading.Event()
    """`write` waits until it is set."""
    written = threading.Event()
    """Set by `write`."""

    def __init__(self, place: str = "here", failures: int = 0):
        super().__init__(uri=place)
        self._place, self._failures = place, failures

    @property
    def destination(self) -> str:
        """The place."""
        return self._place

    def start(self, run: RunInfo) -> None:
        """Records whether the run is continued."""
        self.calls.append(("start", self.kept.get("run"), run.name))
        self.kept.setdefault("run", f"run-{len(self.calls)}")

    def write(self, entries: Sequence[Entry]) -> None:
        """Records the values."""
        self.waits.wait()
        self._failures -= 1
        if self._failures >= 0:
            raise ConnectionError("no answer from http://ann:secret@server")
        self.calls.append(("write", [(entry.step, dict(entry.values)) for entry in entries]))
        self.written.set()

    def finish(self, state: str, reason: str) -> None:
        """Records the end."""
        self.calls.append(("finish", state, reason))


def reset() -> None:
    """Forgets what earlier tests sent."""
    Recorded.calls.clear()
    Recorded.waits.set()
    Recorded.written.clear()


def sent(tag: str) -> list[tuple[int, Any]]:
    """Returns the steps and values of a tag, in the order in which they were sent."""
    entries = [entry for call in Recorded.calls if call[0] == "write" for entry in call[1]]
    return [(step, values[tag]) for step, values in entries if tag in values]
