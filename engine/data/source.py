"""Sources: random access to examples by index, 0 to `len(source) - 1`.

An example is a pytree of numpy arrays, numbers and text without a batch dimension; all examples of a source have the
same structure, shapes and dtypes. Text stays on the host (`text.py`). Several threads read a source at once and, with
`data.workers`, it is pickled to other processes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from engine.base.errors import DataError
from engine.base.types import PyTree, defined_with_or_after
from engine.base.user_errors import describe
from engine.data.examples import Example, Examples, check_numbers, leaves_with_path, row_of, sample_fingerprint
from engine.data.text import content, is_text, text_paths, without_text

SPEC_TRIES = 16  # examples tried at most to find the spec of an example
FINGERPRINT_BYTES = 256 << 20  # arrays up to this size are hashed whole: seconds if they are mapped from a slow disk
SEPARATOR = "; "  # between the parts of a fingerprint, such as the files of a source


class Source(Protocol):
    """Random access to examples. Two methods are required:

        __len__() -> int               number of examples
        __getitem__(index) -> example  the example at 0 <= index < len

    More methods are optional:

        take(indices) -> batch         rows `[batch, ...]` for int64 indices `[batch]`, if that is faster than reading
                                       one example at a time
        transform(example, rng)        random transform, applied in training only. `rng` is a numpy.random.Generator
                                       that depends only on the seed and the position of the example in the run. It
                                       may declare a parameter `context`, an `engine.Context`
        fingerprint() -> str           identifies the content; a resume refuses a different one. Parts separated by
                                       "; " are compared one by one. Default: a hash of a sample of the examples
        sampler(seed, shuffle)         the order of a training run (`sampler.py`). Default: a new permutation of the
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


