"""Ragged fields: entries of an example whose first dimension differs between examples, such as the agents of a scene.

Fields with the same length in each example form an *axis*. Most data has one axis. Several axes, such as agents and
polylines, have names, and what is given or returned for each axis is then a dict by these names.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.base.errors import DataError
from engine.base.types import PyTree
from engine.base.user_errors import describe
from engine.cluster import output
from engine.cluster.identity import is_primary
from engine.data.bad_examples import too_many
from engine.data.sampling.sampler import check_costs
from engine.data.source import BaseSource, Example, source_name

ADDED = ("mask", "segment_ids", "positions")
"""Entries that padding and packing add to an example."""
_ADDED = frozenset(ADDED)
REPORT_S = 10.0  # between two lines about the progress of measuring lengths

type Fields = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""Names of the ragged fields: of one axis, or axis -> names."""
type Lengths = int | Mapping[str, int]
"""A number of elements: of the only axis, or axis -> number."""


class RaggedExample(NamedTuple):
    """An example, split into its ragged fields and its other entries."""

    fields: dict[str, np.ndarray]
    rest: dict[str, PyTree]
    lengths: tuple[int, ...]
    """Number of elements of each axis."""


class Ragged:
    """The ragged fields of the examples of a source, by axis.

    Args:
        fields: names of the fields.
        owner: name of the source that pads or packs them, for error texts.

    Raises:
        DataError: there is no field, or a name is used twice or is one of `ADDED`.
    """

    def __init__(self, fields: Fields, owner: str):
        groups = fields if isinstance(fields, Mapping) else {"": fields}
        self.axes = {axis: (names,) if isinstance(names, str) else tuple(names) for axis, names in groups.items()}
        """Axis -> names of its fields; the only axis may have the name ""."""
        self.unreadable: list[int] = []
        """Examples that `measure` could not read."""
        self.fields = [name for names in self.axes.values() for name in names]
        self._names = frozenset(self.fields)
        if not self.axes or not all(self.axes.values()):
            raise DataError(f"{owner}: fields = {fields!r}: name at least one ragged field.")
        if twice := sorted({name for name in self.fields if self.fields.count(name) > 1}):
            raise DataError(f"{owner}: fields: {', '.join(twice)} is named twice. Name each field once.")
        if taken := [name for name in self.fields if name in ADDED]:
            raise DataError(f"{owner}: fields: the engine adds {', '.join(taken)} itself. Rename this field.")

    def parse(self, lengths: Lengths, what: str) -> tuple[int, ...]:
        """Returns the length of each axis. Raises DataError if one is missing, unknown or below 1."""
        named = lengths if isinstance(lengths, Mapping) else {"": lengths}
        if named.keys() != self.axes.keys():
            expected = "a number" if "" in self.axes else f"a number for each of {', '.join(self.axes)}"
            raise DataError(f"{what} = {lengths!r}: allowed is {expected}, the axes that `fields` names.")
        for length in named.values():
            if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
                raise DataError(f"{what} = {lengths!r}: allowed are 1 and more elements.")
        return tuple(int(named[axis]) for axis in self.axes)

    def by_axis[T](self, values: Sequence[T]) -> T | dict[str, T]:
        """Returns the values of the axes by name; the value itself if the only axis has no name."""
        return values[0] if "" in self.axes else dict(zip(self.axes, values, strict=True))

    def text(self, lengths: Sequence[int]) -> str:
        """Returns the lengths of the axes as text, such as "300" or "agents 64, lanes 128"."""
        return ", ".join(f"{axis} {length}".strip() for axis, length in zip(self.axes, lengths, strict=True))

    def read(self, source: BaseSource, index: int) -> RaggedExample:
        """Returns an example of the source. Raises DataError if it cannot be read or lacks a field."""

        def where() -> str:
            return f"Example {index} of {source_name(source)}"

        try:
            example = source[index]
        except Exception as error:
            raise DataError(
                f"{where()}: {describe(error)} Read it with source[{index}]; repair it or leave it out."
            ) from error
        return self.split(example, where)

    def split(self, example: Example, where: Callable[[], str]) -> RaggedExample:
        """Splits an example; `where` returns its name in error texts.

        Raises:
            DataError: it lacks a field, or the fields of an axis differ in length.
        """
        if not isinstance(example, dict):
            raise DataError(f"{where()} is a {type(example).__name__}. A ragged example is a dict of arrays.")
        if not self._names <= example.keys():
            missing = next(name for name in self.fields if name not in example)
            raise DataError(f"{where()} has no `{missing}`, found {', '.join(map(str, example))}. Correct `fields`.")
        if not _ADDED.isdisjoint(example):
            taken = next(name for name in ADDED if name in example)
            raise DataError(f"{where()} has an entry `{taken}`, which the engine adds itself. Rename it.")
        fields = {
            name: value if type(value := example[name]) is np.ndarray else _as_array(value, name, where)
            for name in self.fields
        }
        lengths = []
        for names in self.axes.values():
            length = None
            for name in names:
                shape = fields[name].shape
                if not shape or length not in (None, shape[0]):
                    texts = ", ".join(f"{name} {list(fields[name].shape)}" for name in names)
                    raise DataError(
                        f"{where()}: ragged fields of one axis are arrays with one first dimension, found {texts}. "
                        "Correct the example, or name an axis for each length: "
                        "fields={'agents': ['history'], 'lanes': ['points']}."
                    )
                length = shape[0]
            lengths.append(length)
        rest = {name: value for name, value in example.items() if name not in fields}
        return RaggedExample(fields, rest, tuple(lengths))

    def measure(self, source: BaseSource, given: PyTree = None, *, tolerant: bool = False) -> np.ndarray:
        """Returns the lengths of all examples, int64 `[axes, examples]`.

        They are `given`, else those of `source.lengths()` or `source.field_lengths()`, else measured by reading each
        example once.

        Args:
            source: the examples.
            given: lengths that are known.
            tolerant: give an example that cannot be read the length 0; `data.on_error` applies when training reads it.

        Raises:
            DataError: they are invalid, or an example cannot be read; with `tolerant`, too many examples.
        """
        if given is None:
            given = source.lengths()
        name = source_name(source)
        if given is None and (indexed := self._indexed(source)) is not None:
            return indexed
        if given is None:
            rows = measured(source, lambda index: self._measure(source, index, tolerant))
            self._report_unreadable(source)
            return np.array(rows, np.int64).reshape(len(rows), len(self.axes)).T
        if "" not in self.axes and not (isinstance(given, Mapping) and given.keys() == self.axes.keys()):
            raise DataError(f"{name}: lengths() must return a dict of {', '.join(self.axes)}, the axes of `fields`.")
        parts: list[npt.ArrayLike] = [given] if "" in self.axes else [given[axis] for axis in self.axes]  # pyright: ignore
        return np.stack([check_index(source, part, "examples") for part in parts])

    def knows_lengths(self, source: BaseSource) -> bool:
        """Returns whether the lengths of the examples are known without reading them."""
        return source.defines("lengths") or self._indexed(source) is not None

    def _indexed(self, source: BaseSource) -> np.ndarray | None:
        """Returns the lengths from `source.field_lengths()`, int64 `[axes, examples]`; None if it does not know them.

        Also None if the fields of an axis differ in length: reading the examples then reports the first such example.
        """
        found = source.known_field_lengths(self.fields)
        if found is None or any(
            (found[name] != found[names[0]]).any() for names in self.axes.values() for name in names
        ):
            return None
        return np.stack([check_index(source, found[names[0]], "examples") for names in self.axes.values()])

    def _measure(self, source: BaseSource, index: int, tolerant: bool) -> tuple[int, ...]:
        try:
            return self.read(source, index).lengths
        except DataError as error:
            if not tolerant or too_many(len(self.unreadable) + 1, len(source)):
                raise
            if not self.unreadable and is_primary():
                output.show(f"warning: {error} data.on_error decides when it is read.")
            self.unreadable.append(index)
            return (0,) * len(self.axes)

    def _report_unreadable(self, source: BaseSource) -> None:
        if len(self.unreadable) > 1 and is_primary():
            name, count = source_name(source), len(self.unreadable)
            output.show(f"warning: {count} of {len(source):,} examples of {name} cannot be read.")


