"""Sends finished runs to a tracker, from their stored files. A second push sends only what the first one lacked."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from engine.base.errors import ConfigError, ConvoyError, RunError, did_you_mean
from engine.base.user_errors import describe
from engine.config.schema import Target
from engine.config.target import build
from engine.run import status
from engine.run.directory import RunDirectory
from engine.trackers.addresses import without_password
from engine.trackers.sender import Sender
from engine.trackers.tracker import Tracker

KINDS = {
    "csv": "engine.trackers.csv_tracker.Csv",
    "mlflow": "engine.trackers.mlflow_tracker.MLflow",
    "tensorboard": "engine.trackers.tensorboard_tracker.TensorBoard",
    "trackio": "engine.trackers.trackio_tracker.Trackio",
    "wandb": "engine.trackers.wandb_tracker.Wandb",
}
"""Name of a tracker -> its class."""
_URI = {"csv": "folder", "mlflow": "uri", "tensorboard": "folder", "trackio": "space"}
_PROJECT = {"mlflow": "experiment", "trackio": "project", "wandb": "project"}
_ADVICE = {
    ("wandb", "uri"): "Set WANDB_BASE_URL to the address of the server.",
    ("csv", "project"): "Each run has a folder below --uri=FOLDER.",
    ("tensorboard", "project"): "Each run has a folder below --uri=FOLDER.",
}


@dataclass(frozen=True)
class Pushed:
    """What was sent of one run.

    Attributes:
        path: the run directory.
        rows: rows that were sent; 0 if the tracker had all of them.
        damaged: lines of `metrics.jsonl` that cannot be read.
    """

    path: str
    rows: int
    damaged: int


def tracker_of(name: str, arguments: dict[str, Any]) -> Tracker:
    """Returns a tracker by its name in KINDS, or by the dotted path of a class.

    Raises:
        ConfigError: there is no such tracker, or it does not take an argument.
    """
    if name not in KINDS and "." not in name:
        raise ConfigError(f"--to={name}: no such tracker.{did_you_mean(name, KINDS)} Known: {', '.join(KINDS)}.")
    found = build(Target(target=KINDS.get(name, name), arguments=arguments), "to")
    if not isinstance(found, Tracker):
        raise ConfigError(f"--to={name}: is no tracker. Name one of {', '.join(KINDS)}, or a subclass of Tracker.")
    return found


def arguments_of(name: str, uri: str | None, project: str | None) -> dict[str, Any]:
    """Returns the arguments of a tracker for an address or folder, and for a project.

    Raises:
        ConfigError: the tracker has no such argument.
    """
    found: dict[str, Any] = {}
    for flag, value, names in (("uri", uri, _URI), ("project", project, _PROJECT)):
        if value is None:
            continue
        if name in KINDS and name not in names:
            raise ConfigError(f"--{flag}: --to={name} takes none. {_ADVICE[name, flag]}")
        found[names.get(name, flag)] = value
    return found


def push(runs: Iterable[str], name: str, arguments: dict[str, Any]) -> Iterator[Pushed]:
    """Sends runs one after the other; yields what was sent of each.

    Args:
        runs: run directories.
        name: as for `tracker_of`.
        arguments: the arguments of the tracker.

    Raises:
        RunError: a directory is no run, its run is in progress, or the tracker fails.
    """
    for path in runs:
        directory = RunDirectory(path)
        status.complete_missing_end(directory.status)
        last = status.read(directory.status)
        if last.state in status.RUNNING:
            raise RunError(
                f"{path}: the run is in progress. Push it after its end, or name the tracker in log.trackers of its "
                "config: a run that is started again sends its earlier rows, too."
            )
        tracker = tracker_of(name, arguments)
        sender = Sender(tracker, directory)
        if sender.is_complete(last.state):
            yield Pushed(path, 0, 0)
            continue
        try:
            sender.send()
            sender.finish(last.state, last.reason)
        except ConvoyError:
            raise
        except Exception as error:
            raise RunError(
                f"{path}: {tracker.kind} ({tracker.destination}) has failed: {without_password(describe(error))} "
                "Push again to send the rest."
            ) from error
        yield Pushed(path, sender.rows, sender.damaged)