class BaseSource:
    """A source with every optional member, as the engine reads it: those of `Source`, and those of wrapping sources.

    The sources of the engine are subclasses. `adapt.as_source` gives these defaults to other objects.
    """

    new_arrays: bool = False
    consecutive: int = 1  # number of consecutive batches of one shape; 0: dispatches are as long as shapes allow
    reads_stream: bool = False  # whether it is a `StreamSource`
    reads_blocks: bool = True  # whether `take` of many examples takes little longer than of one
    continues_rows: bool = False  # whether row b of a batch continues row b of the batch before
    source_name: str = ""  # name in error texts, if it stands for another object; else that of its class
    source: Any = None
    documents: Any = None
    sources: Any = None
    """The source that it wraps, the source that it packs, and the sources that it mixes, by name."""
    times: Any = None
    """Values by time (`sampling/share_schedule.py`), if they decide which examples it draws."""
    paths: Sequence[str] = ()
    folder: Any = None
    file_states: Any = None
    known_names: Mapping[str, Sequence[str]] = {}
    """Files or folder that it reads, `FileStates` of files whose changes it notices, names of examples by kind."""

    def __len__(self) -> int:
        raise NotImplementedError(f"{source_name(self)} defines no __len__.")

    def __getitem__(self, index: int, /) -> Example:
        raise NotImplementedError(f"{source_name(self)} defines no __getitem__.")

    def delegate(self, source: "BaseSource", *members: str) -> None:
        """Takes over those optional members that another source has for its examples."""
        for member in members:
            if source.defines(member) and source.keeps(member):
                setattr(self, member, getattr(source, member))

    @functools.cached_property
    def has_take(self) -> bool:
        """Whether batches are read with `take`."""
        return self.defines("take") and self.keeps("take")

    @functools.cached_property
    def has_transform(self) -> bool:
        """Whether it has a random transform for training."""
        return self.defines("transform")

    @functools.cached_property
    def has_new_arrays(self) -> bool:
        """Whether it declares that nothing else refers to the arrays of its examples."""
        return self.new_arrays and self.keeps("new_arrays")

    @functools.cached_property
    def has_sampler(self) -> bool:
        """Whether it has an order of its own for training."""
        return self.defines("sampler") or self.defines("batch_sampler")

    @functools.cached_property
    def is_weighted(self) -> bool:
        """Whether `weighted_order` draws some examples more often than others."""
        return self.defines("weighted_order")

    @functools.cached_property
    def measured(self) -> bool:
        """Whether the lengths of the examples are known without reading them, if they are ragged."""
        return True

    def defines(self, member: str) -> bool:
        """Returns whether the source or its class has its own value of an optional member, instead of the default."""
        if member in vars(self):
            return True
        return next(owner for owner in type(self).__mro__ if member in vars(owner)) is not BaseSource

    def keeps(self, member: str) -> bool:
        """Returns whether a member agrees with `__getitem__`.

        One that a subclass with another `__getitem__` inherits does not: it would bypass that method.
        """
        return member in vars(self) or defined_with_or_after(type(self), member, "__getitem__")

    def take(self, indices: np.ndarray, /) -> Examples:
        raise NotImplementedError(f"{source_name(self)} defines no take.")

    if TYPE_CHECKING:
        transform: Callable[..., Example]  # a subclass may define it with or without a context
    else:

        def transform(self, example, rng):
            return example

    def fingerprint(self) -> str:
        return sample_fingerprint(len(self), self.__getitem__)

    def sampler(self, seed: int, shuffle: bool, /) -> Any:
        return None

    def batch_sampler(self, seed: int, shuffle: bool, batch_size: int, /) -> Any:
        """Returns a sampler for batches of so many rows; None if `sampler` gives it."""
        return None

    def limited(self, count: int, /) -> "BaseSource":
        return Limited(self, count)

    def with_run(self, examples: int, /) -> "BaseSource":
        """Returns the source for a run of so many examples, if its order depends on that."""
        return self

    def counted(self) -> "BaseSource | None":
        """Returns a source of known length, for which it reads streams of unknown length once; None if it cannot."""
        return None

    def lengths(self) -> Any:
        return None

    def field_lengths(self, names: Sequence[str], /) -> Mapping[str, np.ndarray] | None:
        return None

    def known_field_lengths(self, names: Sequence[str]) -> Mapping[str, np.ndarray] | None:
        """Returns `field_lengths`, unless a subclass with another `__getitem__` inherits that method."""
        return self.field_lengths(names) if self.keeps("field_lengths") else None

    def costs(self) -> npt.ArrayLike | None:
        return None

    def tags(self) -> Any:
        return None

    @functools.cached_property
    def tag_names(self) -> tuple[str, ...]:
        """Names of the tags of a source with `is_weighted`."""
        return ()

    def tag_counts(self, indices: np.ndarray, /) -> np.ndarray:
        """Returns how many of the examples at `indices` have each tag, int64 `[tags]`."""
        return np.zeros(0, np.int64)

    def weighted_order(self, seed: int, shuffle: bool, batch_size: int | None, /) -> Any:
        """Returns the order of a source with `is_weighted`; None for a permutation in every epoch."""
        return None

    def shape_specs(self) -> list[PyTree]:
        """Returns the spec of an example in each shape that its batches have; the last one is the largest."""
        return [example_spec(self)]

    def shape_names(self) -> list[str]:
        """Returns the names of these shapes."""
        return []

    def adapt_task(self, task: Any, where: str, /) -> Any:
        """Returns the Task for the batches of this source, which is the data of the config section `where`."""
        return task

    def batch_text(self, rows: int, /) -> str:
        """Returns a sentence about a training batch of so many rows; "" if a row is an example."""
        return ""

    def evaluation_order(self, batch_size: int, /) -> Any:
        """Returns the order of an evaluation; None for that of the source."""
        return None

    def stored_order(self, batch_size: int, /) -> Any:
        """Returns the order of the source, with the shapes of batches of so many examples; None for a single shape."""
        return None

    def checksums(self) -> dict[str, str]:
        """Returns path -> the checksum that a file should have."""
        return {}

    def record_name(self, index: int, /) -> str:
        """Returns the file of an example and the record in it; "" if it is not known."""
        return ""


