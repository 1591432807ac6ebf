"""Runs, datasets and exports with records of lineage, which tests write with the writers of the engine."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoint.manifest import Manifest, manifest_hash, write_manifest
from engine.data import dataset_summary
from engine.run import lineage
from engine.run.lineage import CHECKPOINT, DATA, Input, Names, Record
from tests.experiments.made import make_run

NO_NAMES = Names()


def run(folder: Path, inputs: Sequence[Input] = (), names: Mapping[str, Names] | None = None, **values: Any) -> Path:
    """Writes a run with a checkpoint of step 5, whose content depends on the path; returns its directory.

    Args:
        folder: the run directory.
        inputs: what it was made from; without any, it has no record.
        names: names of its data, by role.
        values: as for `make_run`.
    """
    make_run(folder, **{"step": 5, "total_steps": 5, **values})
    step = folder / "checkpoints" / "5"
    step.mkdir()
    write_manifest(step, Manifest(5, {}, {"params/w": str(folder)}))
    if inputs:
        record(folder / lineage.RECORD, Record(kind="run", inputs=inputs), names)
    return folder


def made_file(path: Path, kind: str, inputs: Sequence[Input], names: Mapping[str, Names] | None = None) -> Path:
    """Writes a file with a record, whose content is its path; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(path))
    identity = lineage.digest(str(path)) if kind == "dataset" else lineage.content_id(path)
    record(lineage.record_path(path), Record(kind=kind, inputs=inputs, id=identity, examples=3), names)
    return path


def record(path: Path, found: Record, names: Mapping[str, Names] | None = None) -> None:
    """Writes a record, and the names of its data by role."""
    path.write_text(found.to_text())
    if names:
        keys = {one.role: one.key for one in found.inputs}
        lineage.write_names(lineage.names_path(path), {keys[role]: one for role, one in names.items()})


def weights(run: Path, role: str = "weights") -> Input:
    """Returns the checkpoint of a run as an input."""
    return Input(kind=CHECKPOINT, role=role, path=str(run), step=5, id=manifest_hash(run / "checkpoints" / "5"))


def data(*datasets: Path, role: str = "data", **settings: str) -> Input:
    """Returns data that reads written datasets as an input."""
    return Input(
        kind=DATA,
        role=role,
        path="\n".join(map(str, datasets)),
        id=f"{role} content",
        examples="64",
        settings={"target": "tests.zoo.source", **settings},
        datasets=[lineage.digest(str(path)) for path in datasets],
    )


def forget(one: Input) -> Input:
    """Returns an input as older versions recorded it: without the identity of its content."""
    return dataclasses.replace(one, id="", step=None)


def store_data(run: Path, content: str) -> None:
    """Writes the summaries of a run's data."""
    summary = {"examples": "64", "each": "x float32[3]", "content": content}
    (run / "data.json").write_text(dataset_summary.to_text({"data": summary}))
