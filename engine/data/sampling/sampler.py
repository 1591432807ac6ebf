"""Samplers decide which example a training run reads at each position. Positions never end: epoch follows epoch.

A position is the global index of an example in the run, 0, 1, 2 ... A sampler maps a position to an address, an int64
that identifies the example to read. The default sampler, `PermutationSampler`, reads a new permutation in every epoch,
and its addresses are indices into the source. Packed sources and mixtures have their own samplers.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.base.errors import ConvoyError, DataError
from engine.base.types import Json
from engine.base.user_errors import describe
from engine.data.collate import Collator
from engine.data.sampling.shuffle import EpochPermutation
from engine.data.source import BaseSource, Example, Examples, source_name
from engine.data.source_adapter import AdaptedSource

type Mark = tuple[int, Json]
"""Number of an item of a shard, and the position from which the shard is opened to read it."""
type Marks = Mapping[str, Mark]
"""Marks by the name of a shard."""

OPTIONAL = (
    *("has_transform", "vectorized", "reads_singly", "needs_whole_batches", "tag_names", "tag_counts"),
    *("shape_of", "with_shape", "sizes", "marks", "seek"),
)
"""Members that an `AdaptedSampler` takes over as they are."""


class Sizes(NamedTuple):
    """Sizes of rows, `[rows]` each."""

    elements: np.ndarray
    """Elements of the examples in the row, over all axes."""
    space: np.ndarray
    """Elements for which the row has space."""
    cost: np.ndarray
    """Cost of the examples in the row."""


class Sampler:
    """The order of a run over a source: the example at a position is a pure function of (seed, position).

    A sampler must be thread-safe and picklable: reader threads share it, and worker processes get a copy. The first
    five members are required of a sampler that a source of a user returns, the others are optional.
    """

    has_transform: bool = False
    """Whether a source that it reads has a random `transform`."""
    vectorized: bool = False
    """Whether a call of `read` for many addresses costs little more than for one, so that large calls pay."""
    reads_singly: bool = False
    """Whether it reads `source[index]`, where `locate` returns `source, index`, for each address."""
    needs_whole_batches: bool = False
    """Whether the address of a row depends on all rows of its batch, so that whole batches are computed."""
    is_shaped: bool = False
    """Whether its batches have one of several shapes (`padded.py`). An address includes the number of its shape."""
    is_sized: bool = False
    """Whether it knows the `sizes` of its rows."""
    is_marked: bool = False
    """Whether it reads streams (`streams/`). A mark says where a shard is opened to read from an item on."""
    continues_rows: bool = False
    """Whether row b of a batch continues row b of the batch before, as of ordered drives. Some rows may be idle."""
    positions: int | None = None
    """Positions of an evaluation in this order, with idle rows; None if each position has an example."""
    tag_names: tuple[str, ...] = ()
    """Names of the tags of the examples, such as their classes or their source in a mixture; empty if unknown."""

    def addresses(self, positions: np.ndarray, /) -> np.ndarray:
        """Returns the addresses int64 `[n]` of positions int64 `[n]`."""
        raise NotImplementedError(f"{type(self).__qualname__} defines no addresses.")

    def read(self, addresses: np.ndarray, /) -> Examples:
        """Returns the examples `[n, ...]` at addresses `[n]`, before `transform`. Raises DataError."""
        raise NotImplementedError(f"{type(self).__qualname__} defines no read.")

    def locate(self, address: int, /) -> tuple[BaseSource, int]:
        """Returns the source whose `transform` applies to the example at an address, and its index in that source."""
        raise NotImplementedError(f"{type(self).__qualname__} defines no locate.")

    def shape_of(self, address: int, /) -> int:
        """Returns the number of the shape of an address."""
        return 0

    def with_shape(self, address: int, shape: int, /) -> int:
        """Returns the address of the same example in another shape."""
        return address

    def tag_counts(self, addresses: np.ndarray, /) -> np.ndarray:
        """Returns how many of the examples at addresses `[n]` have each tag, int64 `[tags]`."""
        return np.zeros(len(self.tag_names), np.int64)

    def weights(self, addresses: np.ndarray, /) -> np.ndarray:
        """Returns the weights float32 `[n]` of rows at addresses: 0 for an idle row. Used with `continues_rows`."""
        return np.ones(len(addresses), np.float32)

    def random_numbers(self, positions: np.ndarray, addresses: np.ndarray, /) -> np.ndarray:
        """Returns the numbers int64 `[n]` that select the random generators of positions with these addresses."""
        return positions

    def sizes(self, addresses: np.ndarray, /) -> Sizes:
        """Returns the sizes of the rows at addresses `[n]`."""
        raise NotImplementedError(f"{type(self).__qualname__} defines no sizes.")

    def costs(self, addresses: np.ndarray, source: BaseSource, /) -> np.ndarray:
        """Returns the costs of the rows at addresses, float64 `[n]`. Raises DataError if they are not known.

        Args:
            addresses: addresses of the rows, int64 `[n]`.
            source: whose sampler it is.
        """
        if self.is_sized:
            return self.sizes(addresses).cost
        indices = [self.locate(address)[1] for address in addresses.tolist()]
        return source_costs(source)[np.array(indices, np.int64)]

    def seek(self, marks: Marks, /) -> None:
        """Sets where some shards are opened; any marks of earlier positions, or none, give the same examples."""

    def marks(self, position: int, /) -> Marks:
        """Returns the marks of the shards read so far from which `position`, the first of a batch, can be read.

        Marks that the previous call has returned may be left out.
        """
        return {}


class AdaptedSampler(Sampler):
    """The sampler that a source of a user returns, with the defaults of `Sampler`.

    Args:
        given: the sampler.
        source: whose sampler it is.
    """

    def __init__(self, given: Any, source: BaseSource):
        self._given, self._source = given, source
        self._others: list[AdaptedSource] = [source] if isinstance(source, AdaptedSource) else []
        for name in OPTIONAL:
            if (found := getattr(given, name, None)) is not None:
                setattr(self, name, found)
        self.is_shaped, self.is_sized, self.is_marked = (name in vars(self) for name in ("shape_of", "sizes", "marks"))
        self._costs: Callable[[np.ndarray], np.ndarray] | None = getattr(given, "costs", None)

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        return self._given.addresses(positions)

    def read(self, addresses: np.ndarray) -> Examples:
        return self._given.read(addresses)

    def locate(self, address: int) -> tuple[BaseSource, int]:
        found, index = self._given.locate(address)
        if isinstance(found, BaseSource):
            return found, index
        known = next((other for other in self._others if other.given is found), None)
        if known is None:
            known = AdaptedSource(found)
            self._others.append(known)
        return known, index

    def costs(self, addresses: np.ndarray, source: BaseSource) -> np.ndarray:
        return super().costs(addresses, source) if self._costs is None or self.is_sized else self._costs(addresses)


def make_sampler(source: BaseSource, seed: int, shuffle: bool, batch_size: int | None = None) -> Sampler:
    """Returns the sampler of the source's own method, or the default one.

    The method is `batch_sampler(seed, shuffle, batch_size)` if there is one and the batch size is known, else
    `sampler(seed, shuffle)`.

    Raises:
        DataError: the source is empty, or its class overrides `__getitem__` but inherits the method.
    """
    name = "batch_sampler" if batch_size is not None and source.defines("batch_sampler") else "sampler"
    if not source.defines(name):
        return PermutationSampler(source, seed, shuffle)
    if not source.keeps(name):
        raise DataError(
            f"{source_name(source)} overrides __getitem__ but inherits `{name}`, through which training reads without "
            f"calling it. Move its code to transform(example, rng) or to the wrapped source, or override `{name}` too."
        )
    if batch_size is not None and name == "batch_sampler":
        own = source.batch_sampler(seed, shuffle, batch_size)
    else:
        own = source.sampler(seed, shuffle)
    return own if isinstance(own, Sampler) else AdaptedSampler(own, source)


def evaluation_positions(source: BaseSource, batch_size: int) -> int:
    """Returns the number of positions of an evaluation: one for each example, and one for each idle row."""
    own = source.evaluation_order(batch_size).positions if source.continues_rows else None
    return len(source) if own is None else own


class Order(Protocol):
    """The indices of the examples of a source by position; `EpochPermutation`, or that of `Weighted`."""

    shuffle: bool

    def indices(self, positions: np.ndarray) -> np.ndarray: ...


def make_order(source: BaseSource, seed: int, shuffle: bool, batch_size: int | None) -> Order:
    """Returns the order of a `Weighted` source, and for others a new permutation in every epoch."""
    own = source.weighted_order(seed, shuffle, batch_size)
    return EpochPermutation(len(source), seed, shuffle) if own is None else own


class PermutationSampler(Sampler):
    """The default sampler: a new permutation of the source in every epoch; without `shuffle`, the stored order.

    Its addresses are indices into the source. With an `order`, that order.
    """

    def __init__(self, source: BaseSource, seed: int, shuffle: bool, order: Order | None = None):
        self._source = source
        self.has_transform = source.has_transform
        self.vectorized = source.has_take and source.reads_blocks
        self.reads_singly = not source.has_take
        self._order = EpochPermutation(len(source), seed, shuffle) if order is None else order
        self._costs: np.ndarray | None = None

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        return self._order.indices(positions)

    def costs(self, addresses: np.ndarray, source: BaseSource) -> np.ndarray:
        if self._costs is None:
            self._costs = source_costs(self._source)
        return self._costs[addresses]

    def read(self, addresses: np.ndarray) -> Examples:
        return read_examples(self._source, addresses)

    def locate(self, address: int) -> tuple[BaseSource, int]:
        return self._source, address


def read_examples(source: BaseSource, indices: np.ndarray) -> Examples:
    """Returns the examples at `indices` int64 `[batch]` as new arrays `[batch, ...]`.

    Raises:
        DataError: an example cannot be read, or shapes of examples differ; the text names the first such example.
        ConvoyError: another error of the source, such as of a stream, which is not a bad example.
    """
    name = source_name(source)
    try:
        if source.has_take:
            return source.take(indices)
    except ConvoyError:
        raise  # its text already names the example, or the stream that cannot be read on
    except Exception as error:
        _stack_each(source, indices)  # raises an error that names the unreadable example, if there is one
        raise DataError(
            f"{name}.take failed for examples {_first_few(indices)}, although each can be read by index: "
            f"{describe(error)} Correct take, or remove it to read one example at a time."
        ) from error
    return _stack_each(source, indices)


def _first_few(indices: np.ndarray) -> str:
    return ", ".join(map(str, indices[:8])) + (" ..." if len(indices) > 8 else "")


def _stack_each(source: BaseSource, indices: np.ndarray) -> Examples:
    """Returns the stacked examples, read one at a time."""
    collator = Collator(len(indices))
    for index in indices.tolist():
        collator.add(read_example(source, index))
    return collator.batch(lambda row: f"{indices[row]} of {source_name(source)}")


def read_example(source: BaseSource, index: int) -> Example:
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
        what = str(error) if isinstance(error, DataError) else describe(error)
        raise DataError(
            f"Example {index} of {source_name(source)}: {what} Read it with source[{index}] and repair it, remove "
            "it from the source, or set data.on_error=skip."
        ) from error


def check_costs(source: BaseSource, found: npt.ArrayLike) -> np.ndarray:
    """Returns costs as float64 `[examples]`. Raises DataError if they are not finite numbers of at least 0."""
    array = np.asarray(found)
    if (
        array.shape != (len(source),)
        or array.dtype.kind not in "iuf"
        or not np.isfinite(array).all()
        or (array < 0).any()
    ):
        raise DataError(
            f"{source_name(source)}.costs() returned {array.dtype}{list(array.shape)}: allowed are finite numbers of "
            f"at least 0, one for each of the {len(source)} examples."
        )
    return array.astype(np.float64)


def source_costs(source: BaseSource) -> np.ndarray:
    """Returns `source.costs()`, or `source.lengths()`, as float64 `[examples]`. Raises DataError without either."""
    if (found := source.costs()) is not None or (found := source.lengths()) is not None:
        return check_costs(source, found)
    raise DataError(
        f"engine.Balanced: the costs of the examples of {source_name(source)} are not known. Give it a method costs() "
        "that returns one number for each example."
    )
