"""Sources: random access to examples by index, 0 to `len(source) - 1`.

An example is a pytree of numpy arrays, numbers and text without a batch dimension; all examples of a source have the
same structure, shapes and dtypes. Text stays on the host (`text.py`). Several threads read a source at once and, with
`data.workers`, it is pickled to other processes.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
import xxhash

from engine.base.errors import DataError
from engine.base.types import PyTree
from engine.base.user_errors import describe
from engine.config.schema import Data
from engine.config.target import build
from engine.data.text import content, is_text, text_paths, without_text

type Example = PyTree
"""A pytree of numpy arrays, numbers and text."""
type Examples = PyTree
"""The same pytree with arrays `[rows, ...]`."""

SPEC_TRIES = 16  # examples tried at most to find the spec of an example
NUMERIC_KINDS = "biufc"  # numpy dtype kinds that an example may hold: bool, integers, floats, complex
JAX_NUMBERS = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4")  # names of further dtypes
FINGERPRINT_EXAMPLES = 32  # examples that a fingerprint reads at most, so that a run starts quickly
FINGERPRINT_BYTES = 256 << 20  # arrays up to this size are hashed whole: seconds if they are mapped from a slow disk
SEPARATOR = "; "  # between the parts of a fingerprint, such as the files of a source


class Source(Protocol):
    """Random access to examples. Two methods are required:

        __len__() -> int               number of examples
        __getitem__(index) -> example  the example at 0 <= index < len

    More methods are optional:

        take(indices) -> batch         rows `[batch, ...]` for int64 indices `[batch]`, if that is faster than reading
                                       one example at a time
        transform(example, rng) -> example
                                       random transform, applied in training only. `rng` is a numpy.random.Generator
                                       that depends only on the seed and the position of the example in the run. It
                                       may declare a parameter `context`, an `engine.Context`
        fingerprint() -> str           identifies the content; a resume refuses a different one. Parts separated by
                                       "; " are compared one by one. Default: a hash of a sample of the examples
        sampler(seed, shuffle) -> Sampler
                                       the order of a training run (`sampler.py`). Default: a new permutation of the
                                       examples in every epoch. Evaluations read by index
        limited(count) -> Source       the part that `data.limit` uses. Default: the first `count` examples
        lengths() -> integers          number of elements of each example `[examples]`, for sources that pad or pack
                                       them; a dict of these by axis if there are several. Default: all are read once
        field_lengths(names) -> dict   first dimension of each of these fields, name -> integers `[examples]`, from an
                                       index; None if the source has none. Used if there is no `lengths`
        tags() -> values               one tag, or a list of tags, of each example, for `Weighted`
        costs() -> numbers             cost of each example `[examples]`, for `Balanced`. Default: its length
        new_arrays = True              attribute: nothing else refers to the arrays of an example, so that `transform`,
                                       which may modify them, receives no copy
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class GatheringSource(Source, Protocol):
    """A source that can read many examples in one call."""

    def take(self, indices: np.ndarray, /) -> Examples: ...


class IndexedSource(Source, Protocol):
    """A source that may have an index of the lengths of its fields."""

    def field_lengths(self, names: Sequence[str], /) -> Mapping[str, np.ndarray] | None: ...


class TransformingSource(Source, Protocol):
    """A source with a random transform for training."""

    def transform(self, example: Example, rng: np.random.Generator, /) -> Example: ...


