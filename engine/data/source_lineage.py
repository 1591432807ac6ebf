"""What a source reads, for records of lineage: its files, and the datasets with records that it reads."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.data.dataset_summary import Summary
from engine.data.file_states import states_of
from engine.data.source import BaseSource, inner_sources
from engine.run import lineage
from engine.run.lineage import Input, Names
from engine.storage.mounts import shown

FILE = "file"
LONGEST_NAME = 200  # characters: longer texts are captions and the like


def describe(source: BaseSource, role: str, summary: Summary, settings: Mapping[str, str]) -> Input:
    """Returns a source as an input of a record, with the datasets with records that it reads.

    Args:
        source: the source.
        role: config section of the data.
        summary: as `dataset_summary.summarize` returns it.
        settings: settings of this section.
    """
    datasets = {}
    for path in _records(source):
        with contextlib.suppress(OSError, ValueError):  # a damaged record: the tree then ends at this dataset
            if (record := lineage.read(path)) is not None:
                datasets[shown(path.with_name(path.name.removesuffix(f".{lineage.RECORD}")))] = record.id
    return Input(
        kind=lineage.DATA,
        role=role,
        path="\n".join(datasets),
        id=summary["content"],
        examples=summary["examples"],
        settings=dict(settings),
        datasets=tuple(datasets.values()),
    )


def names_of(source: BaseSource) -> Names:
    """Returns the names of what a source holds: its files, with their sizes as far as they are known, and others.

    A dataset that has a record of its own adds the names in this record, so that they are known without the dataset.
    """
    names = _own_names(source)
    for path in _records(source):
        with contextlib.suppress(OSError, ValueError):
            for found in lineage.read_names(lineage.names_path(path)).values():
                names.add(found)
    return names


def _records(source: BaseSource) -> list[Path]:
    """Returns the records that lie beside the files of a source, in the order of the files.

    Each folder is listed once: a look for the record of each file would delay the start on many files by minutes.
    """
    listed: dict[str, dict[str, Path]] = {}
    found: dict[Path, None] = {}
    for file in _files(source)[0]:
        folder, name = os.path.split(file)
        if folder not in listed:
            listed[folder] = _records_in(folder)
        if listed[folder] and (record := listed[folder].get(lineage.record_name(name))) is not None:
            found[record] = None
    return list(found)


def _records_in(folder: str) -> dict[str, Path]:
    """Returns name -> path of the records in a folder; none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: Path(entry.path) for entry in entries if entry.name.endswith(f".{lineage.RECORD}")}
    except OSError:
        return {}


def name_text(value: object) -> str:
    """Returns a text of an example that may name a group or an example; "" for other values and for long texts."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) and len(value) <= LONGEST_NAME else ""


def text_names(example: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields path and value of the texts in an example, a dict, that may name a group or an example."""
    if isinstance(example, Mapping):
        for key, value in example.items():
            if isinstance(value, Mapping):
                yield from text_names(value, f"{prefix}{key}/")
            elif name := name_text(value):
                yield f"{prefix}{key}", name


def _own_names(source: BaseSource) -> Names:
    names = Names()
    for found in _all(source):
        for kind, values in found.known_names.items():
            names.add_values(kind, values)
    files, count = _files(source)
    if count > len(files):
        names.omitted[FILE] = count
    if len(files) > lineage.MOST_NAMES:
        names.omitted[FILE] = len(files)
    else:
        names.files = {shown(path): (size, "") for path, size in files.items()}
    return names


def _files(source: BaseSource) -> tuple[dict[str, int], int]:
    """Returns path -> size of the files that a source reads, -1 if it is not known, and the number of all files.

    Paths are absolute; those of files in a bucket are where they are mounted.
    """
    files = {str(Path(path).absolute()): -1 for found in _all(source) for path in found.paths}
    count = 0
    for states in states_of([source]):
        files |= {str(Path(path).absolute()): size for path, size in states.sizes.items()}
        count += states.count
    return files, max(count, len(files))


def _all(source: BaseSource) -> Iterator[BaseSource]:
    yield source
    for inner in inner_sources(source):
        yield from _all(inner)