def inner_sources(source: BaseSource) -> list[BaseSource]:
    """Returns the sources that a source reads directly."""
    mixed = source.sources.values() if isinstance(source.sources, Mapping) else []
    return [found for found in (source.source, source.documents, *mixed) if isinstance(found, BaseSource)]


class ArraySource(BaseSource):
    """A source of in-memory examples, the rows of arrays. A subclass may add `transform`."""

    new_arrays = True

    def __init__(self, arrays: Examples):
        """Creates a source from a pytree of arrays `[examples, ...]`.

        Raises:
            DataError: there are no arrays, their lengths differ, or an array holds neither numbers nor text.
        """
        import jax

        self.arrays = jax.tree.map(np.asarray, arrays)
        where, lengths = type(self).__name__, {}
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

        return jax.tree.map(lambda array: row_of(array, index), self.arrays)

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the rows at `indices` `[batch]` as new arrays `[batch, ...]`."""
        import jax

        return jax.tree.map(lambda array: np.take(array, indices, axis=0), self.arrays)

    def fingerprint(self) -> str:
        """Returns a hash of all values, or of a sample of the examples if the arrays are very large."""
        arrays = [array for _, array in leaves_with_path(self.arrays)]
        if sum(array.nbytes for array in arrays) > FINGERPRINT_BYTES:
            return sample_fingerprint(len(self), self.__getitem__)
        found = xxhash.xxh3_128(sample_fingerprint(len(self), self.__getitem__).encode())
        for array in arrays:
            text = array.dtype.kind not in "US" and is_text(array)  # Python's strings: the array holds addresses
            found.update(content(array) if text else np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return found.hexdigest()


class Limited(BaseSource):
    """The first examples of a source; created by `limited`."""

    def __init__(self, source: BaseSource, length: int):
        self.source, self._length = source, length
        self.source_name, self.new_arrays = source_name(source), source.has_new_arrays
        self.delegate(source, "take", "transform")
        if source.defines("lengths"):
            self.lengths = self._lengths
        if source.defines("costs"):
            self.costs = self._first_costs

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        return self.source[index]

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()}[:{self._length}]"

    def field_lengths(self, names: Sequence[str]) -> Mapping[str, np.ndarray] | None:
        found = self.source.known_field_lengths(names)
        return None if found is None else {name: lengths[: self._length] for name, lengths in found.items()}

    def _lengths(self) -> Any:
        found = self.source.lengths()  # may be a dict by axis
        if isinstance(found, Mapping):
            return {axis: np.asarray(values)[: self._length] for axis, values in found.items()}
        return np.asarray(found)[: self._length]

    def _first_costs(self) -> npt.ArrayLike:
        return np.asarray(self.source.costs())[: self._length]

    def record_name(self, index: int) -> str:
        return self.source.record_name(index)


def limited(source: BaseSource, count: int | None) -> BaseSource:
    """Returns a source of the first `count` examples, or the source itself if `count` is None or not below its length.

    Raises:
        DataError: `count` is below 1.
    """
    if count is None or count >= max(1, len(source)):
        return source
    if count < 1:
        raise DataError(f"data.limit = {count}: allowed are 1 and more, or None for all of {source_name(source)}.")
    return source.limited(count)


def source_name(source: BaseSource) -> str:
    """Returns the name of a source in error texts: its class with the module."""
    return source.source_name or f"{type(source).__module__}.{type(source).__qualname__}"


def example_spec(source: BaseSource) -> PyTree:
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


def source_text(source: BaseSource) -> list[str]:
    """Returns the paths of the text in the first readable example. Raises DataError if none can be read."""
    return text_paths(first_example(source))


def first_example(source: BaseSource) -> Example:
    """Returns the first readable example. Raises DataError if none of the first `SPEC_TRIES` can be read."""
    errors = []
    for index in range(min(len(source), SPEC_TRIES)):
        try:
            return source[index]
        except Exception as error:
            errors.append(error)
    raise DataError(f"{source_name(source)}[0] failed: {describe(errors[0])}") from errors[0]
