"""The group and the time of each frame of a source, such as its drive and its timestamp.

They come from arrays, files, entries of the examples or functions of an example. Entries and functions need all
examples once; a cache file saves later starts this reading.
"""

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from engine.base.errors import DataError
from engine.base.files import read_checked, set_aside, write_checked
from engine.cluster import output
from engine.cluster.identity import is_primary
from engine.config.schema import Target
from engine.config.target import resolve
from engine.data.ragged.fields import measured
from engine.data.sampling.tags import FILES, read_array, source_code_hash
from engine.data.source import ArraySource, BaseSource, Example, leaves_with_path, source_name
from engine.data.text import is_text

type Column = str | npt.ArrayLike | Callable[[Example], object]
"""An entry of the examples such as "drive", an array `[frames]`, a file of one, or a function of an example."""

ADVICE = "With arrays or files for `group` and `order`, or `cache`, later starts need not."


class FrameIndex(NamedTuple):
    """The groups and the times of the frames of a source."""

    groups: np.ndarray
    """Number of the group of each frame, int64 `[frames]`, in the order in which the groups begin."""
    names: tuple[str, ...]
    """Name of each group."""
    times: np.ndarray
    """Time of each frame, integers or floats `[frames]`."""


def read_index(source: BaseSource, group: Column, order: Column, cache: str | None, owner: str) -> FrameIndex:
    """Returns the index of a source.

    Args:
        source: the frames.
        group: gives the group of each frame: an integer or text.
        order: gives the time of each frame: a finite number.
        cache: path of a file for an index that is read from the examples; None: beside a dataset that
            `convoy data write` wrote, and nowhere for other sources.
        owner: name of the source that uses the index, for error texts.

    Raises:
        DataError: the source is empty, an example cannot be read or lacks an entry, or a value is of another kind.
    """
    if not len(source):
        raise DataError(f"{owner}: {source_name(source)} has no examples. Check its files and arguments.")
    columns = [_Column(source, given, f"{owner}: {name}") for name, given in (("group", group), ("order", order))]
    if all(column.known is not None for column in columns):
        return _index(source, *columns)
    path = _beside(source) if cache is None else Path(os.path.expanduser(cache))
    if path is None:
        return _read(source, columns, owner)
    key = f"{', '.join(column.key() for column in columns)} of {source.fingerprint()}"
    if (found := _load(path, key)) is None:
        found = _read(source, columns, owner)
        _save(path, key, found, owner, required=cache is not None)
    return found


class _Column:
    """One of the two values of the frames.

    Args:
        source: the frames.
        given: where the values come from.
        where: name of the argument, for error texts.
    """

    def __init__(self, source: BaseSource, given: Column, where: str):
        self.where, self._key = where, str(given)
        self.known: np.ndarray | None = None  # the values, if no example is read for them
        self._function: Callable[[Example], object] | None = None
        self._entry = ""
        if isinstance(given, str) and given.endswith(FILES):
            self.known = np.asarray(read_array(given, where.rpartition(" ")[2], where)[0])
        elif isinstance(given, str) and "." in given:
            self._function = resolve(Target(target=given), where)
            self._key += f" {source_code_hash(self._function)}"
        elif isinstance(given, str):
            self._entry = given
            if isinstance(source, ArraySource):
                self.known = dict(leaves_with_path(source.arrays)).get(given)
        elif callable(given):
            self._function = given
            self._key = f"{getattr(given, '__qualname__', type(given).__qualname__)} {source_code_hash(given)}"
        else:
            self.known = np.asarray(given)
        if self.known is not None and self.known.shape != (len(source),):
            raise DataError(
                f"{where}: found {list(self.known.shape)} values, but {source_name(source)} has {len(source)} "
                "examples. Give one for each."
            )

    def key(self) -> str:
        """Returns a text that changes with the values, or with the way in which they are read from the examples."""
        if self.known is None:
            return self._key
        known = self.known.astype(str) if self.known.dtype.kind == "O" else self.known
        return f"{known.dtype} {index_hash(known)}"

    def value(self, example: Example, index: int, source: BaseSource) -> Any:
        """Returns the value of a frame: a number or a text. Raises DataError."""
        if self.known is not None:
            return self.known[index]
        if self._function is not None:
            found = self._function(example)
        else:
            found = example
            for name in self._entry.split("/"):
                if not isinstance(found, Mapping) or name not in found:
                    entries = ", ".join(path for path, _ in leaves_with_path(example))
                    raise DataError(
                        f"{self.where} = {self._entry!r}: example {index} of {source_name(source)} has no such entry, "
                        f"only {entries}. Name one of them, or repair the example."
                    )
                found = found[name]
        return found[()] if isinstance(found, np.ndarray) and not found.ndim else found


