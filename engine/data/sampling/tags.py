"""The tags of the examples of a source, such as class, city or rare objects, by which `Weighted` draws them.

They come from an array, a file, or a method `tags()` of the source. Otherwise a function or an entry of the examples
gives them, for which all examples are read once; a cache file saves later starts this reading.
"""

import dataclasses
import inspect
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from engine.base.errors import DataError
from engine.base.files import read_checked, set_aside, write_checked
from engine.config.schema import Target
from engine.config.target import resolve
from engine.data.ragged.fields import measured
from engine.data.source import ArraySource, BaseSource, Example, leaves_with_path, source_name
from engine.storage.mounts import local_path

FILES = (".npy", ".npz", ".parquet")
"""Endings of files with tags or weights."""

type TagsArgument = str | npt.ArrayLike | Sequence[Sequence[object]] | Callable[[Example], object] | None


@dataclasses.dataclass(frozen=True)
class Tags:
    """The tags of all examples."""

    names: tuple[str, ...]
    """Name of each tag."""
    numbers: np.ndarray
    """int32 `[examples]`: the tag of each example. If examples may have several tags: those of all, in order."""
    ends: np.ndarray | None = None
    """int64 `[examples]`: the end of the tags of each example in `numbers`; None if each example has one tag."""

    def __len__(self) -> int:
        return len(self.numbers if self.ends is None else self.ends)

    @property
    def sizes(self) -> np.ndarray:
        """Number of examples with each tag, int64 `[tags]`."""
        return np.bincount(self.numbers, minlength=len(self.names))

    def counts(self, indices: np.ndarray) -> np.ndarray:
        """Returns how many of the examples at `indices` have each tag, int64 `[tags]`."""
        if self.ends is None:
            return np.bincount(self.numbers[indices], minlength=len(self.names))
        begins = np.concatenate([[0], self.ends[:-1]])[indices]
        sizes = self.ends[indices] - begins
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.bincount(self.numbers[np.repeat(begins, sizes) + within], minlength=len(self.names))

    def largest(self, factors: np.ndarray) -> np.ndarray:
        """Returns the largest of the factors `[tags]` of the tags of each example, `[examples]`; 1 without tags."""
        if self.ends is None:
            return factors[self.numbers]
        found = np.ones(len(self))
        begins = np.concatenate([[0], self.ends[:-1]])
        some = self.ends > begins
        if some.any():
            found[some] = np.maximum.reduceat(factors[self.numbers], begins[some])
        return found

    def limited(self, count: int) -> "Tags":
        """Returns the tags of the first `count` examples; all names stay."""
        if self.ends is None:
            return Tags(self.names, self.numbers[:count])
        return Tags(self.names, self.numbers[: self.ends[count - 1]], self.ends[:count])

    def digest(self) -> str:
        """Returns a hash of names and tags."""
        found = xxhash.xxh3_64("\n".join(self.names).encode())
        for array in (self.numbers, *([] if self.ends is None else [self.ends])):
            found.update(np.ascontiguousarray(array))
        return found.hexdigest()


def find_tags(source: BaseSource, given: TagsArgument, cache: str | None, owner: str) -> Tags:
    """Returns the tags of all examples of a source.

    Args:
        source: source of the examples.
        given: as the argument `tags` of `Weighted`.
        cache: path of a file for tags that are read from the examples; None stores none.
        owner: name of the source that uses the tags, for error texts.

    Raises:
        DataError: there are no tags, they are invalid, or an example cannot be read.
        ConfigError: a function that is given by its dotted path does not exist.
    """
    where = f"{owner}: tags"
    if given is None:
        if not source.defines("tags"):
            raise DataError(
                f"{where}: {source_name(source)} has no method tags(). Pass tags=, one for each example: an array, a "
                f"file ({', '.join(FILES)}), the name of an entry of the examples, or a function of an example."
            )
        given, where = source.tags(), f"{source_name(source)}.tags()"
    if isinstance(given, str) and given.endswith(FILES):
        found = _to_tags(*read_array(given, "tags", where), where)
    elif isinstance(given, str) or callable(given):
        found = _of_examples(source, given, cache, where)
    else:
        found = _to_tags(given, None, where)  # pyright: ignore[reportArgumentType]
    if len(found) != len(source):
        raise DataError(f"{where}: found tags of {len(found)} examples, but {source_name(source)} has {len(source)}.")
    return found


def read_array(path: str, name: str, where: str) -> tuple[npt.ArrayLike, Sequence[str] | None]:
    """Returns the array or column `name`, or the only one, of a file; and the array `names` of an `.npz` file, if any.

    Raises:
        DataError: the file cannot be read, or has several arrays and none of this name.
    """
    file = local_path(os.path.expanduser(path))
    try:
        if path.endswith(".npy"):
            return np.load(file), None
        if path.endswith(".parquet"):
            try:
                import pyarrow.parquet  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                from engine.base.extras import install_command

                command = install_command("parquet")
                raise DataError(f"{where}: {path}: parquet files need pyarrow: {command}.") from error
            columns = pyarrow.parquet.ParquetFile(file).schema_arrow.names
            column = _only(columns, name, path, where)
            return pyarrow.parquet.read_table(file, columns=[column])[column].to_pylist(), None
        with np.load(file) as arrays:
            names = arrays["names"].astype(str).tolist() if "names" in arrays else None
            return arrays[_only([each for each in arrays if each != "names"], name, path, where)], names
    except DataError:
        raise
    except Exception as error:  # numpy and pyarrow raise many kinds
        raise DataError(f"{where}: {path} cannot be read: {type(error).__name__}: {error}.") from error


