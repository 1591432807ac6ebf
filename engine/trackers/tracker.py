"""The interface of a tracker: three methods that talk to its package. The rest of a run does not wait for them.

A tracker of a config (`log.trackers`) is called in a thread of its own, from the import of its package on (`live.py`);
`convoy runs push` calls it directly.
"""

import abc
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from engine.base.errors import ConfigError
from engine.observe.writer import Row
from engine.run.directory import RunDirectory
from engine.trackers.addresses import without_password
from engine.trackers.entries import Entry
from engine.trackers.live import Live
from engine.trackers.run_info import RunInfo


class Tracker(abc.ABC):
    """Base class of trackers. A subclass imports its package in its methods, not in its constructor."""

    kind: str
    """A word for messages, and the name of the file that remembers what was sent."""
    replaces = False
    """Whether a value replaces an earlier one of the same tag and step, and those of later steps."""

    def __init__(self, **flags: str) -> None:
        """
        Args:
            flags: flags with which `convoy runs push` sends to the same place: uri and project. Empty ones are left
                out.
        """
        self.flags = {name: without_password(value) for name, value in flags.items() if value}
        self.kept: dict[str, Any] = {}
        """What the tracker needs to find its run again: stored in the run directory after each call. It must not hold
        a password. Its "run" is the id of the run: another one receives everything from the start."""
        self._live: Live | None = None

    @property
    @abc.abstractmethod
    def destination(self) -> str:
        """Where this tracker sends to: with another destination, a run is sent from its start."""

    @abc.abstractmethod
    def start(self, run: RunInfo) -> None:
        """Continues the run that `kept` names, or creates one and stores it in `kept`."""

    @abc.abstractmethod
    def write(self, entries: Sequence[Entry]) -> None:
        """Sends values, in the order of the run. An error of any kind makes a later call repeat them."""

    @abc.abstractmethod
    def finish(self, state: str, reason: str) -> None:
        """Ends the attempt: `state` is "done", "failed", "preempted" or "interrupted", `reason` says why, or is ""."""

    # What a run calls: `Tracker` of `observe/writer.py`.

    def open(self, directory: RunDirectory) -> None:
        """Starts the thread."""
        self._live = Live(self, directory)

    def add(self, row: Row) -> None:
        """Keeps what the line of a row does not hold."""
        if self._live is not None:
            self._live.add(row)

    def end(self, error: BaseException | None) -> None:
        """Makes the thread send the rest and end."""
        if self._live is not None:
            self._live.end(error)

    def join(self, deadline: float) -> None:
        """Waits for the end of the thread and reports what was not sent."""
        if self._live is not None:
            self._live.join(deadline)


def require(package: str, command: str) -> None:
    """Raises ConfigError if a package is not installed, with the command that installs it; does not import it."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{package} is not installed, which this tracker needs. Install it: {command}")


def package(name: str) -> Any:
    """Imports a package that may be absent, and of which the type checker therefore knows nothing."""
    return importlib.import_module(name)


def as_text(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns settings or tags as text."""
    return {name: str(value) for name, value in settings.items()}