def _read(source: BaseSource, columns: list[_Column], owner: str) -> FrameIndex:
    def read(index: int) -> list[Any]:
        try:
            example = source[index]
            return [column.value(example, index, source) for column in columns]
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{owner}: example {index} of {source_name(source)}: {type(error).__name__}: {error}."
            ) from error

    rows = measured(source, read, "reading the groups and times of", ADVICE)
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        column.known = _array(values, column.where, source)
    return _index(source, *columns)


def _array(values: tuple[Any, ...], where: str, source: BaseSource) -> np.ndarray:
    for index, value in enumerate(values):
        if is_text(value) == isinstance(value, str | bytes) and np.ndim(value) == 0 and value is not None:
            continue
        raise DataError(f"{where}: example {index} of {source_name(source)} gives {value!r}, not one number or text.")
    return np.array(
        [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in values]
    )


def _index(source: BaseSource, group: _Column, order: _Column) -> FrameIndex:
    groups, times = group.known, order.known
    assert groups is not None and times is not None
    if groups.dtype.kind == "O":
        groups = _array(tuple(groups.tolist()), group.where, source)
    if groups.dtype.kind not in "iubUS":
        raise DataError(f"{group.where}: found {groups.dtype} in {source_name(source)}. A group is an integer or text.")
    if times.dtype.kind not in "iuf" or not np.isfinite(times).all():
        at = 0 if times.dtype.kind not in "iuf" else int(np.flatnonzero(~np.isfinite(times))[0])
        raise DataError(
            f"{order.where}: example {at} of {source_name(source)} has {times[at]!r}. A time is a finite number, such "
            "as seconds or nanoseconds."
        )
    if times.dtype.kind in "iu":
        times = times.astype(np.int64)  # in which no difference of two times overflows
    values, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    by_begin = np.argsort(first, kind="stable")
    rank = np.empty_like(by_begin)
    rank[by_begin] = np.arange(len(by_begin))
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "backslashreplace")
    return FrameIndex(rank[numbers].astype(np.int64), tuple(map(str, values[by_begin].tolist())), times)


def _beside(source: BaseSource) -> Path | None:
    """Returns the path of the index beside a dataset that `convoy data write` wrote; None for other sources."""
    from engine.readers.record_manifest import SEQUENCES, dataset_of, manifest_path

    found = {dataset_of(Path(path)) for path in source.paths}
    if len(found) != 1 or not manifest_path(out := found.pop()).exists():
        return None
    return out.with_name(out.name + SEQUENCES)


def _load(path: Path, key: str) -> FrameIndex | None:
    """Returns the index in a file; None if there is no such file, or it was written for something else."""
    try:
        content = read_checked(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        set_aside(path, "index of groups and times, which are read again", error)
        return None
    with np.load(io.BytesIO(content)) as arrays:
        if str(arrays["key"]) != key:
            return None
        return FrameIndex(arrays["groups"], tuple(arrays["names"].tolist()), arrays["times"])


def _save(path: Path, key: str, index: FrameIndex, owner: str, required: bool) -> None:
    content = io.BytesIO()
    names = np.array(index.names, dtype=str)
    np.savez(content, key=np.array(key), groups=index.groups, names=names, times=index.times)
    try:
        write_checked(path, content.getbuffer())
    except OSError as error:
        if required:
            raise DataError(f"{owner}: the cache {path} cannot be written: {error}. Choose another path.") from error
        if is_primary():
            output.show(f"{owner}: the index {path} cannot be written ({error}), so each start reads all examples.")


def index_hash(*arrays: np.ndarray) -> str:
    """Returns a hash of arrays."""
    found = xxhash.xxh3_64()
    for array in arrays:
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()