def _as_array(value: PyTree, name: str, where: Callable[[], str]) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of several lengths
        raise DataError(
            f"{where()}: {name} holds lists of several lengths, and only the first dimension of a ragged field may "
            "differ. Pad the inner lists in a source of your own, or join them and add their lengths as a field."
        ) from error


def measured[T](
    source: BaseSource,
    measure: Callable[[int], T],
    doing: str = "measuring the examples of",
    advice: str = "With a method lengths(), the source need not be read for this.",
) -> list[T]:
    """Returns `measure(index)` of each example. Prints the progress on the primary, since it may take minutes."""
    found, begin = [], time.monotonic()
    for index in range(len(source)):
        if time.monotonic() - begin > REPORT_S:
            begin = time.monotonic()
            if is_primary():
                output.show(f"{doing} {source_name(source)}: {index:,} of {len(source):,}. {advice}")
        found.append(measure(index))
    return found


def check_index(source: BaseSource, lengths: npt.ArrayLike, what: str) -> np.ndarray:
    """Returns the lengths of all examples as int64 `[examples]`; `what` names examples. Raises DataError."""
    found, name = np.asarray(lengths), source_name(source)
    if found.shape != (len(source),) or found.dtype.kind not in "iu" or found.min(initial=0) < 0:
        raise DataError(
            f"{name}: the length index has shape {list(found.shape)}, dtype {found.dtype} and minimum "
            f"{found.min(initial=0)}. Allowed are integers of at least 0, one for each of the {len(source)} {what}."
        )
    return found.astype(np.int64)


def costs(source: BaseSource, lengths: np.ndarray) -> np.ndarray:
    """Returns the cost of each example, float64 `[examples]`: `source.costs()`, or its number of elements.

    Args:
        source: the examples.
        lengths: `[axes, examples]`.

    Raises:
        DataError: `source.costs()` returns something else.
    """
    own = source.costs()
    return lengths.sum(axis=0).astype(np.float64) if own is None else check_costs(source, own)


def check_raw(source: BaseSource, owner: str) -> None:
    """Raises DataError if a source has a sampler or a transform: plans rely on fixed lengths.

    `Weighted` has a sampler, but its order is one of the examples of its own source, which is checked instead.
    """
    if source.is_weighted:
        source = source.source
    if source.has_sampler:
        raise DataError(
            f"{owner}: {source_name(source)} has its own sampler. Pad or pack the examples of each source first, then "
            "mix: Mixture({NAME: Padded(...), ...}, weights)."
        )
    if source.has_transform:
        raise DataError(
            f"{owner}: {source_name(source)} has a transform, which may change the lengths that the plan relies on. "
            f"Define it as transform(example, rng) in a subclass of {owner.rpartition('.')[2]}."
        )
