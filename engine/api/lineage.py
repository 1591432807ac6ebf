"""Writes records of lineage (`engine/run/lineage.py`): of runs, of predictions, and of exported weights."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from engine.api.predictions import EXAMPLE, Columns
from engine.api.saved_predictor import SavedPredictor
from engine.api.saved_run import SavedRun
from engine.base.errors import ConvoyError, DataError
from engine.base.json_text import now
from engine.checkpoint.manifest import manifest_hash
from engine.checkpoint.store import CheckpointStore
from engine.config.schema import Config
from engine.config.target import target_names
from engine.config.text import field_texts
from engine.data import dataset_summary, source_lineage
from engine.data.source import BaseSource
from engine.run import code, lineage
from engine.run.atomic import write_text
from engine.run.directory import RunDirectory
from engine.run.lineage import CHECKPOINT, DATA, Input, Record
from engine.storage.mounts import shown


def record_run(
    directory: RunDirectory,
    config: Config,
    sources: Mapping[str, BaseSource],
    summaries: Mapping[str, dataset_summary.Summary],
) -> None:
    """Records the data of an attempt; the primary calls it before it stores the new `data.json`.

    Data of earlier attempts stays in the record once there is a checkpoint that was trained on it.

    Args:
        directory: the run directory, which is open.
        config: the config of the run.
        sources: section -> its data.
        summaries: section -> summary of its data.
    """
    texts = field_texts(config)
    inputs = [
        source_lineage.describe(source, role, summaries[role], lineage.data_settings(texts, role))
        for role, source in sources.items()
    ]
    names = {
        one.key: functools.partial(source_lineage.names_of, source)
        for one, source in zip(inputs, sources.values(), strict=True)
    }
    resumes = CheckpointStore(directory.checkpoints).latest() is not None
    path = directory.path / lineage.RECORD
    if resumes and not path.exists():  # the earlier attempt was on arrays, or of an older version
        before = dataset_summary.read(directory.data)
        if {role: one["content"] for role, one in before.items()} == {one.role: one.id for one in inputs}:
            before = {}
        known = directory.attempt - 1  # the latest attempt that used this data
        inputs += [
            Input(kind=DATA, role=role, id=one["content"], examples=one["examples"], attempt=known)
            for role, one in before.items()
        ]
        if not (before or any(map(dataset_summary.reads_files, sources.values()))):
            return
    lineage.update_run(directory, inputs, names, lambda one: resumes or one.kind != DATA)


def checkpoint_input(saved: SavedRun, step: int, role: str = "weights") -> Input:
    """Returns a checkpoint of a run as an input of a record."""
    return input_of(saved.directory, step, role)


def input_of(directory: RunDirectory, step: int, role: str) -> Input:
    """Returns a checkpoint in a run directory as an input of a record."""
    identity = manifest_hash(directory.checkpoints / str(step))
    return Input(kind=CHECKPOINT, role=role, path=address_of(directory), step=step, id=identity)


def address_of(directory: RunDirectory) -> str:
    """Returns the absolute path of a run directory, or its address in a bucket."""
    found = shown(directory.path)
    return found if found != str(directory.path) else str(directory.path.absolute())


def write_record(
    path: Path,
    record: Record,
    config: Config,
    names: Mapping[str, lineage.Names] | None = None,
    content: Path | None = None,
) -> None:
    """Writes the record of a file, with the time and the version of the code that this process runs.

    Args:
        path: the file, or the folder of a bundle.
        record: what it was made from; its `id`, code and time are set here.
        config: config of the run, whose code made the file.
        names: names of the data among its inputs, by key.
        content: the file whose hash identifies it; None: the file itself.

    Raises:
        DataError: the record cannot be written.
    """
    found, at = code.describe(target_names(config), 0), lineage.record_path(path)
    whole = dataclasses.replace(
        record,
        id=lineage.content_id(content or path),
        commit=found.commit,
        dirty=found.dirty,
        packages=found.packages,
        time=now(),
    )
    try:
        known = {key: one for key, one in (names or {}).items() if one}
        if known:
            lineage.write_names(lineage.names_path(at), known)
        else:
            lineage.names_path(at).unlink(missing_ok=True)
        write_text(at, whole.to_text())
    except (OSError, ConvoyError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"{path}: was written, but not its record of lineage: {reason}") from error


class PredictionLineage:
    """Collects what the record of predictions needs while they are written. Only the primary has one.

    Args:
        path: file of the predictions.
        opened: the predictions.
    """

    def __init__(self, path: Path, opened: SavedPredictor):
        self._path, self._config, predictor = path, opened.config, opened.predictor
        summary = {"examples": str(predictor.examples), "content": predictor.source.fingerprint()}
        settings = lineage.data_settings(field_texts(opened.config), opened.where)
        self._input = source_lineage.describe(predictor.source, opened.where, summary, settings)
        self._names = source_lineage.names_of(predictor.source)
        self._checkpoint = checkpoint_input(opened.saved, opened.step)
        self._text: dict[str, set[str]] = {name: set() for name in predictor.text}
        self._examples = 0

    def add(self, columns: Columns) -> None:
        """Adds the text of a batch."""
        self._examples += len(columns[EXAMPLE])
        for name in self._text:
            lineage.collect(self._text, name, filter(None, map(source_lineage.name_text, columns[name])))

    def write(self) -> None:
        """Writes the record. Raises DataError if it cannot be written."""
        for name, values in self._text.items():
            self._names.add_values(name, list(values))
        record = Record(kind="predictions", inputs=(self._checkpoint, self._input), examples=self._examples)
        write_record(self._path, record, self._config, {self._input.key: self._names})


def record_export(path: Path, saved: SavedRun, step: int, averaged: bool, content: Path | None = None) -> None:
    """Writes the record of exported weights or of a bundle. Raises DataError if it cannot be written.

    Args:
        path: the file, or the folder of a bundle.
        saved: the run.
        step: step of the checkpoint.
        averaged: whether the weights are averages.
        content: as for `write_record`.
    """
    remove_record(path)
    settings = {"weights": "averaged" if averaged else "trained"}
    record = Record(kind="export", inputs=(checkpoint_input(saved, step),), settings=settings)
    write_record(path, record, saved.config, content=content)


def remove_record(path: Path) -> None:
    """Removes the record of a file that is being replaced."""
    at = lineage.record_path(path)
    for file in (at, lineage.names_path(at)):
        with contextlib.suppress(OSError):
            file.unlink()
