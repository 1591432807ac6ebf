"""Sources: random access to examples by their index.

Owns: the interface that a source offers (`Source`), arrays in memory (`ArraySource`), the first part of a source
(`limited`), and what the engine asks of any source (`example_spec`, `fingerprint`). Does not own: the order in which
examples are read (`shuffle.py`) or the batches made of them (`batches.py`).

Terms. *Example*: a pytree of numpy arrays and numbers, without a batch dimension; every example of a source has the
same structure, shapes and dtypes. *Index*: place of an example in its source, 0 to `len(source) - 1`.

A source is read by several threads at once and, with `data.workers`, is pickled to other processes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
import xxhash

from engine.config.errors import DataError
from engine.types import PyTree

type Example = PyTree
"""A pytree of numpy arrays and numbers."""
type Examples = PyTree
"""The same pytree with arrays `[rows, ...]`."""

TRIED = 16  # examples that are read at most to see what they hold
NUMBERS = "biufc"  # numpy's kinds of dtype that an example may hold: bool, integers, floats, complex
SAMPLED = 32  # examples that a fingerprint reads at most: a start must not wait for it
WHOLE = 256 << 20  # bytes of arrays that a fingerprint reads whole: seconds, where they are mapped from a slow disk
PART = "; "  # between the parts of a fingerprint, as the files of a source


class Source(Protocol):
    """What the engine reads examples from. Two methods are needed:

        __len__() -> int               number of examples
        __getitem__(index) -> example  the example at 0 <= index < len

    More may be there, and are used where they are:

        take(indices) -> batch         rows `[batch, ...]` for int64 indices `[batch]`, where that is faster than
                                       one example at a time
        transform(example, rng) -> example
                                       a random change, made while training only. `rng` is a numpy.random.Generator
                                       that depends on the seed and the example's place in the run, nothing else
        fingerprint() -> str           names the content; a resume refuses another one. Parts that are divided by "; "
                                       are compared one by one. Without it, a sample of the examples is hashed
        arranged(seed, shuffle) -> Sampler
                                       the endless order of a training run, where it is more than a new permutation of
                                       the examples in every epoch (`sampler.py`); evaluations read by index
        limited(count) -> Source       the part that `data.limit` uses, where it is not the first `count` examples
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class GatheringSource(Source, Protocol):
    """A source that reads many examples in one call."""

    def take(self, indices: np.ndarray, /) -> Examples: ...


class TransformingSource(Source, Protocol):
    """A source that changes its examples at random."""

    def transform(self, example: Example, rng: np.random.Generator, /) -> Example: ...


