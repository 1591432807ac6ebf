"""Pads ragged examples: to one length, or to a few, so that each batch is as long as its own examples need.

With several lengths, all examples of a batch are padded to the same of them, and each length is a compiled program of
its own. `Padded` leaves the order of the examples as it is. `Bucketed` sorts each epoch by length first.
"""

import copy
import functools
from collections.abc import Sequence

import numpy as np

from engine.base.errors import DataError
from engine.base.types import PyTree
from engine.data.collate import stack_examples
from engine.data.ragged.fields import ADDED, Fields, Lengths, Ragged, RaggedExample, check_raw, costs
from engine.data.sampling.sampler import Order, Sampler, Sizes, make_order
from engine.data.sampling.shuffle import EpochPermutation, derive_seed
from engine.data.shared_arrays import zeros
from engine.data.source import SEPARATOR, BaseSource, Example, Examples, Source, example_spec, limited, source_name
from engine.data.source_adapter import indexed
from engine.data.stages import stage

MAX_LENGTHS = 8
"""Most lengths of a source: each is a program that the run compiles."""
MAX_LISTED = 100  # unreadable examples that a fingerprint names


class Padded(BaseSource):
    """A source that pads the ragged fields of each example with zeros, and adds masks.

    An example is a dict. Its ragged fields are arrays `[elements, ...]`; the other entries stay as they are. Padding
    makes each field `[length, ...]` and adds three entries, each a dict by axis if the axes have names:

    - `mask`, bool `[length]`: True for an element.
    - `segment_ids`, int32 `[length]`: 1 for an element, 0 for padding, as in `Packed`.
    - `positions`, int32 `[length]`: index of the element, 0 in padding.

    With several lengths, each batch is padded to the smallest of them that holds its longest example. An example that
    is read by its index is padded to the largest. A subclass may define `transform(example, rng)`.
    """

    def __init__(self, source: Source, lengths: Lengths | Sequence[Lengths], fields: Fields, *, consecutive: int = 1):
        """Checks the arguments; with several lengths, it also needs the length of each example.

        Args:
            source: source of ragged examples. Its method `lengths()`, if it has one, avoids reading all of them here.
            lengths: the length, or at most 8 lengths in increasing order. With named axes, each is a dict
                axis -> length.
            fields: names of the ragged fields. If there are fields of different lengths: axis -> names.
            consecutive: number of consecutive batches with the same length: a multiple of `train.steps_per_dispatch`.

        Raises:
            DataError: an argument is invalid, the source is empty or has a sampler or a transform, or an example is
                longer than the largest length.
        """
        name = source_name(self)
        source = indexed(source, f"{name}: source")
        check_raw(source, name)
        self.source, self.ragged, self.consecutive = source, Ragged(fields, name), consecutive
        several = isinstance(lengths, Sequence) and not isinstance(lengths, str)
        given: Sequence[Lengths] = lengths if several else [lengths]  # pyright: ignore[reportAssignmentType]
        self.shapes = [self.ragged.parse(item, f"{name}: lengths") for item in given]
        """Length of each axis, `[axes]`, for each of the lengths, in increasing order."""
        self._check_shapes(name)
        if consecutive < 1:
            raise DataError(f"{name}: consecutive = {consecutive}: allowed are 1 and more batches.")
        self._index: np.ndarray | None = None
        self._costs: np.ndarray | None = None
        self._numbers = np.zeros(len(source), np.int8)
        if len(self.shapes) > 1:
            self._numbers = self._shape_numbers(self.index())

    def _check_shapes(self, name: str) -> None:
        if not 1 <= len(self.shapes) <= MAX_LENGTHS:
            raise DataError(
                f"{name}: found {len(self.shapes)} lengths, allowed are 1 to {MAX_LENGTHS}: each is a program that the "
                "run compiles."
            )
        for one, two in zip(self.shapes[:-1], self.shapes[1:], strict=True):
            if one == two or any(a > b for a, b in zip(one, two, strict=True)):
                texts = "; ".join(map(self.ragged.text, self.shapes))
                raise DataError(f"{name}: lengths {texts}: each must be above the one before it. Sort them.")

    def _shape_numbers(self, index: np.ndarray) -> np.ndarray:
        """Returns the number of the smallest length that holds each example, int8 `[examples]`."""
        limits = np.array(self.shapes).T  # [axes, lengths]
        numbers = np.max([np.searchsorted(*pair) for pair in zip(limits, index, strict=True)], axis=0)
        if len(longer := np.flatnonzero(numbers >= len(self.shapes))):
            raise self._too_long(int(longer[0]), index[:, longer[0]].tolist())
        return numbers.astype(np.int8)

    def _too_long(self, number: int, found: Sequence[int]) -> DataError:
        largest = self.ragged.text(self.shapes[-1])
        return DataError(
            f"Example {number} of {source_name(self.source)} has {self.ragged.text(found)} elements, but the largest "
            f"of `lengths` is {largest}. Give a larger one, or crop the example in the source."
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        import jax

        return jax.tree.map(lambda rows: rows[0], self.read(np.array([index]), len(self.shapes) - 1))

    def index(self) -> np.ndarray:
        """Returns the lengths of all examples, int64 `[axes, examples]`; the first call may read all of them."""
        if self._index is None:
            self._index, self.measured = self.ragged.measure(self.source, tolerant=True), True
        return self._index

    def lengths(self) -> PyTree:
        """Returns the number of elements of each example, integers `[examples]`, by axis."""
        return self.ragged.by_axis(list(self.index()))

    def costs(self) -> np.ndarray:
        """Returns the cost of each example, float64 `[examples]`."""
        if self._costs is None:
            self._costs = costs(self.source, self.index())
        return self._costs

    def limited(self, count: int) -> "Padded":
        """Returns a source of the first `count` examples."""
        part = copy.copy(self)
        part.source, part._numbers = limited(self.source, count), self._numbers[:count]
        part._index = None if self._index is None else self._index[:, :count]
        part._costs = None if self._costs is None else self._costs[:count]
        return part

    def with_run(self, examples: int) -> "Padded":
        """Returns the source for a run of so many examples (`sampling/share_schedule.py`)."""
        found = copy.copy(self)
        found.source = self.source.with_run(examples)
        return found

    def fingerprint(self) -> str:
        texts = "; ".join(map(self.ragged.text, self.shapes)).replace(SEPARATOR, " or ")
        how = f"{', '.join(self.ragged.fields)} padded to {texts}"
        if len(self.shapes) > 1:
            how += f", {self._how()}, {self.consecutive} batches of one length"
            if bad := self.ragged.unreadable:  # they change the lengths of batches, which all processes must agree on
                how += f", unreadable {' '.join(map(str, bad[:MAX_LISTED]))} of {len(bad)}"
        return f"{self.source.fingerprint()}{SEPARATOR}{how}"

    def _how(self) -> str:
        return "in order"

    @functools.cached_property
    def measured(self) -> bool:
        """Whether the lengths of the examples are known without reading them."""
        return self.ragged.knows_lengths(self.source)

    def shape_names(self) -> list[str]:
        """Returns the text of each of the lengths."""
        return list(map(self.ragged.text, self.shapes))

    def shape_specs(self) -> list[PyTree]:
        """Returns the spec of an example padded to each of the lengths."""
        largest = example_spec(self)
        return [self._resized(largest, shape) for shape in self.shapes]

    def _resized(self, spec: PyTree, shape: tuple[int, ...]) -> PyTree:
        import jax

        def resize(leaf: jax.ShapeDtypeStruct, length: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((length, *leaf.shape[1:]), leaf.dtype)

        resized: dict[str, PyTree] = {
            field: resize(spec[field], length)
            for names, length in zip(self.ragged.axes.values(), shape, strict=True)
            for field in names
        }
        for name in ADDED:
            parts = [spec[name]] if "" in self.ragged.axes else list(spec[name].values())
            resized[name] = self.ragged.by_axis([resize(leaf, n) for leaf, n in zip(parts, shape, strict=True)])
        return {**spec, **resized}

    def sampler(self, seed: int, shuffle: bool) -> "_PaddedSampler":
        """Returns the sampler of a training run that does not know the batch size, as in a mixture.

        Raises:
            DataError: there are several lengths, of which a whole batch must have the same.
        """
        if len(self.shapes) > 1:
            raise DataError(
                f"{source_name(self)} has {len(self.shapes)} lengths, and all examples of a batch must be padded to "
                "the same. A part of a mixture can have one length: give the largest."
            )
        return _PaddedSampler(self, seed, shuffle, 1, make_order(self.source, seed, shuffle, None))

    def batch_sampler(self, seed: int, shuffle: bool, batch_size: int) -> "_PaddedSampler":
        """Returns the sampler of a training run with batches of so many examples (`sampler.py`)."""
        return _PaddedSampler(self, seed, shuffle, batch_size)

    def stored_order(self, batch_size: int) -> "_EvaluationOrder":
        """Returns the order of the source, for predictions with batches of so many examples (`batches.py`)."""
        return _EvaluationOrder(self, np.arange(len(self)), batch_size)

    def evaluation_order(self, batch_size: int) -> "_EvaluationOrder":
        """Returns the order of an evaluation with batches of so many examples (`batches.py`)."""
        return self.stored_order(batch_size)

    @property
    def numbers(self) -> np.ndarray:
        """Number of the smallest length that holds each example, int8 `[examples]`."""
        return self._numbers

    def read(self, indices: np.ndarray, shape: int) -> Examples:
        """Returns the examples at `indices` `[batch]`, padded to length number `shape`, as arrays `[batch, ...]`."""
        examples = [self.ragged.read(self.source, index) for index in indices.tolist()]
        with stage("collate"):
            return self._padded(examples, indices, self.shapes[shape])

    def _padded(self, examples: Sequence[RaggedExample], indices: np.ndarray, limits: tuple[int, ...]) -> Examples:
        counts = np.array([example.lengths for example in examples])  # [batch, axes]
        if (counts > limits).any() or not self._are_alike(examples):
            self._raise_unlike(examples, indices, limits)
        batch = {}
        for axis, (names, length) in enumerate(zip(self.ragged.axes.values(), limits, strict=True)):
            for name in names:
                first = examples[0].fields[name]
                batch[name] = zeros((len(examples), length, *first.shape[1:]), first.dtype)
                for row, example in zip(batch[name], examples, strict=True):
                    row[: example.lengths[axis]] = example.fields[name]
        masks = [np.arange(length) < counts[:, axis, None] for axis, length in enumerate(limits)]
        batch["mask"] = self.ragged.by_axis(masks)
        batch["segment_ids"] = self.ragged.by_axis([mask.astype(np.int32) for mask in masks])
        batch["positions"] = self.ragged.by_axis([np.arange(mask.shape[1], dtype=np.int32) * mask for mask in masks])
        name = source_name(self.source)
        rest = stack_examples([example.rest for example in examples], lambda row: f"{indices[row]} of {name}")
        return {**rest, **batch}

    def _are_alike(self, examples: Sequence[RaggedExample]) -> bool:
        """Returns whether a field has one dtype and one shape in all examples, except for its first dimension."""
        return all(
            len({(found.shape[1:], found.dtype) for found in [example.fields[name] for example in examples]}) == 1
            for name in self.ragged.fields
        )

    def _raise_unlike(self, examples: Sequence[RaggedExample], indices: np.ndarray, limits: tuple[int, ...]) -> None:
        """Raises DataError for the first example that is too long, or that differs from the one before all others."""
        for example, number in zip(examples, indices.tolist(), strict=True):
            if any(own > limit for own, limit in zip(example.lengths, limits, strict=True)):
                raise self._too_long(number, example.lengths)
            for name, field in example.fields.items():
                other = examples[0].fields[name]
                if field.shape[1:] != other.shape[1:] or field.dtype != other.dtype:
                    raise DataError(
                        f"Example {number} of {source_name(self.source)}: {name} is {field.dtype}{list(field.shape)}, "
                        f"but {other.dtype}{list(other.shape)} in other examples. Only the first dimension may differ."
                    )


class Bucketed(Padded):
    """A source whose batches hold examples of similar length: few lengths, and little padding.

    As `Padded` with several lengths, but each epoch of a training run is sorted: the examples that need the smallest
    length form batches first, in random order. Those that remain fill a batch of the next larger length, and so on;
    the last batch of an epoch is filled by the next epoch. The batches of an epoch are then shuffled. So each example
    is read exactly once per epoch, and an epoch has as many batches as without buckets. An evaluation reads the
    examples from the shortest length to the longest, each once. Predictions are read in the order of the source.
    """

    def batch_sampler(self, seed: int, shuffle: bool, batch_size: int) -> "_PaddedSampler":
        kind = _BucketedSampler if len(self.shapes) > 1 else _PaddedSampler
        return kind(self, seed, shuffle, batch_size)

    def evaluation_order(self, batch_size: int) -> "_EvaluationOrder":
        return _EvaluationOrder(self, np.argsort(self.numbers, kind="stable"), batch_size)

    def _how(self) -> str:
        return "sorted"


class _ShapedSampler(Sampler):
    """Addresses of examples with a length: index * lengths + number of the length."""

    is_shaped = is_sized = True

    def __init__(self, padded: Padded):
        self._padded, self._shapes = padded, len(padded.shapes)
        self.tag_names = padded.source.tag_names

    def locate(self, address: int) -> tuple[BaseSource, int]:
        return self._padded, address // self._shapes

    def shape_of(self, address: int) -> int:
        """Returns the number of the length to which the example at an address is padded."""
        return address % self._shapes

    def with_shape(self, address: int, shape: int) -> int:
        """Returns the address of the same example, padded to length number `shape`."""
        return address - address % self._shapes + shape

    def read(self, addresses: np.ndarray) -> Examples:
        """Returns the examples at addresses of one length."""
        return self._padded.read(addresses // self._shapes, self.shape_of(int(addresses[0])))

    def tag_counts(self, addresses: np.ndarray) -> np.ndarray:
        """Returns how many of the examples at addresses have each tag, int64 `[tags]`."""
        return self._padded.source.tag_counts(addresses // self._shapes)

    def sizes(self, addresses: np.ndarray) -> Sizes:
        """Returns the sizes of the rows at addresses."""
        indices, shapes = np.divmod(addresses, self._shapes)
        space = np.array([sum(shape) for shape in self._padded.shapes])[shapes]
        return Sizes(self._padded.index()[:, indices].sum(axis=0), space, self._padded.costs()[indices])


class _PaddedSampler(_ShapedSampler):
    """Sampler of padded examples in the default order.

    The examples of a *group*, which is `consecutive` batches, have one length.
    """

    def __init__(self, padded: Padded, seed: int, shuffle: bool, batch_size: int, order: Order | None = None):
        super().__init__(padded)
        self.has_transform = padded.has_transform
        self._permutation = order or make_order(padded.source, seed, shuffle, batch_size)
        self._rows = batch_size * padded.consecutive  # rows of a group

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        if self._shapes == 1:
            return self._permutation.indices(positions)
        groups, rows = np.divmod(positions, self._rows)
        numbers, which = np.unique(groups, return_inverse=True)
        whole = (numbers[:, None] * self._rows + np.arange(self._rows)).reshape(-1)
        return self._with_lengths(self._permutation.indices(whole))[which, rows]

    def _with_lengths(self, indices: np.ndarray) -> np.ndarray:
        """Returns the addresses of whole groups of examples, int64 `[groups, rows]`."""
        groups = indices.reshape(-1, self._rows)
        longest = self._padded.numbers[groups].max(axis=1, keepdims=True).astype(np.int64)
        return groups * self._shapes + longest


class _BucketedSampler(_PaddedSampler):
    """Sampler of bucketed examples: sorts the groups that begin in an epoch by length, then shuffles them."""

    def __init__(self, padded: Padded, seed: int, shuffle: bool, batch_size: int):
        super().__init__(padded, seed, shuffle, batch_size)
        self._order_seed = derive_seed(seed, "groups")
        # The latest plans of even and of odd epochs: near the end of an epoch, threads already read the next.
        self._plans: list[tuple[int, np.ndarray | None]] = [(-1, None)] * 2

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        groups, rows = np.divmod(positions, self._rows)
        epochs = groups * self._rows // len(self._padded)
        found = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            found[chosen] = self._plan(epoch)[groups[chosen] - self._first_group(epoch), rows[chosen]]
        return found

    def _first_group(self, epoch: int) -> int:
        """Returns the first group that begins in an epoch or later."""
        return -(-epoch * len(self._padded) // self._rows)

    def _plan(self, epoch: int) -> np.ndarray:
        """Returns the addresses of the groups that begin in an epoch, int64 `[groups, rows]`."""
        known, plan = self._plans[epoch % 2]
        if known != epoch or plan is None:
            first, last = self._first_group(epoch), self._first_group(epoch + 1)
            indices = self._permutation.indices(np.arange(first * self._rows, last * self._rows))
            plan = self._with_lengths(indices[np.argsort(self._padded.numbers[indices], kind="stable")])
            if self._permutation.shuffle:
                count = len(plan)
                order = EpochPermutation(count, self._order_seed, True)
                plan = plan[order.indices(epoch * count + np.arange(count))]
            self._plans[epoch % 2] = (epoch, plan)
        return plan


class _EvaluationOrder(_ShapedSampler):
    """Order of an evaluation: each example once, in a given order int64 `[examples]`."""

    def __init__(self, padded: Padded, order: np.ndarray, batch_size: int):
        super().__init__(padded)
        starts = np.arange(0, len(padded), batch_size)
        longest = np.maximum.reduceat(padded.numbers[order], starts).astype(np.int64)
        self._addresses = order * self._shapes + longest[np.arange(len(padded)) // batch_size]

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        """Returns the addresses of positions below the number of examples, int64 `[n]`."""
        return self._addresses[positions]