class ArraySource:
    """A source of in-memory examples, the rows of arrays. A subclass may add `transform`."""

    new_arrays = True

    def __init__(self, arrays: Examples):
        """Creates a source from a pytree of arrays `[examples, ...]`.

        Raises:
            DataError: there are no arrays, their lengths differ, or an array holds neither numbers nor text.
        """
        import jax

        self.arrays = jax.tree.map(np.asarray, arrays)
        where = type(self).__name__
        lengths = {}
        for path, array in leaves_with_path(self.arrays):
            if array.ndim == 0:
                raise DataError(
                    f"{where}: {path} is a single number. Pass numpy arrays, not lists, with one row for each example."
                )
            if not is_text(array):
                check_numbers(array.dtype, f"{where}: {path}")
            lengths[path] = len(array)
        if not lengths:
            raise DataError(f"{where}: no arrays. Pass at least one array with one row for each example.")
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{path} {length}" for path, length in lengths.items())
            raise DataError(f"{where}: arrays of different lengths: {found}. Give each one row for each example.")
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """Returns a copy of one row of each array, which a transform may modify."""
        import jax

        return jax.tree.map(lambda array: _row(array, index), self.arrays)

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the rows at `indices` `[batch]` as new arrays `[batch, ...]`."""
        import jax

        return jax.tree.map(lambda array: np.take(array, indices, axis=0), self.arrays)

    def fingerprint(self) -> str:
        """Returns a hash of all values, or of a sample of the examples if the arrays are very large."""
        arrays = [array for _, array in leaves_with_path(self.arrays)]
        if sum(array.nbytes for array in arrays) > FINGERPRINT_BYTES:
            return _sample(self)
        found = xxhash.xxh3_128(_sample(self).encode())
        for array in arrays:
            text = array.dtype.kind not in "US" and is_text(array)  # Python's strings: the array holds addresses
            found.update(content(array) if text else np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return found.hexdigest()


def _row(array: np.ndarray, index: int) -> npt.ArrayLike:
    """Returns a copy of a row; a Python string is immutable."""
    row = array[index]
    return row if isinstance(row, str | bytes) else row.copy()


class Limited:
    """The first examples of a source; created by `limited`."""

    def __init__(self, source: Source, length: int):
        self.source = source
        self._length = length
        if has_take(source):
            self.take = source.take
        if has_transform(source):
            self.transform = source.transform
        if has_field_lengths(source):
            self.field_lengths = self._field_lengths
        for method in ("lengths", "costs"):
            if hasattr(source, method):
                setattr(self, method, functools.partial(self._first, method))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        return self.source[index]

    def fingerprint(self) -> str:
        return f"{fingerprint(self.source)}[:{self._length}]"

    def _field_lengths(self, names: Sequence[str]) -> Mapping[str, np.ndarray] | None:
        assert has_field_lengths(self.source)
        found = self.source.field_lengths(names)
        return None if found is None else {name: lengths[: self._length] for name, lengths in found.items()}

    def _first(self, method: str) -> npt.ArrayLike | Mapping[str, npt.ArrayLike]:
        """Returns what a method of the source returns, for the first examples; lengths may be a dict by axis."""
        found = getattr(self.source, method)()
        if isinstance(found, Mapping):
            return {axis: np.asarray(values)[: self._length] for axis, values in found.items()}
        return np.asarray(found)[: self._length]


def limited(source: Source, count: int | None) -> Source:
    """Returns a source of the first `count` examples, or the source itself if `count` is None or not below its length.

    Raises:
        DataError: `count` is below 1.
    """
    if count is None or count >= max(1, len(source)):
        return source
    if count < 1:
        raise DataError(
            f"data.limit = {count}: allowed are 1 and more, or None for all examples of {source_name(source)}."
        )
    own = getattr(source, "limited", None)
    return own(count) if own is not None else Limited(source, count)


def build_source(section: Data, where: str, *, finite: bool = False) -> Source:
    """Returns the source of a config section; `data.limit` is applied.

    Args:
        section: the section.
        where: its name in the config.
        finite: whether the length must be known, so that a stream is counted if necessary.

    Raises:
        DataError: it is neither a source nor a stream.
    """
    from engine.data.streams.source import limit_source  # here, since it makes sources itself

    return limit_source(build(section, where), section, f"{where}.target: {section.target}", finite, where)


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
        raise DataError(f"{where}: its __len__ failed: {type(error).__name__}: {error}.") from error


def has_take(source: Source) -> TypeGuard[GatheringSource]:
    """Returns whether batches may be read with `source.take`.

    An inherited `take` does not count if a subclass overrides `__getitem__`: it would bypass that override.
    """
    return hasattr(source, "take") and defined_with_or_after(source, "take", "__getitem__")


def has_field_lengths(source: Source) -> TypeGuard[IndexedSource]:
    """Returns whether a source has `field_lengths`, for the examples that its `__getitem__` returns."""
    return hasattr(source, "field_lengths") and (
        isinstance(source, Limited) or defined_with_or_after(source, "field_lengths", "__getitem__")
    )


def defined_with_or_after(source: Source, method: str, other: str) -> bool:
    """Returns whether the class that defines `method` is, or derives from, the class that defines `other`."""
    of_method, of_other = (
        next((i for i, cls in enumerate(type(source).__mro__) if name in vars(cls)), -1) for name in (method, other)
    )
    return of_method <= of_other


def has_transform(source: Source) -> TypeGuard[TransformingSource]:
    """Returns whether the source has a random transform for training."""
    return hasattr(source, "transform")


def source_name(source: Source) -> str:
    """Returns the name of a source in error texts: its class with the module."""
    if isinstance(source, Limited):
        return source_name(source.source)
    if isinstance(own := getattr(source, "source_name", None), str):  # of a source that stands for another object
        return own
    return f"{type(source).__module__}.{type(source).__qualname__}"


def example_spec(source: Source) -> PyTree:
    """Returns the shapes and dtypes of an example, as a pytree of jax.ShapeDtypeStruct; no device is used.

    The dtypes are those on the device: 64 bits become 32 unless JAX_ENABLE_X64 is set. Text, which stays on the host,
    is left out. The spec is that of the first example that can be read; an unreadable example is reported when training
    reads it.

    Raises:
        DataError: the source is empty, none of its first examples can be read, or one holds no numbers, or something
            that is neither a number nor text.
    """
    import jax

    name = source_name(source)
    if len(source) == 0:
        raise DataError(f"{name}: no examples. A source needs at least one; check its files and arguments.")
    example = without_text(first_example(source))
    found = leaves_with_path(example)
    if not found:
        raise DataError(f"{name}[0] holds no arrays. Return a pytree of numpy arrays and numbers.")
    for path, leaf in found:
        check_numbers(np.asarray(leaf).dtype, f"{name}[0]: {path}")

    def spec(leaf: npt.ArrayLike) -> jax.ShapeDtypeStruct:
        array = np.asarray(leaf)
        return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))

    return jax.tree.map(spec, example)


def source_text(source: Source) -> list[str]:
    """Returns the paths of the text in the first readable example. Raises DataError if none can be read."""
    return text_paths(first_example(source))


def shape_specs(source: Source) -> list[PyTree]:
    """Returns the spec of an example in each shape that batches of the source have; of most sources, one.

    `example_spec` is the last of them, the largest. Raises DataError as `example_spec`.
    """
    own = getattr(source, "shape_specs", None)
    return [example_spec(source)] if own is None else own()


def first_example(source: Source) -> Example:
    """Returns the first readable example. Raises DataError if none of the first `SPEC_TRIES` can be read."""
    errors = []
    for index in range(min(len(source), SPEC_TRIES)):
        try:
            return source[index]
        except Exception as error:
            errors.append(error)
    raise DataError(f"{source_name(source)}[0] failed: {describe(errors[0])}") from errors[0]


def check_numbers(dtype: np.dtype, where: str) -> None:
    """Raises DataError for a dtype that devices do not support (objects, dates)."""
    if dtype.kind not in NUMERIC_KINDS and dtype.name not in JAX_NUMBERS:
        raise DataError(
            f"{where} has dtype {dtype}: allowed are bool, integers, floats, complex numbers, and str and bytes, which "
            "stay on the host. Convert it to numbers or text, or remove it."
        )


def fingerprint(source: Source) -> str:
    """Returns a text that changes with the content of a source.

    It is `source.fingerprint()` if that method exists, else a hash of the length and of up to `FINGERPRINT_EXAMPLES`
    evenly spaced examples. If a second reading of example 0 differs from the first, the text says so instead, since
    such examples cannot be compared.
    """
    own = getattr(source, "fingerprint", None)
    return _sample(source) if own is None else own()


def _sample(source: Source) -> str:
    size = len(source)
    if size and _content(source, 0) != _content(source, 0):
        return f"{size} examples that differ from one reading to the next"
    found = hashlib.blake2b(str(size).encode(), digest_size=16)
    for index in evenly_spaced(size, FINGERPRINT_EXAMPLES):
        found.update(_content(source, index))
    return found.hexdigest()


def evenly_spaced(size: int, most: int) -> list[int]:
    """Returns at most `most` evenly spaced integers from 0 to `size - 1`, with the first and the last."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).astype(np.int64)).tolist()


def _content(source: Source, index: int) -> bytes:
    return content_of(lambda: source[index])


def content_of(read: Callable[[], Example]) -> bytes:
    """Returns the bytes and the structure of an example. Training reports an unreadable example when it reads it."""
    try:
        found = leaves_with_path(read())
    except Exception:
        return b"cannot be read"
    parts = []
    for path, leaf in found:
        if is_text(leaf):
            parts.append(f"{path} text ".encode() + content(leaf))
        else:
            array = np.asarray(leaf)
            parts.append(f"{path} {array.dtype} {array.shape}".encode() + array.tobytes())
    return b"".join(parts)


def leaves_with_path(tree: PyTree) -> Sequence[tuple[str, PyTree]]:
    """Returns the (path, leaf) pairs of a pytree, with paths such as `camera/0/image`."""
    import jax

    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/") or "the example", leaf) for path, leaf in found]