def _only(found: Sequence[str], name: str, path: str, where: str) -> str:
    if name not in found and len(found) != 1:
        raise DataError(f"{where}: {path} has {', '.join(found) or 'nothing'}. Name one of them `{name}`.")
    return name if name in found else found[0]


def _of_examples(source: BaseSource, given: str | Callable[[Example], object], cache: str | None, where: str) -> Tags:
    """Returns the tags that a function or an entry of the examples gives, from the cache if it holds them."""
    if isinstance(given, str) and "." in given:
        function: Any = resolve(Target(target=given), where)
        key = f"{given} {source_code_hash(function)}"
    elif isinstance(given, str):
        if isinstance(source, ArraySource) and given in (entries := dict(leaves_with_path(source.arrays))):
            return _to_tags(entries[given], None, where)
        function, key = _Entry(given), given
    else:
        function, key = given, f"{getattr(given, '__qualname__', type(given).__qualname__)} {source_code_hash(given)}"
    if cache is None:
        return _read(source, function, where)
    path, key = Path(local_path(os.path.expanduser(cache))), f"{key} of {source.fingerprint()}"
    if (found := _load(path, key)) is None:
        found = _read(source, function, where)
        _save(path, key, found, where)
    return found


def _read(source: BaseSource, function: Callable[[Example], object], where: str) -> Tags:
    def tag(index: int) -> object:
        try:
            return function(source[index])
        except Exception as error:
            raise DataError(
                f"{where}: example {index} of {source_name(source)}: {type(error).__name__}: {error}."
            ) from error

    advice = "With tags=, an array or a file of tags, or cache=, a file that stores them, later starts need not."
    return _to_tags(measured(source, tag, "reading the tags of", advice), None, where)


class _Entry:
    """Returns the entry of an example with this path, such as "label" or "scene/kind"."""

    def __init__(self, path: str):
        self._path = path

    def __call__(self, example: Example) -> object:
        found: Any = example
        for name in self._path.split("/"):
            if not isinstance(found, Mapping) or name not in found:
                raise DataError(f"the example has no entry {self._path!r}; it has {', '.join(_paths(example))}")
            found = found[name]
        return found


def _paths(example: Example) -> list[str]:
    return [path for path, _ in leaves_with_path(example)]


def source_code_hash(function: Callable[..., object]) -> str:
    """Returns a hash of the source code of a function, so that a cache does not outlive a change; "" if unknown."""
    try:
        return xxhash.xxh3_64(inspect.getsource(function).encode()).hexdigest()
    except (OSError, TypeError):
        return ""


def _to_tags(values: npt.ArrayLike | Sequence[object], names: Sequence[str] | None, where: str) -> Tags:
    """Returns the tags of values: one, or a collection of tags, for each example. Raises DataError."""
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype == bool:
        rows, columns = np.nonzero(values)
        names = list(map(str, range(values.shape[1]))) if names is None else names
        if len(names) != values.shape[1]:
            raise DataError(f"{where}: {values.shape[1]} columns, but {len(names)} names. Give each column a name.")
        ends = np.cumsum(np.bincount(rows, minlength=len(values)))
        return Tags(tuple(names), columns.astype(np.int32), ends.astype(np.int64))
    ends = None
    if not isinstance(values, np.ndarray) and any(map(_is_collection, values)):  # pyright: ignore[reportArgumentType]
        rows = [_distinct(value) for value in values]  # pyright: ignore[reportGeneralTypeIssues]
        ends = np.cumsum([len(row) for row in rows]).astype(np.int64)
        values = [tag for row in rows for tag in row]
    array = np.asarray(values)
    if array.dtype.kind == "S":
        array = np.char.decode(array)
    if ends is not None and not len(array):
        return Tags((), np.zeros(0, np.int32), ends)
    if array.ndim != 1 or array.dtype.kind not in "iubU":
        raise DataError(
            f"{where}: found {array.dtype}{list(array.shape)}. Allowed are integers, bools or text, one for each "
            "example; a list of these for each example; or a bool array [examples, tags]."
        )
    found: Any
    found, numbers = np.unique(array, return_inverse=True)
    texts: list[str] = [str(tag) for tag in found.tolist()]
    if names is not None:
        if array.dtype.kind not in "iu" or not 0 <= found.min() <= found.max() < len(names):
            raise DataError(f"{where}: with `names`, tags are numbers from 0 to {len(names) - 1}.")
        texts = [str(names[tag]) for tag in found.tolist()]
    return Tags(tuple(texts), numbers.astype(np.int32), ends)


def _is_collection(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _distinct(value: Any) -> list[object]:
    """Returns the tags of one example in a fixed order: that of a set of text differs between processes."""
    return sorted(set(value), key=str) if _is_collection(value) else [value]


def _load(path: Path, key: str) -> Tags | None:
    """Returns the tags in a cache file; None if there is no such file, or it was written for something else."""
    try:
        content = read_checked(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        set_aside(path, "cache of tags, which are read again", error)
        return None
    with np.load(io.BytesIO(content)) as arrays:
        if str(arrays["key"]) != key:
            return None
        return Tags(tuple(arrays["names"].tolist()), arrays["numbers"], arrays.get("ends"))


def _save(path: Path, key: str, tags: Tags, where: str) -> None:
    arrays = {"key": np.array(key), "names": np.array(tags.names, dtype=str), "numbers": tags.numbers}
    if tags.ends is not None:
        arrays["ends"] = tags.ends
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    try:
        write_checked(path, content.getbuffer())
    except OSError as error:
        raise DataError(f"{where}: the cache {path} cannot be written: {error}. Choose another path.") from error
