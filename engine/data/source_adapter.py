"""Adapts objects with `__len__` and `__getitem__`, so that they have every optional member of a source.

Wrapping sources read what they are given through `indexed`. `adapt.py` also takes streams.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engine.base.errors import DataError
from engine.base.types import defined_with_or_after
from engine.base.user_errors import describe
from engine.data.examples import Example
from engine.data.source import BaseSource, Source, source_name

DELEGATED = (
    *(
        "new_arrays",
        "source_name",
        "consecutive",
        "source",
        "sources",
        "times",
        "paths",
        "folder",
        "file_states",
        "known_names",
        "take",
        "transform",
        "fingerprint",
    ),
    *("sampler", "batch_sampler", "lengths", "field_lengths", "costs", "tags", "shape_specs", "shape_names"),
    *("evaluation_order", "stored_order", "checksums", "record_name"),
)
"""Members that an `AdaptedSource` takes over from its object as they are."""
CHANGED = ("limited", "with_run", "counted")
"""Methods of the object that return another source."""
place = "the data source"
"""Where this process calls code of data sources, for the text of an error. A worker process sets it."""


@contextlib.contextmanager
def exits_reported() -> Iterator[None]:
    """Raises a DataError where the code of a data source calls `sys.exit`, which would end a worker or the run."""
    try:
        yield
    except SystemExit as error:
        raise DataError(f"{place}: {describe(error)} Raise an error instead, which names the example.") from error


class AdaptedSource(BaseSource):
    """A source that reads an object with `__len__` and `__getitem__`, and has those optional members that it has."""

    def __init__(self, given: Source):
        self.given = given
        for name in DELEGATED:
            if (found := getattr(given, name, None)) is not None:
                setattr(self, name, found)
        self._changed: dict[str, Callable[..., Any]] = {
            name: found for name in CHANGED if (found := getattr(given, name, None)) is not None
        }
        if not isinstance(self.source_name, str) or not self.source_name:
            self.source_name = f"{type(given).__module__}.{type(given).__qualname__}"
        self.source = _inner(self.source)
        if isinstance(self.sources, Mapping):
            self.sources = {name: _inner(found) for name, found in self.sources.items()}

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> Example:
        return self.given[index]

    def keeps(self, member: str) -> bool:
        return defined_with_or_after(type(self.given), member, "__getitem__")

    def limited(self, count: int) -> BaseSource:
        own = self._changed.get("limited")
        return super().limited(count) if own is None else indexed(own(count), f"{source_name(self)}.limited")

    def with_run(self, examples: int) -> BaseSource:
        own = self._changed.get("with_run")
        return self if own is None else indexed(own(examples), f"{source_name(self)}.with_run")

    def counted(self) -> BaseSource | None:
        own = self._changed.get("counted")
        return None if own is None else indexed(own(), f"{source_name(self)}.counted")


def _inner(found: Any) -> Any:
    """Returns an attribute of an object as a source, if it is one."""
    if isinstance(found, BaseSource | type | str) or not hasattr(found, "__len__"):
        return found
    return AdaptedSource(found) if hasattr(found, "__getitem__") else found


def indexed(found: object, where: str) -> BaseSource:
    """Returns an object with `__len__` and `__getitem__` as a source. Raises DataError for another object."""
    check_source(found, where)
    return found if isinstance(found, BaseSource) else AdaptedSource(found)  # pyright: ignore[reportArgumentType]


def check_source(source: object, where: str) -> None:
    """Raises DataError for an object that is not a source, such as a dict of arrays or a dict without `target`."""
    if isinstance(source, Mapping):
        raise DataError(
            f"{where}: found a {type(source).__name__}, allowed is a source. Pass a dict of arrays to "
            "engine.ArraySource; in a config, name a class or function: {'target': 'package.module.Name', ...}."
        )
    missing = [name for name in ("__len__", "__getitem__") if not hasattr(source, name)]
    if missing or isinstance(source, type):
        found = "None" if source is None else f"a {type(source).__name__} without {' and '.join(missing)}"
        found = f"the class {source.__name__}, not an object of it" if isinstance(source, type) else found
        advice = ""
        if hasattr(source, "__iter__") and not isinstance(source, type):
            advice = " It can only be iterated, but here examples are read by index. Pass list(...) of a small"
            advice += " dataset, or write a large one to ArrayRecord files with `convoy data write`."
        elif hasattr(source, "open") and hasattr(source, "shards") and not isinstance(source, type):
            advice = " It is a stream, but here examples are read by index. Write it to files with `convoy data write`."
        raise DataError(f"{where}: found {found}, allowed is a source: an object with __len__ and __getitem__.{advice}")
    try:
        len(source)  # pyright: ignore[reportArgumentType]
    except Exception as error:
        raise DataError(f"{where}: its __len__ failed: {describe(error)}") from error
