"""Statistics of the examples of a dataset, which are exact and do not depend on how the examples are split.

The statistics of a range of examples merge into those of the ranges before it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
import xxhash

from engine.base.types import PyTree
from engine.data.examples import Example, leaves_with_path
from engine.data.stages import NO_TIMES, Times, added
from engine.data.text import content, is_text

MAX_BAD = 10_000  # bad examples that a report names; the others are only counted
MAX_CLASSES, MAX_LABELS = 256, 4096  # different values of a field of labels, and labels of one example
HASH_PARTS = 64  # in which duplicates are searched one after the other
FIRST = 5  # examples that are named where there may be many

type Structure = tuple[tuple[str, str, int], ...]
"""Path, dtype and number of dimensions of each leaf of an example."""


@dataclass(frozen=True)
class BadExample:
    """An example that cannot be used for training."""

    index: int
    file: str
    """The file and the record in it, if the source knows them; else empty."""
    reason: str


def structure(example: Example) -> Structure:
    """Returns the structure of an example, which all examples of a dataset must share."""
    return tuple((path, _dtype(leaf), np.ndim(leaf)) for path, leaf in leaves_with_path(example))


def structure_text(found: Structure) -> str:
    """Returns a structure as text, such as "image uint8[?, ?], name text"."""
    return ", ".join(
        f"{path} {dtype}" + (f"[{', '.join('?' * dimensions)}]" if dimensions else "")
        for path, dtype, dimensions in found
    )


def _dtype(leaf: PyTree) -> str:
    return "text" if is_text(leaf) else np.asarray(leaf).dtype.name


@dataclass
class FieldStatistics:
    """Statistics of one leaf of the examples."""

    dtype: str
    examples: int = 0
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    minimum: int | float | None = None
    """Smallest finite value; None for text and complex numbers."""
    maximum: int | float | None = None
    not_finite: int = 0
    """Examples with a value that is infinite or not a number."""
    first_not_finite: list[int] = field(default_factory=list)
    classes: Counter[int] | None = field(default_factory=Counter)
    """Value -> how often it occurs, for integers with few different values, in at most one dimension."""
    content: int = 0
    """Hash of the first example."""
    constant: bool = True
    """Whether all examples have the same content."""

    def add(self, index: int, leaf: PyTree) -> bytes:
        """Adds an example; returns bytes that identify its content."""
        text = is_text(leaf)
        array = np.asarray(leaf)
        found = content(leaf) if text else np.ascontiguousarray(array).tobytes()
        shape = () if text and array.ndim == 0 else array.shape
        self._add_content(xxhash.xxh3_64_intdigest(repr(shape).encode() + found))
        self.examples += 1
        self.shapes[shape] += 1
        if text or array.dtype.kind == "c" or not array.size:
            return found
        if array.dtype.kind == "V":  # int4, bfloat16 and others that NumPy does not know
            array = array.astype(np.int32 if jnp.issubdtype(array.dtype, np.integer) else np.float32)
        if array.dtype.kind in "biu":
            self._add_range(int(array.min()), int(array.max()))
            self._add_classes(array)
            return found
        finite = np.isfinite(array)
        if not finite.all():
            self.not_finite += 1
            self.first_not_finite = [*self.first_not_finite, index][:FIRST]
            array = array[finite]
        if array.size:
            self._add_range(float(array.min()), float(array.max()))
        self.classes = None
        return found

    def _add_content(self, found: int) -> None:
        if not self.examples:
            self.content = found
        self.constant = self.constant and found == self.content

    def _add_range(self, low: int | float, high: int | float) -> None:
        self.minimum = low if self.minimum is None else min(self.minimum, low)
        self.maximum = high if self.maximum is None else max(self.maximum, high)

    def _add_classes(self, array: np.ndarray) -> None:
        if self.classes is None or array.ndim > 1 or array.size > MAX_LABELS:
            self.classes = None
            return
        if array.ndim == 0:
            self.classes[int(array)] += 1
        else:
            values, counts = np.unique(array, return_counts=True)
            self.classes.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        if len(self.classes) > MAX_CLASSES:
            self.classes = None

    def is_constant(self) -> bool:
        """Whether several examples have the same content, or all values are the same."""
        return self.examples > 1 and (self.constant or (self.minimum is not None and self.minimum == self.maximum))

    def lengths(self) -> Counter[int] | None:
        """Returns first dimension -> number of examples, if only the first dimension of the shapes differs."""
        if len(self.shapes) < 2 or () in self.shapes or len({shape[1:] for shape in self.shapes}) > 1:
            return None
        return Counter({shape[0]: count for shape, count in self.shapes.items()})

    def labels(self) -> Counter[int] | None:
        """Returns value -> how often it occurs, if the field seems to hold labels: integers that occur repeatedly."""
        if not self.classes or self.is_constant() or 2 * len(self.classes) > self.classes.total():
            return None
        return self.classes

    def merge(self, other: "FieldStatistics") -> None:
        """Adds the statistics of later examples."""
        if self.examples and other.examples:
            self.constant = self.constant and other.constant and self.content == other.content
        self.examples += other.examples
        self.shapes.update(other.shapes)
        if other.minimum is not None and other.maximum is not None:
            self._add_range(other.minimum, other.maximum)
        self.not_finite += other.not_finite
        self.first_not_finite = [*self.first_not_finite, *other.first_not_finite][:FIRST]
        if self.classes is None or other.classes is None:
            self.classes = None
        else:
            self.classes.update(other.classes)
            self.classes = None if len(self.classes) > MAX_CLASSES else self.classes


@dataclass
class Statistics:
    """Statistics of a range of examples, and the seconds that each stage of reading them took."""

    examples: int = 0
    """Examples that were read, with the bad ones."""
    fields: dict[str, FieldStatistics] = field(default_factory=dict)
    sizes: Counter[int] = field(default_factory=Counter)
    """Bytes of an example -> number of examples."""
    bad: list[BadExample] = field(default_factory=list)
    bad_count: int = 0
    hashes: list[np.ndarray] = field(default_factory=list)
    """uint64 `[examples, 2]`: index and hash of each good example."""
    times: Times = NO_TIMES
    waiting: float = 0.0
    """Seconds of the stages read and decode in which the thread did not compute."""

    def add(self, index: int, example: Example) -> int:
        """Adds a good example; returns the hash of its content."""
        found, size = xxhash.xxh3_64(), 0
        for path, leaf in leaves_with_path(example):
            if path not in self.fields:
                self.fields[path] = FieldStatistics(_dtype(leaf))
            stored = self.fields[path].add(index, leaf)
            found.update(f"{path} {len(stored)} ".encode())
            found.update(stored)
            size += len(stored)
        self.sizes[size] += 1
        return found.intdigest()

    def add_bad(self, bad: BadExample) -> None:
        """Adds an example that cannot be used."""
        self.bad_count += 1
        if len(self.bad) < MAX_BAD:
            self.bad.append(bad)

    def count_times(self, times: Times) -> None:
        """Adds seconds by stage."""
        self.times = added(self.times, times)

    def merge(self, other: "Statistics") -> None:
        """Adds the statistics of later examples."""
        self.examples += other.examples
        for path, statistics in other.fields.items():
            if path in self.fields:
                self.fields[path].merge(statistics)
            else:
                self.fields[path] = statistics
        self.sizes.update(other.sizes)
        self.bad = [*self.bad, *other.bad][:MAX_BAD]
        self.bad_count += other.bad_count
        self.hashes += other.hashes
        self.count_times(other.times)
        self.waiting += other.waiting

    def duplicates(self) -> tuple[int, list[tuple[int, int]]]:
        """Returns the number of examples that equal an earlier one, and the first such pairs of indices.

        The hashes take 16 bytes for each example; the search needs little more.
        """
        count, found = 0, []
        for part in range(HASH_PARTS):  # one at a time, since sorting takes several times the memory of what it sorts
            pairs = [chunk[chunk[:, 1] % HASH_PARTS == part] for chunk in self.hashes]
            if not sum(map(len, pairs)):
                continue
            pairs = np.concatenate(pairs)
            indices, hashes = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].T
            _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
            original = indices[first][which]
            copies = np.flatnonzero(indices != original)
            count += len(copies)
            found += zip(original[copies].tolist(), indices[copies].tolist(), strict=True)
            found = sorted(found, key=lambda pair: pair[1])[:FIRST]
        return count, found


def quantiles(counts: Counter[int], at: Sequence[float]) -> list[int]:
    """Returns the values at these shares, 0 to 1, of the sorted values."""
    values, totals = zip(*sorted(counts.items()), strict=True)
    ends = np.cumsum(totals)
    return [values[int(np.searchsorted(ends, share * ends[-1]))] for share in at]


def histogram(counts: Counter[int], bins: int) -> list[tuple[int, int, int]]:
    """Returns (lowest, highest, number of values) of each of at most `bins` bins of equal width."""
    low, high = min(counts), max(counts)
    width = -(-(high - low + 1) // bins)
    found = [[start, min(start + width - 1, high), 0] for start in range(low, high + 1, width)]
    for value, count in counts.items():
        found[(value - low) // width][2] += count
    return [(start, stop, count) for start, stop, count in found]
