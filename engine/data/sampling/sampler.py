"""Samplers decide which example a training run reads at each position. Positions never end: epoch follows epoch.

A position is the global index of an example in the run, 0, 1, 2 ... A sampler maps a position to an address, an int64
that identifies the example to read. The default sampler, `PermutationSampler`, reads a new permutation in every epoch,
and its addresses are indices into the source. Packed sources and mixtures have their own samplers.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeGuard

import numpy as np

from engine.base.errors import ConvoyError, DataError
from engine.base.types import Json
from engine.data.collate import Collator
from engine.data.ragged.fields import Sizes, source_costs
from engine.data.sampling.shuffle import EpochPermutation
from engine.data.source import (
    Example,
    Examples,
    Source,
    defined_with_or_after,
    has_take,
    has_transform,
    source_name,
)

type Mark = tuple[int, Json]
"""Number of an item of a shard, and the position from which the shard is opened to read it."""
type Marks = Mapping[str, Mark]
"""Marks by the name of a shard."""


class Sampler(Protocol):
    """The order of a run over a source: the example at a position is a pure function of (seed, position).

    An implementation must be thread-safe and picklable: reader threads share it, and worker processes get a copy.
    """

    has_transform: bool
    """Whether a source that it reads has a random `transform`."""
    vectorized: bool
    """Whether a call of `read` for many addresses costs little more than for one, so that large calls pay."""

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        """Returns the addresses int64 `[n]` of positions int64 `[n]`."""
        ...

    def read(self, addresses: np.ndarray) -> Examples:
        """Returns the examples `[n, ...]` at addresses `[n]`, before `transform`. Raises DataError."""
        ...

    def locate(self, address: int) -> tuple[Source, int]:
        """Returns the source whose `transform` applies to the example at an address, and its index in that source."""
        ...


class ShapedSampler(Sampler, Protocol):
    """A sampler whose batches have one of several shapes (`padded.py`). An address includes the number of its shape."""

    def shape_of(self, address: int) -> int:
        """Returns the number of the shape of an address."""
        ...

    def with_shape(self, address: int, shape: int) -> int:
        """Returns the address of the same example in another shape."""
        ...


class TaggedSampler(Sampler, Protocol):
    """A sampler that knows the tags of the examples, such as their classes or their source in a mixture."""

    tag_names: tuple[str, ...]
    """Name of each tag; empty if the tags are not known."""

    def tag_counts(self, addresses: np.ndarray) -> np.ndarray:
        """Returns how many of the examples at addresses `[n]` have each tag, int64 `[tags]`."""
        ...


class SizedSampler(Sampler, Protocol):
    """A sampler that knows the sizes of its rows."""

    def sizes(self, addresses: np.ndarray) -> Sizes:
        """Returns the sizes of the rows at addresses `[n]`."""
        ...


def reads_singly(sampler: Sampler) -> bool:
    """Returns whether a sampler reads `source[index]`, where `locate` returns `source, index`, for each address."""
    return getattr(sampler, "reads_singly", False)


def needs_whole_batches(sampler: Sampler) -> bool:
    """Returns whether the address of a row depends on all rows of its batch, so that whole batches are computed."""
    return is_shaped(sampler) or getattr(sampler, "needs_whole_batches", False)


class MarkedSampler(Sampler, Protocol):
    """A sampler that reads streams (`streams/`). A mark says where a shard is opened to read from an item on."""

    def seek(self, marks: Marks) -> None:
        """Sets where some shards are opened; any marks of earlier positions, or none, give the same examples."""
        ...

    def marks(self, position: int) -> Marks:
        """Returns the marks of the shards read so far from which `position`, the first of a batch, can be read.

        Marks that the previous call has returned may be left out.
        """
        ...


def make_sampler(source: Source, seed: int, shuffle: bool, batch_size: int | None = None) -> Sampler:
    """Returns the sampler of the source's own method, or the default one.

    The method is `batch_sampler(seed, shuffle, batch_size)` if there is one and the batch size is known, else
    `sampler(seed, shuffle)`.

    Raises:
        DataError: the source is empty, or its class overrides `__getitem__` but inherits the method.
    """
    name = "sampler" if batch_size is None or not hasattr(source, "batch_sampler") else "batch_sampler"
    own: Callable[..., Sampler] | None = getattr(source, name, None)
    if own is None:
        return PermutationSampler(source, seed, shuffle)
    if not defined_with_or_after(source, name, "__getitem__"):
        raise DataError(
            f"{source_name(source)} overrides __getitem__ but inherits `{name}`, through which training reads without "
            f"calling it. Move its code to transform(example, rng) or to the wrapped source, or override `{name}` too."
        )
    return own(seed, shuffle) if name == "sampler" else own(seed, shuffle, batch_size)


def is_shaped(sampler: Sampler) -> TypeGuard[ShapedSampler]:
    """Returns whether the batches of a sampler have one of several shapes."""
    return hasattr(sampler, "shape_of")


def is_tagged(sampler: Sampler) -> TypeGuard[TaggedSampler]:
    """Returns whether a sampler knows the tags of the examples."""
    return bool(getattr(sampler, "tag_names", ()))


def is_sized(sampler: Sampler) -> TypeGuard[SizedSampler]:
    """Returns whether a sampler knows the sizes of its rows."""
    return hasattr(sampler, "sizes")


def is_marked(sampler: Sampler) -> TypeGuard[MarkedSampler]:
    """Returns whether a sampler reads streams."""
    return hasattr(sampler, "marks")


def row_costs(sampler: Sampler, source: Source, addresses: np.ndarray) -> np.ndarray:
    """Returns the costs of the rows at addresses, float64 `[n]`. Raises DataError if they are not known.

    Args:
        sampler: of the rows.
        source: whose sampler it is.
        addresses: of the rows, int64 `[n]`.
    """
    if is_sized(sampler):
        return sampler.sizes(addresses).cost
    own: Callable[[np.ndarray], np.ndarray] | None = getattr(sampler, "costs", None)
    if own is not None:
        return own(addresses)
    indices = [sampler.locate(address)[1] for address in addresses.tolist()]
    return source_costs(source)[np.array(indices, np.int64)]


class Order(Protocol):
    """The indices of the examples of a source by position; `EpochPermutation`, or that of `Weighted`."""

    shuffle: bool

    def indices(self, positions: np.ndarray) -> np.ndarray: ...


def make_order(source: Source, seed: int, shuffle: bool, batch_size: int | None) -> Order:
    """Returns the order of a `Weighted` source, and for others a new permutation in every epoch."""
    own: Callable[..., Order] | None = getattr(source, "weighted_order", None)
    return EpochPermutation(len(source), seed, shuffle) if own is None else own(seed, shuffle, batch_size)


class PermutationSampler:
    """The default sampler: a new permutation of the source in every epoch; without `shuffle`, the stored order.

    Its addresses are indices into the source. With an `order`, that order.
    """

    def __init__(self, source: Source, seed: int, shuffle: bool, order: Order | None = None):
        self._source = source
        self.has_transform: bool = has_transform(source)
        self.vectorized: bool = has_take(source)
        self.reads_singly = not self.vectorized
        self._order = EpochPermutation(len(source), seed, shuffle) if order is None else order
        self._costs: np.ndarray | None = None

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        return self._order.indices(positions)

    def costs(self, addresses: np.ndarray) -> np.ndarray:
        """Returns the costs of the examples at addresses, float64 `[n]`. Raises DataError if they are not known."""
        if self._costs is None:
            self._costs = source_costs(self._source)
        return self._costs[addresses]

    def read(self, addresses: np.ndarray) -> Examples:
        return read_examples(self._source, addresses)

    def locate(self, address: int) -> tuple[Source, int]:
        return self._source, address


def read_examples(source: Source, indices: np.ndarray) -> Examples:
    """Returns the examples at `indices` int64 `[batch]` as new arrays `[batch, ...]`.

    Raises:
        DataError: an example cannot be read, or shapes of examples differ; the text names the first such example.
        ConvoyError: another error of the source, such as of a stream, which is not a bad example.
    """
    name = source_name(source)
    try:
        if has_take(source):
            return source.take(indices)
    except ConvoyError:
        raise  # its text already names the example, or the stream that cannot be read on
    except Exception as error:
        _stack_each(source, indices)  # raises an error that names the unreadable example, if there is one
        raise DataError(
            f"{name}.take failed for examples {_first_few(indices)}, although each can be read by index: "
            f"{type(error).__name__}: {error}. Correct take, or remove it to read one example at a time."
        ) from error
    return _stack_each(source, indices)


def _first_few(indices: np.ndarray) -> str:
    return ", ".join(map(str, indices[:8])) + (" ..." if len(indices) > 8 else "")


def _stack_each(source: Source, indices: np.ndarray) -> Examples:
    """Returns the stacked examples, read one at a time."""
    collator = Collator(len(indices))
    for index in indices.tolist():
        collator.add(read_example(source, index))
    return collator.batch(lambda row: f"{indices[row]} of {source_name(source)}")


def read_example(source: Source, index: int) -> Example:
    """Returns an example.

    Raises:
        DataError: it cannot be read; the text names it.
        ConvoyError: as for `read_examples`.
    """
    try:
        return source[index]
    except Exception as error:
        if isinstance(error, ConvoyError) and not isinstance(error, DataError):
            raise
        what = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}."
        raise DataError(
            f"Example {index} of {source_name(source)}: {what} Read it with source[{index}] and repair it, remove "
            "it from the source, or set data.on_error=skip."
        ) from error
