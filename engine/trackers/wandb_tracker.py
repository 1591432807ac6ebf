"""Sends metrics to Weights & Biases, or writes them as files for `wandb sync` (offline).

The variables of the package are used as always: `WANDB_API_KEY`, `WANDB_BASE_URL`, `WANDB_DIR`, `WANDB_MODE`,
`WANDB_PROJECT`, `WANDB_ENTITY`. Without a key, a run is written offline, into the run directory.
"""

import io
import os
import uuid
from collections.abc import Sequence
from typing import Any

from engine.base.extras import install_command
from engine.metrics.results import Bins, Result, Table
from engine.trackers.csv_tracker import table_lines
from engine.trackers.entries import Entry
from engine.trackers.pictures import picture
from engine.trackers.run_info import RunInfo
from engine.trackers.tracker import Tracker, package, require

_EXIT_CODES = {"done": 0, "failed": 1, "preempted": 42, "interrupted": 130}


class Wandb(Tracker):
    """Sends numbers, images, curves (as images), histograms, tables and the config.

    Args:
        project: the project; empty: WANDB_PROJECT, or the name of the config.
        entity: the user or team; empty: WANDB_ENTITY, or what W&B uses without it.
        mode: "online" or "offline"; empty: WANDB_MODE, or online if there is a key.
        group: the group of the run, such as the seeds of one config.
        tags: short words to find the run by.
    """

    kind = "wandb"

    def __init__(
        self, project: str = "", entity: str = "", mode: str = "", group: str = "", tags: tuple[str, ...] = ()
    ):
        super().__init__(project=project)
        require("wandb", install_command("wandb"))
        self._project = project or os.environ.get("WANDB_PROJECT", "")
        self._entity, self._mode, self._group, self._tags = entity, mode, group, tags
        self._run: Any = None

    @property
    def destination(self) -> str:
        """The entity and the project, as given."""
        return "/".join(filter(None, (self._entity, self._project))) or "wandb"

    def start(self, run: RunInfo) -> None:
        """Continues the run, or creates it. The x axis of every chart is the step of the run."""
        wandb = package("wandb")

        new = self.kept.setdefault("run", uuid.uuid4().hex[:12])
        mode = self._mode or os.environ.get("WANDB_MODE", "")
        if not mode:  # without a key, W&B would ask for one
            has_key = wandb.run is not None or wandb.login(prompt=False, verify=False)
            mode = "online" if has_key else "offline"
        self._run = wandb.init(
            project=self._project or run.project,
            entity=self._entity or None,
            id=new,
            name=run.name,
            resume="allow",
            mode=mode,
            dir=os.environ.get("WANDB_DIR") or os.fspath(run.path),
            group=self._group or None,
            tags=list(self._tags) or None,
            config={**run.settings, "tags": dict(run.tags)},
            allow_val_change=True,
            reinit="create_new",  # a program may have a run of its own
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, entries: Sequence[Entry]) -> None:
        """Sends each row; W&B's own step counts rows, since it refuses steps that go back."""
        count = self.kept.get("rows", 0)
        for count, entry in enumerate(entries, start=count + 1):  # noqa: B020
            values = {tag: shown for tag, value in entry.values.items() if (shown := _shown(value)) is not None}
            self._run.log({**values, "step": entry.step, "time": entry.time}, step=count)
        self.kept["rows"] = count

    def finish(self, state: str, reason: str) -> None:
        """Ends the run with the exit code of the command."""
        self._run.summary["state"], self._run.summary["reason"] = state, reason
        if state == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=_EXIT_CODES[state])


def _shown(value: Result) -> Any:
    """Returns a value as W&B shows it; None for one that it does not show."""
    wandb = package("wandb")

    if isinstance(value, int | float):
        return value
    if isinstance(value, Bins):
        return wandb.Histogram(np_histogram=(value.counts.tolist(), value.edges.tolist()))
    if isinstance(value, Table):
        columns, *rows = table_lines(value)
        return wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    if (png := picture(value)) is not None:
        from PIL import Image

        return wandb.Image(Image.open(io.BytesIO(png)))
    return None