class ArraySource:
    """Examples that lie in memory, as rows of arrays. Return one from a function, or subclass it to add `transform`."""

    def __init__(self, arrays: Examples):
        """Takes a pytree of arrays `[examples, ...]`.

        Raises:
            DataError: no arrays, arrays of different lengths, or an array of something else than numbers.
        """
        import jax

        self.arrays = jax.tree.map(np.asarray, arrays)
        where = type(self).__name__
        lengths = {}
        for path, array in leaves(self.arrays):
            if array.ndim == 0:
                raise DataError(
                    f"{where}: {path} is a single number. Give numpy arrays, not lists, with one row for each example."
                )
            check_numbers(array.dtype, f"{where}: {path}")
            lengths[path] = len(array)
        if not lengths:
            raise DataError(f"{where}: no arrays. Give at least one array with one row for each example.")
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{path} {length}" for path, length in lengths.items())
            raise DataError(f"{where}: arrays of different lengths: {found}. Give each one row for each example.")
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """Returns a copy of one row of each array, so that a transform may write to it."""
        import jax

        return jax.tree.map(lambda array: array[index].copy(), self.arrays)

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the rows at `indices` `[batch]` as new arrays `[batch, ...]`."""
        import jax

        return jax.tree.map(lambda array: np.take(array, indices, axis=0), self.arrays)

    def fingerprint(self) -> str:
        """A hash of a sample of the examples, and of all values where they are not too many."""
        arrays = [array for _, array in leaves(self.arrays)]
        if sum(array.nbytes for array in arrays) > WHOLE:
            return _sample(self)
        found = xxhash.xxh3_128(_sample(self).encode())
        for array in arrays:
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return found.hexdigest()


class Limited:
    """The first examples of a source; made by `limited`."""

    def __init__(self, source: Source, length: int):
        self.source = source
        self._length = length
        if has_take(source):
            self.take = source.take
        if has_transform(source):
            self.transform = source.transform

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        return self.source[index]

    def fingerprint(self) -> str:
        return f"{fingerprint(self.source)}[:{self._length}]"


def limited(source: Source, count: int | None) -> Source:
    """Returns a source of the first `count` examples; all of them where count is None or not below their number.

    Raises:
        DataError: count is below 1.
    """
    if count is None:
        return source
    if count < 1:
        raise DataError(f"data.limit = {count}: allowed are 1 and more, or None for all of {name_of(source)}.")
    if count >= len(source):
        return source
    own = getattr(source, "limited", None)
    return own(count) if own is not None else Limited(source, count)


def check_source(source: object, where: str) -> None:
    """Raises DataError for what is no source, such as the dict of a config that lacks its `target`."""
    if isinstance(source, Mapping) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise DataError(
            f"{where}: found {type(source).__name__}, allowed is a source: an object with __len__ and __getitem__. "
            "In a config, name its class or function: {'target': 'package.module.Name', ...}."
        )


def has_take(source: Source) -> TypeGuard[GatheringSource]:
    """Whether whole batches may be read with `source.take`.

    A `take` that was inherited does not count where a subclass has changed `__getitem__` since: it would return the
    examples without that change.
    """
    return hasattr(source, "take") and overrides(source, "take", "__getitem__")


def overrides(source: Source, method: str, other: str) -> bool:
    """Whether a method was defined together with another one of the source or later, down the line of its classes."""
    of_method, of_other = (
        next((i for i, cls in enumerate(type(source).__mro__) if name in vars(cls)), -1) for name in (method, other)
    )
    return of_method <= of_other


def has_transform(source: Source) -> TypeGuard[TransformingSource]:
    """Whether the source changes its examples at random while training."""
    return hasattr(source, "transform")


def name_of(source: Source) -> str:
    """The name of a source in error texts: its class, with its module."""
    if isinstance(source, Limited):
        return name_of(source.source)
    return f"{type(source).__module__}.{type(source).__qualname__}"


def example_spec(source: Source) -> PyTree:
    """Returns shapes and dtypes of an example, as a pytree of jax.ShapeDtypeStruct; no device is touched.

    The dtypes are those that arrive on the device: 64 bits become 32 unless JAX_ENABLE_X64 is set. The first example
    that can be read is taken; what is to be done about one that cannot is decided where it is drawn.

    Raises:
        DataError: the source is empty, none of its first examples can be read, or holds something else than numbers.
    """
    import jax

    name = name_of(source)
    if len(source) == 0:
        raise DataError(f"{name}: no examples. A source needs at least one; check its files and arguments.")
    example = _first(source, name)
    found = leaves(example)
    if not found:
        raise DataError(f"{name}[0] holds no arrays. Return a pytree of numpy arrays and numbers.")
    for path, leaf in found:
        check_numbers(np.asarray(leaf).dtype, f"{name}[0]: {path}")

    def spec(leaf: npt.ArrayLike) -> jax.ShapeDtypeStruct:
        array = np.asarray(leaf)
        return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))

    return jax.tree.map(spec, example)


def _first(source: Source, name: str) -> Example:
    """The first of the first examples that can be read."""
    errors = []
    for index in range(min(len(source), TRIED)):
        try:
            return source[index]
        except Exception as error:
            errors.append(error)
    raise DataError(f"{name}[0] failed: {type(errors[0]).__name__}: {errors[0]}") from errors[0]


def check_numbers(dtype: np.dtype, where: str) -> None:
    """Raises DataError for a dtype that devices have no numbers for (text, objects, dates)."""
    if dtype.kind not in NUMBERS and dtype.name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"):
        raise DataError(
            f"{where} has dtype {dtype}: allowed are bool, integers, floats and complex numbers. "
            "Turn it into numbers (an index into a table, say) or leave it out."
        )


def fingerprint(source: Source) -> str:
    """Returns a text that changes with the content of a source.

    The source's own `fingerprint()`, else a hash of its length and of up to `SAMPLED` examples spread over it. Where
    example 0 is another one when it is read again, that is said instead: nothing can be compared.
    """
    own = getattr(source, "fingerprint", None)
    return _sample(source) if own is None else own()


def _sample(source: Source) -> str:
    size = len(source)
    if size and _content(source, 0) != _content(source, 0):
        return f"{size} examples that differ from one reading to the next"
    found = hashlib.blake2b(str(size).encode(), digest_size=16)
    for index in spread(size, SAMPLED):
        found.update(_content(source, index))
    return found.hexdigest()


def spread(size: int, most: int) -> list[int]:
    """Returns at most so many of the numbers below `size`, evenly spread, with the first and the last of them."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).astype(np.int64)).tolist()


def _content(source: Source, index: int) -> bytes:
    """The bytes of an example with its structure; what it is that cannot be read is said when it is needed."""
    try:
        found = leaves(source[index])
    except Exception:
        return b"cannot be read"
    arrays = [(path, np.asarray(leaf)) for path, leaf in found]
    return b"".join(f"{path} {array.dtype} {array.shape}".encode() + array.tobytes() for path, array in arrays)


def leaves(tree: PyTree) -> Sequence[tuple[str, PyTree]]:
    """Returns (path, leaf) of a pytree; a path reads like `camera/0/image`."""
    import jax

    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/") or "the example", leaf) for path, leaf in found]
