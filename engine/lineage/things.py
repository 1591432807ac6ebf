"""Finds runs, datasets, predictions and exports below a folder, with what each was made from.

Runs of older versions have no record: their data comes from `data.json`, and their parents from their config.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.base.errors import ConvoyError
from engine.base.json_text import reason
from engine.data import dataset_summary
from engine.experiments.index import Deadline, find_runs
from engine.experiments.record import RunRecord, is_run, read_record
from engine.run import lineage
from engine.run.directory import PER_EXAMPLE
from engine.run.lineage import CHECKPOINT, DATA, RECORD, Input, Record

RUN, DATASET, PREDICTIONS, EXPORT = "run", "dataset", "predictions", "export"
OWN_FOLDERS = frozenset(
    ("checkpoints", "tensorboard", "profile", "figures", "examples", "stacks", "bad_examples", PER_EXAMPLE, "lease")
)
"""Folders of a run, in which users keep no files of their own."""
WEIGHTS_FROM = "data.weights_from"  # setting that names a run, or a folder or a file of its metrics of examples


@dataclass(frozen=True, eq=False)
class Thing:
    """A run, a dataset, predictions or an export.

    Attributes:
        kind: RUN, DATASET, PREDICTIONS or EXPORT.
        path: the run directory, the file or the bundle, absolute and without links. A dataset may have shards only.
        record: what it was made from.
        problem: what could not be read, a sentence; "" if nothing.
        run: of a run, its entry in the list of runs.
        names_path: where the names that its data holds are, if they were recorded.
    """

    kind: str
    path: Path
    record: Record
    problem: str = ""
    run: RunRecord | None = None
    names_path: Path = Path()

    def inputs(self, kind: str) -> list[Input]:
        """Returns its inputs of a kind."""
        return [one for one in self.record.inputs if one.kind == kind]


def find_things(folder: Path, deadline: Deadline | None = None) -> list[Thing]:
    """Returns everything with a record, and all runs, below a folder or in the run that it is; sorted by path.

    Hidden folders and links to folders are not searched.

    Args:
        folder: the folder.
        deadline: ends the search early.

    Raises:
        RunError: the folder cannot be read.
    """
    folder, deadline = folder.resolve(), deadline or Deadline()
    runs = {(folder / run.path).resolve(): run for run in find_runs(folder, deadline).runs}
    found = []
    for path, run in runs.items():
        if deadline.ends_search():
            break
        found.append(run_thing(path, run))
    for path in _records(folder, runs.keys(), deadline):
        found.append(file_thing(path))
    return sorted(found, key=lambda thing: str(thing.path))


def _records(folder: Path, runs: Any, deadline: Deadline) -> Iterator[Path]:
    """Yields the records of files below a folder."""
    seen = set[Path]()
    for parent, folders, files in os.walk(folder):
        if deadline.ends_search():
            return
        own = OWN_FOLDERS if Path(parent) in runs else frozenset()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in own)
        for name in sorted(files):
            if name.endswith(f".{RECORD}") and not name.startswith("."):
                path = Path(parent, name)
                if (real := _real(path)) not in seen:  # a link to a record
                    seen.add(real)
                    yield real


def thing_at(path: Path) -> Thing | None:
    """Returns the run directory, or the file or the bundle with a record, at a path; None if there is none.

    A shard of a dataset stands for the dataset, and a link for what it refers to.
    """
    real = path.resolve()
    if real.is_dir() and is_run(real):
        return run_thing(real, read_record(real, real.name))
    for record in (lineage.record_path(real), lineage.record_path(path.absolute())):
        if record.exists():
            return file_thing(_real(record))
    return None


def _real(record: Path) -> Path:
    """Returns a record without links, unless a link gives it a name that is none of a record."""
    real = record.resolve()
    return real if real.name.endswith(f".{RECORD}") else record


def file_thing(record: Path) -> Thing:
    """Returns the file or the dataset of a record; it has a `problem` if the record cannot be read."""
    path, problem = record.with_name(record.name.removesuffix(f".{RECORD}")), ""
    try:
        found = lineage.read(record)
    except (OSError, ValueError) as error:
        found, problem = None, f"{record}: cannot be read ({reason(error)})."
    if found is None:
        return Thing("unknown", path, Record(kind="unknown"), problem or f"{record}: is missing.")
    return Thing(found.kind, path, found, problem, names_path=lineage.names_path(record))


def run_thing(path: Path, run: RunRecord) -> Thing:
    """Returns a run; without a record, its inputs are those that its other files name."""
    record, problems = None, []
    try:
        record = lineage.read(path / RECORD)
    except (OSError, ValueError) as error:
        problems.append(f"{path / RECORD}: cannot be read ({reason(error)}).")
    inputs = list(record.inputs) if record is not None else []
    if not any(one.kind == DATA for one in inputs):
        try:
            inputs += _stored_data(path, run.config)
        except ConvoyError as error:
            problems.append(str(error))
    recorded = {one.role for one in inputs if one.kind == CHECKPOINT}
    inputs += [one for one in _configured_parents(run.config) if one.role not in recorded]
    whole = replace(record or Record(kind=RUN), inputs=tuple(inputs))
    return Thing(RUN, path, whole, " ".join(problems), run, path / lineage.NAMES)


def _stored_data(path: Path, config: Mapping[str, Any]) -> list[Input]:
    stored = dataset_summary.read(path / "data.json")
    return [
        Input(
            kind=DATA,
            role=role,
            id=one["content"],
            examples=one["examples"],
            settings=lineage.data_settings(config, role),
        )
        for role, one in stored.items()
    ]


def _configured_parents(config: Mapping[str, Any]) -> Iterator[Input]:
    """Yields the runs that a config names, as inputs without an identity."""
    for name, value in config.items():
        role = name.removesuffix(".checkpoint")
        if value and (name == WEIGHTS_FROM or (role != name and (role == "init" or role.startswith("init.sources.")))):
            value = str(value).rstrip("/").partition(f"/{PER_EXAMPLE}/")[0] if name == WEIGHTS_FROM else value
            path, _, step = str(value).rstrip("/").rpartition("/checkpoints/")
            if path and step.isdecimal():
                yield Input(kind=CHECKPOINT, role=role, path=path, step=int(step))
            else:
                yield Input(kind=CHECKPOINT, role=role, path=str(value))
