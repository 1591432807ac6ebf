"""The record of lineage of a written dataset: its source with its files and settings, and the names that it holds.

The record has no time: the same dataset gives the same bytes, whatever the number of processes and of interruptions.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from engine.base.errors import ConvoyError
from engine.config.schema import Data
from engine.config.target import target_names
from engine.config.text import field_texts
from engine.data import source_lineage
from engine.data.source import BaseSource, source_name
from engine.datasets.given import Given, section_config
from engine.readers.array_record import cannot_write
from engine.readers.files import sample_hash
from engine.readers.record_manifest import Shard
from engine.run import code, lineage
from engine.run.atomic import write_text
from engine.run.lineage import Names, Record

SHARD_NAMES = ".names"  # suffix of a shard's own names, until the dataset is complete
MOST_HASHED = 10_000  # files of a source whose content is sampled: at 16 windows each, seconds
_KEY = "shard"


class NameCollector:
    """Collects the texts of the examples of a shard that may name them or their group."""

    def __init__(self):
        self._values: dict[str, set[str]] = {}

    def add(self, example: object) -> None:
        """Adds the texts of an example."""
        for name, value in source_lineage.text_names(example):
            lineage.collect(self._values, name, [value])

    def save(self, shard: Path) -> None:
        """Writes the names of a shard. Raises OSError."""
        names = Names()
        for name in sorted(self._values):
            names.add_values(name, list(self._values[name]))
        lineage.write_names(shard_names(shard), {_KEY: names})


def shard_names(shard: Path) -> Path:
    """Returns the path of the names of one shard."""
    return shard.with_name(shard.name + SHARD_NAMES)


def dataset_names(out: Path, shards: Sequence[Path], was_complete: bool) -> Names | None:
    """Returns the names of all examples of a dataset; None if those of a shard are not known.

    Args:
        out: path of the dataset.
        shards: its files.
        was_complete: whether the shards without a file of names were part of a complete dataset, with a record.
    """
    found, missing = Names(), False
    try:
        for shard in shards:
            if shard_names(shard).exists():
                found.add(lineage.read_names(shard_names(shard)).get(_KEY, Names()))
            else:
                missing = True
        if missing:
            before = lineage.read_names(lineage.names_path(lineage.record_path(out))) if was_complete else {}
            if not before:
                return None
            for names in before.values():
                found.add(Names({}, names.values, names.omitted))
    except (OSError, ValueError):
        return None
    return found


def save_record(
    out: Path, data: Given, source: BaseSource, content: str, shards: Iterable[Shard], names: Names | None
) -> None:
    """Writes the record of a complete dataset.

    Args:
        out: path of the dataset.
        data: what was given: a source, or the config section that describes it.
        source: the source.
        content: its fingerprint.
        shards: the written files.
        names: names of the examples; None if they are not known.

    Raises:
        DataError: it cannot be written.
    """
    settings, targets = {"target": source_name(source)}, [source_name(source)]
    if isinstance(data, Mapping | Data):
        config = section_config(data)
        settings, targets = lineage.data_settings(field_texts(config), "data"), target_names(config)[1:]
    summary = {"examples": str(len(source)), "content": content}
    found, files = source_lineage.describe(source, "data", summary, settings), source_lineage.names_of(source)
    files.files = _with_hashes(files.files)
    if names is not None:
        files.add(names)
    made_by, shards = code.describe(targets, 0), list(shards)
    record = Record(
        kind="dataset",
        inputs=(found,),
        id=lineage.digest("\n".join(shard.checksum for shard in shards)),
        examples=sum(shard.examples for shard in shards),
        left_out=sum(len(shard.bad) for shard in shards),
        commit=made_by.commit,
        dirty=made_by.dirty,
        packages=made_by.packages,
    )
    path = lineage.record_path(out)
    try:
        if files:
            lineage.write_names(lineage.names_path(path), {found.key: files})
        write_text(path, record.to_text())
    except (OSError, ConvoyError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        raise cannot_write(path, (isinstance(cause, OSError) and cause.strerror) or str(cause)) from error


def _with_hashes(files: Mapping[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Returns the files with hashes of samples of the first ones, by which a file that was moved is found again."""
    found = dict(files)
    for path in list(files)[:MOST_HASHED]:
        try:
            found[path] = (os.path.getsize(path), sample_hash(path))
        except OSError:  # an object in a bucket, or a file that was removed since
            continue
    return found


def remove_record(out: Path) -> None:
    """Removes the record of a dataset that is replaced. Raises OSError."""
    path = lineage.record_path(out)
    for file in (path, lineage.names_path(path)):
        file.unlink(missing_ok=True)
