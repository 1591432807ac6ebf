"""Sends metrics to Trackio: a local SQLite file, or a Space of Hugging Face.

The variables of the package are used as always, such as `TRACKIO_DIR` (its folder) and `HF_TOKEN`.
"""

import io
from collections.abc import Sequence
from typing import Any

from engine.metrics.results import Bins, Result, Table
from engine.trackers.csv_tracker import table_lines
from engine.trackers.entries import Entry
from engine.trackers.pictures import picture
from engine.trackers.run_info import RunInfo
from engine.trackers.tracker import Tracker, package, require


class Trackio(Tracker):
    """Sends numbers, images, curves (as images), histograms, tables and the config.

    Args:
        project: the project; empty: the name of the config.
        space: the Space that receives the metrics, such as team/runs; empty: local files.
        group: the group of the run, such as the seeds of one config.
    """

    kind = "trackio"

    def __init__(self, project: str = "", space: str = "", group: str = ""):
        super().__init__(uri=space, project=project)
        require("trackio", "pip install 'trackio>=0.43'")
        self._project, self._space, self._group = project, space, group
        self._run: Any = None

    @property
    def destination(self) -> str:
        """The Space and the project, as given."""
        return "/".join(filter(None, (self._space, self._project))) or "trackio"

    def start(self, run: RunInfo) -> None:
        """Continues the run, or creates it under the first name that is free."""
        trackio = package("trackio")

        project = self._project or run.project
        known = "run" in self.kept
        if not known:
            taken, number = set() if self._space else _runs(project), 1
            while (name := run.name if number == 1 else f"{run.name}-{number}") in taken:
                number += 1
            self.kept["run"] = name
        self._run = trackio.init(
            project,
            name=self.kept["run"],
            group=self._group or None,
            space_id=self._space or None,
            config={**run.settings, "tags": dict(run.tags)},
            resume="allow" if known else "never",
            embed=False,
        )

    def write(self, entries: Sequence[Entry]) -> None:
        """Sends each row at its step."""
        for entry in entries:
            values = {tag: shown for tag, value in entry.values.items() if (shown := _shown(value)) is not None}
            if values:
                self._run.log(values, step=entry.step)

    def finish(self, state: str, reason: str) -> None:
        """Ends the run. Trackio has no states: a run that did not finish gets an alert."""
        if state != "done":
            self._run.alert(title=f"run {state}", text=reason)
        self._run.finish()


def _runs(project: str) -> set[str]:
    trackio = package("trackio")

    try:
        return {found.name for found in trackio.Api().runs(project)}
    except ValueError:  # there is no such project yet
        return set()


def _shown(value: Result) -> Any:
    """Returns a value as Trackio shows it; None for one that it does not show."""
    trackio = package("trackio")

    if isinstance(value, int | float):
        return value
    if isinstance(value, Bins):
        return trackio.Histogram(np_histogram=(value.counts, value.edges))
    if isinstance(value, Table):
        columns, *rows = table_lines(value)
        return trackio.Table(columns=list(columns), data=[list(row) for row in rows])
    if (png := picture(value)) is not None:
        from PIL import Image

        return trackio.Image(Image.open(io.BytesIO(png)))
    return None
