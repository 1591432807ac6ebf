"""Sends the rows of a run to a tracker, from where the last send ended, and remembers how far it came."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from engine.base.errors import RunError
from engine.metrics.results import Result
from engine.run.directory import RunDirectory
from engine.trackers.entries import Entry, Key, Lines, read_entries
from engine.trackers.position import Position, PositionFile
from engine.trackers.run_info import read_run

if TYPE_CHECKING:
    from engine.trackers.tracker import Tracker

ROWS = 500  # lines in one call of `Tracker.write`


class Sender:
    """One tracker of one run. Every method may raise any error of the tracker, and may be called again after it.

    Args:
        tracker: the tracker.
        directory: the run directory.
        rich: returns the values of a row that its line does not hold; None if they are not known.
    """

    def __init__(
        self,
        tracker: "Tracker",
        directory: RunDirectory,
        rich: Callable[[Key], Mapping[str, Result] | None] = lambda key: None,
    ):
        self._tracker, self._directory, self._rich = tracker, directory, rich
        self._file = PositionFile(directory, tracker.kind, tracker.destination)
        self._position: Position | None = None
        self.rows = 0
        """Rows that were sent."""
        self.damaged = 0
        """Lines that were skipped because they cannot be read."""

    def send(self, on_sent: Callable[[Lines], None] = lambda lines: None) -> None:
        """Sends the complete lines that were not sent yet."""
        position = self._started()
        if not self._directory.metrics.exists():
            return
        if position.offset > self._directory.metrics.stat().st_size:
            position.offset = 0  # another file: `last` says which of its values are new
        figures = self._directory.figures
        for lines in read_entries(self._directory.metrics, position.offset, figures, self._rich, ROWS):
            last = dict(position.last)
            new = [found for entry in lines.entries if (found := self._new_values(entry, last)).values]
            if new:
                self._directory.lease.check()  # a job that has taken the run over sends these rows, too
                self._tracker.write(new)
            position.offset, position.last, position.kept = lines.end, last, self._tracker.kept
            self._file.write(position)
            self.rows, self.damaged = self.rows + len(lines.entries), self.damaged + lines.damaged
            on_sent(lines)

    def finish(self, state: str, reason: str) -> None:
        """Tells the tracker how the attempt has ended."""
        position = self._started()
        self._directory.lease.check()
        self._tracker.finish(state, reason)
        position.state, position.kept = state, self._tracker.kept
        self._file.write(position)

    def is_complete(self, state: str) -> bool:
        """Returns whether the tracker has all rows of a run, and knows its end."""
        position = self._file.read()
        return bool(position.kept) and not self.unsent() and position.state == state

    def unsent(self) -> int:
        """Returns the number of lines that were not sent."""
        try:
            position = self._position or self._file.read()
            with open(self._directory.metrics, "rb") as file:
                file.seek(position.offset)
                return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        except (OSError, RunError):
            return 0

    def _started(self) -> Position:
        if self._position is None:
            position = self._file.read()
            before = position.kept.get("run")
            self._tracker.kept = dict(position.kept)
            info = read_run(self._directory)
            self._directory.lease.check()
            try:
                self._tracker.start(info)
            finally:  # also after an error: a run that was created must be found by the next call
                if self._tracker.kept.get("run") != before:
                    position = Position()
                position.kept, position.state = self._tracker.kept, ""
                self._file.write(position)
            self._position = position
        return self._position

    def _new_values(self, entry: Entry, last: dict[str, int]) -> Entry:
        """Returns the entry without the values of steps that were sent before, and adds its steps to `last`.

        A run repeats steps after a rollback, and when it is resumed.
        """
        if not self._tracker.replaces:
            new = {tag: value for tag, value in entry.values.items() if entry.step > last.get(tag, -1)}
            entry = Entry(entry.step, entry.time, new)
        last.update(dict.fromkeys(entry.values, entry.step))
        return entry
