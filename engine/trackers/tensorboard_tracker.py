"""Writes metrics as TensorBoard event files into a folder of several runs.

Every run writes event files into its own directory anyway (`log.tensorboard`). This tracker writes them elsewhere: a
folder that a team watches, or, with `convoy runs push`, a run that was trained without them.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from engine.observe.tensorboard import EventFiles
from engine.trackers.entries import Entry
from engine.trackers.folders import folder_of_run, local_folder
from engine.trackers.run_info import RunInfo
from engine.trackers.tracker import Tracker

_TAGS = ("git.commit", "parent")  # listed as hyperparameters, since TensorBoard has no tags of runs


class TensorBoard(Tracker):
    """Writes event files with numbers, histograms, images, curves, tables and hyperparameters.

    Args:
        folder: the folder for `tensorboard --logdir`, with a folder for each run.
    """

    kind = "tensorboard"

    def __init__(self, folder: str = "tensorboard"):
        super().__init__(uri=os.path.abspath(folder))
        self._folder = local_folder(folder)
        self._events: EventFiles | None = None

    @property
    def destination(self) -> str:
        """The folder."""
        return os.path.abspath(self._folder)

    def start(self, run: RunInfo) -> None:
        """Opens the files."""
        known = "run" in self.kept
        folder = folder_of_run(Path(self._folder), run.name, self.kept)
        values = {name: v if isinstance(v, bool | int | float) else str(v) for name, v in run.hyperparameters.items()}
        values |= {name: run.tags[name] for name in _TAGS if name in run.tags}
        self._events = EventFiles(folder, lambda: {} if known else values, lambda tag, _: tag)

    def write(self, entries: Sequence[Entry]) -> None:
        """Adds events."""
        assert self._events is not None
        self._events.add([{"step": entry.step, "time": entry.time, **entry.values} for entry in entries])
        self._events.flush()

    def finish(self, state: str, reason: str) -> None:
        """Closes the files."""
        if self._events is not None:
            self._events.close()
