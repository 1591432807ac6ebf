"""What a source reads, for records of lineage: its files, and the datasets with records that it reads."""

import contextlib
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


def describe(source: BaseSource, role: str, summary: Summary, settings: Mapping[str, str]) -> tuple[Input, Names]:
    """Returns a source as an input of a record, with the names of what it holds.

    A dataset that has a record of its own adds the names in this record, so that they are known without the dataset.

    Args:
        source: the source.
        role: config section of the data.
        summary: as `dataset_summary.summarize` returns it.
        settings: settings of this section.
    """
    names, datasets = files_of(source), {}
    for path in dict.fromkeys(lineage.record_path(Path(file)) for file in names.files):
        with contextlib.suppress(OSError, ValueError):  # a damaged record: the tree then ends at this dataset
            if (record := lineage.read(path)) is not None:
                datasets[shown(path.with_name(path.name.removesuffix(f".{lineage.RECORD}")))] = record.id
                for found in lineage.read_names(lineage.names_path(path)).values():
                    names.add(found)
    found = Input(
        kind=lineage.DATA,
        role=role,
        path="\n".join(datasets),
        id=summary["content"],
        examples=summary["examples"],
        settings=dict(settings),
        datasets=tuple(datasets.values()),
    )
    return found, names


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


def files_of(source: BaseSource) -> Names:
    """Returns the files that a source reads, with their sizes as far as they are known."""
    names = Names()
    for found in _all(source):
        names.files |= {_absolute(path): (-1, "") for path in found.paths}
    for states in states_of([source]):
        names.files |= {_absolute(path): (size, "") for path, size in states.sizes.items()}
        if states.count > max(len(states.sizes), len(names.files)):
            names.omitted[FILE] = names.omitted.get(FILE, 0) + states.count
    if len(names.files) > lineage.MOST_NAMES:
        names.omitted[FILE], names.files = len(names.files), {}
    return names


def _absolute(path: str) -> str:
    """Returns the address of a file in a bucket, or its absolute path."""
    found = shown(path)
    return found if found != path else str(Path(path).absolute())


def _all(source: BaseSource) -> Iterator[BaseSource]:
    yield source
    for inner in inner_sources(source):
        yield from _all(inner)
