"""Makes the batches of training and evaluation on the host, by batch number.

Batch n of a training run is a pure function of (seed, n). The sampler (`sampler.py`) orders the examples; the reader
(`reader.py`) decides when each batch is made.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from engine.base.errors import DataError, did_you_mean
from engine.base.types import PyTree
from engine.base.user_errors import location
from engine.data.batch import Batch
from engine.data.collate import Collator, own_copy
from engine.data.context import Context, call
from engine.data.sampling.sampler import Marks, Sampler, Sizes, make_sampler, read_example, read_examples
from engine.data.sampling.shuffle import random_generators
from engine.data.source import BaseSource, Example, Examples, example_spec, leaves_with_path, source_name
from engine.data.stages import stage
from engine.data.text import has_text, is_text, without_text

Rows = slice | np.ndarray | None
"""Rows of a global batch that this process feeds: a slice, row numbers `[rows]`, or None for all rows."""

# Limits on a block, the batches read in one call, in batches and bytes. Each reader thread prefetches one block.
BLOCK, BLOCK_BYTES = 128, 16 * 2**20
# Positions whose addresses are computed in one call. The arrays are then large enough that numpy releases the GIL, and
# the cost of the call is shared by many small batches.
GROUP = 4096


class Batches:
    """The infinite sequence of batches of a training run.

    A batch may span two epochs, so every batch is full and no example is dropped.
    """

    def __init__(
        self, source: BaseSource, batch_size: int, seed: int, shuffle: bool, rows: Rows = None, total: int = 0
    ):
        """Creates the batches of a source; nothing is read yet.

        Args:
            source: source of the examples.
            batch_size: rows of a global batch.
            seed: seed of the order and of random transforms.
            shuffle: whether each epoch is a new permutation of the source.
            rows: rows of a global batch that this process makes.
            total: steps of the whole run, for transforms that declare a parameter `context`.
        """
        self.source, self.batch_size, self.seed, self._total = source, batch_size, seed, total
        self._sampler = make_sampler(source, seed, shuffle, batch_size)
        self.rows = _row_numbers(rows, batch_size)
        """Row numbers in the global batch that this process makes, int64 `[rows]`."""
        self.ones = np.ones(len(self.rows), np.float32)
        """Weight of every batch, float32 `[rows]`: one array shared by all batches."""
        # Batches whose addresses are computed in one call.
        self._group = max(1, GROUP // (batch_size if self._sampler.needs_whole_batches else len(self.rows)))
        # Two cached groups, since threads may work on both sides of the border between two groups.
        self._groups: list[tuple[int, np.ndarray | None]] = [(-1, None)] * 2
        self._keep_64_bit = _keep_64_bit()

    @property
    def block_size(self) -> int:
        """Number of batches to read in one call: above 1 for small batches of a source with a fast `take`."""
        if not self._sampler.vectorized or self._sampler.has_transform:
            return 1
        return max(1, min(BLOCK, BLOCK_BYTES // max(1, batch_bytes(example_spec(self.source), len(self.rows)))))

    def block(self, first: int, count: int) -> list[Batch]:
        """Returns batches first, ..., first + count - 1 of a source without `transform`, read in one call.

        Raises:
            DataError: an example cannot be read, or its shapes differ from those of the others.
        """
        import jax

        addresses = np.concatenate([self.addresses(n) for n in range(first, first + count)])
        rows = _numbers(self._sampler.read(addresses), self._keep_64_bit, source_name(self.source))
        size = len(self.rows)
        parts = [jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], rows) for i in range(count)]
        return [Batch(examples, self.weight(first + i)) for i, examples in enumerate(parts)]

    def __getitem__(self, n: int) -> Batch:
        """Returns this process's rows of global batch n.

        Raises:
            DataError: an example cannot be read, or its shapes differ from those of the others.
        """
        n = int(n)
        return Batch(self._read(self.addresses(n), n * self.batch_size + self.rows), self.weight(n))

    def row(self, position: int, n: int) -> Examples:
        """Returns the example at a position of the run as a batch of one row, in the shape of batch n.

        Raises:
            DataError: the example cannot be read, or does not fit this shape.
        """
        address = self.address(position)
        if self._sampler.is_shaped:
            address = self._sampler.with_shape(address, self.shape(n))
        return self._read(np.array([address]), np.array([position]))

    def shape(self, n: int) -> int:
        """Returns the number of the shape of batch n, as in `source.shape_specs`."""
        return self._sampler.shape_of(int(self.addresses(n)[0])) if self._sampler.is_shaped else 0

    def sizes(self, n: int) -> Sizes | None:
        """Returns the sizes of the rows of batch n; None if the source does not know them."""
        return self._sampler.sizes(self.addresses(n)) if self._sampler.is_sized else None

    @property
    def tag_names(self) -> tuple[str, ...]:
        """Names of the tags of the examples; none if the source does not know them."""
        return self._sampler.tag_names

    def tag_counts(self, n: int) -> dict[str, int]:
        """Returns how many rows of batch n have each tag, without tags that none has."""
        if not self._sampler.tag_names:
            return {}
        counts = self._sampler.tag_counts(self.addresses(n)).tolist()
        return {name: count for name, count in zip(self.tag_names, counts, strict=True) if count}

    def same_shape(self, first: int, count: int) -> bool:
        """Returns whether batches first, ..., first + count - 1 have one shape."""
        return not self._sampler.is_shaped or len({self.shape(n) for n in range(first, first + count)}) == 1

    @property
    def has_marks(self) -> bool:
        """Whether the source reads streams, so that `seek` and `marks` are of use."""
        return self._sampler.is_marked

    def seek(self, marks: Marks) -> None:
        """Sets where some shards of streams are opened."""
        self._sampler.seek(marks)

    def marks(self, n: int) -> Marks:
        """Returns where shards are opened to read batch n and later ones, as far as the previous call did not."""
        return self._sampler.marks(n * self.batch_size)

    def weight(self, n: int) -> np.ndarray:
        """Returns the weight of batch n if all of its examples can be read, float32 `[rows]`: 0 for an idle row."""
        return _weights(self._sampler, self.addresses(n), self.ones) if self._sampler.continues_rows else self.ones

    def address(self, position: int) -> int:
        """Returns the address that the sampler gives to a position."""
        return int(self._sampler.addresses(np.array([position]))[0])

    def addresses(self, n: int) -> np.ndarray:
        """Returns the addresses of the rows of batch n, int64 `[rows]`."""
        group, within = divmod(n, self._group)
        known, addresses = self._groups[group % 2]
        if known != group or addresses is None:
            numbers = group * self._group + np.arange(self._group)
            positions = (numbers[:, None] * self.batch_size + self.rows).reshape(-1)
            addresses = self._sampler.addresses(positions).reshape(self._group, -1)
            self._groups[group % 2] = (group, addresses)
        return addresses[within]

    def _read(self, addresses: np.ndarray, positions: np.ndarray) -> Examples:
        if self._sampler.has_transform:
            examples = self._transformed(addresses, positions)
        else:
            examples = self._sampler.read(addresses)
        return _numbers(examples, self._keep_64_bit, source_name(self.source))

    def _transformed(self, addresses: np.ndarray, positions: np.ndarray) -> Examples:
        """Reads and transforms each row, with the random generator of its position in the run."""
        located = [self._sampler.locate(address) for address in addresses.tolist()]
        generators = random_generators(self.seed, self._sampler.random_numbers(positions, addresses))
        collator = Collator(len(located))
        for row, example in enumerate(self._examples(located, addresses)):
            with stage("transform"):
                collator.add(self._transform(*located[row], example, generators[row], int(positions[row])))
        return collator.batch(lambda row: f"{located[row][1]} of {source_name(located[row][0])}")

    def _examples(self, located: Sequence[tuple[BaseSource, int]], addresses: np.ndarray) -> Iterator[Example]:
        """Yields the example at each address, which a transform may change."""
        import jax

        if self._sampler.reads_singly:
            new_arrays = {key: source.has_new_arrays for key, source in {id(s): s for s, _ in located}.items()}
            for source, number in located:
                yield own_copy(read_example(source, number), new_arrays[id(source)])
        else:
            batch = self._sampler.read(addresses)
            for row in range(len(located)):
                yield jax.tree.map(lambda array, row=row: array[row], batch)

    def _transform(
        self, source: BaseSource, number: int, example: Example, rng: np.random.Generator, position: int
    ) -> Example:
        """Returns the transformed example of a position; the example itself if its source has no transform."""
        if not source.has_transform:
            return example
        context = Context(position // self.batch_size, position / len(self.source), self._total, rng)
        try:
            return call(source.transform, example, rng, context=context)
        except Exception as error:
            raise DataError(
                f"{source_name(source)}.transform failed at example {number} (global example index {position}): "
                f"{_error_text(error, example)}. Correct the transform or the example."
            ) from error


def _error_text(error: Exception, example: Example) -> str:
    """Returns type and text of an error; for a missing key also the line and the entries of the example."""
    text = f"{type(error).__name__}: {error}"
    if not (isinstance(error, KeyError) and isinstance(example, Mapping)):
        return text
    where = f" ({at})" if (at := location(error)) else ""
    key, names = str(error.args[0]) if error.args else "", [str(name) for name in example]
    return f"{text}{where}.{did_you_mean(key, names)} The example has {', '.join(names)}"


class OrderedBatches:
    """The batches of one evaluation: each example once, without random transforms.

    They are in the order of the source, or of its `evaluation_order` if its batches have several shapes. With
    `in_order`, they are always in the order of the source, which may need more padding.
    """

    def __init__(
        self, source: BaseSource, batch_size: int, rows: Rows = None, keep_text: bool = False, in_order: bool = False
    ):
        self.source, self.batch_size, self._keep_text = source, batch_size, keep_text
        self.rows = _row_numbers(rows, batch_size)
        """Row numbers in the global batch that this process makes, int64 `[rows]`."""
        self.ones = np.ones(len(self.rows), np.float32)
        """Weight of every full batch, float32 `[rows]`: one array shared by all of them."""
        self._keep_64_bit = _keep_64_bit()
        self._order: Sampler | None = (source.stored_order if in_order else source.evaluation_order)(batch_size)
        own = None if self._order is None else self._order.positions
        self.positions = len(source) if own is None else own
        """Number of positions: one for each example, and one for each idle row."""

    def __len__(self) -> int:
        return -(-self.positions // self.batch_size)

    def __getitem__(self, n: int) -> Batch:
        """Returns the rows of batch n; rows past the end repeat the last example and have weight 0."""
        n = int(n)
        return Batch(self._read(self._positions(n)), self.weight(n))

    def shape(self, n: int) -> int:
        """Returns the number of the shape of batch n, as in `source.shape_specs`."""
        if self._order is None:
            return 0
        return self._order.shape_of(int(self._order.addresses(np.array([n * self.batch_size]))[0]))

    def row(self, position: int, n: int) -> Examples:
        """Returns the example at a position as a batch of one row, in the shape of batch n; positions wrap around.

        Raises:
            DataError: the example cannot be read, or does not fit this shape.
        """
        return self._read(np.array([position % self.positions]), self.shape(n))

    def _positions(self, n: int) -> np.ndarray:
        """Returns the position of each row of batch n in the order of the evaluation, int64 `[rows]`."""
        return np.minimum(n * self.batch_size + self.rows, self.positions - 1)

    def weight(self, n: int) -> np.ndarray:
        """Returns float32 `[rows]`: 1 for an example, 0 for a row past the end and for an idle row."""
        if self._order is not None and self._order.continues_rows:
            return _weights(self._order, self._order.addresses(self._positions(n)), self.ones)
        if (n + 1) * self.batch_size <= self.positions:
            return self.ones
        return (n * self.batch_size + self.rows < self.positions).astype(np.float32)

    def address(self, position: int) -> int:
        """Returns the index in the source of the example at a position; positions wrap around."""
        position %= self.positions
        if self._order is None:
            return position
        return self._order.locate(int(self._order.addresses(np.array([position]))[0]))[1]

    def remainder(self) -> Batch:
        """Returns the last `len(source) % batch_size` examples, which fill no batch, on every process."""
        size = len(self.source)
        rows = size % self.batch_size
        return Batch(self._read(np.arange(size - rows, size)), np.ones(rows, np.float32))

    def _read(self, positions: np.ndarray, shape: int | None = None) -> Examples:
        """Returns the examples at these positions of one batch; in its shape, or in another one."""
        if self._order is None:
            rows = read_examples(self.source, positions)
        else:
            addresses = self._order.addresses(positions)
            if shape is not None:
                addresses = np.array([self._order.with_shape(address, shape) for address in addresses.tolist()])
            rows = self._order.read(addresses)
        convert = to_32_bit if self._keep_text else _numbers
        return convert(rows, self._keep_64_bit, source_name(self.source))


def _weights(sampler: Sampler, addresses: np.ndarray, ones: np.ndarray) -> np.ndarray:
    """Returns the weights of rows that may be idle; `ones` itself if none is, which is on the devices already."""
    found = sampler.weights(addresses)
    return ones if found.all() else found


def batch_bytes(example: PyTree, rows: int) -> int:
    """Returns the bytes of a batch of so many rows, from the `example_spec` of its source."""
    return rows * sum(math.prod(spec.shape) * spec.dtype.itemsize for _, spec in leaves_with_path(example))


def _numbers(batch: Examples, keep_64_bit: bool, name: str) -> Examples:
    """Returns a batch as the devices take it: without text, and converted by `to_32_bit`."""
    with stage("collate"):
        return to_32_bit(without_text(batch) if has_text(batch) else batch, keep_64_bit, name)


def to_32_bit(batch: Examples, keep_64_bit: bool, name: str) -> Examples:
    """Converts 64-bit numbers to 32 bits, as JAX does unless JAX_ENABLE_X64 is set (`keep_64_bit`).

    JAX converts silently and wraps an integer that does not fit; this function raises instead.

    Raises:
        DataError: an integer does not fit 32 bits.
    """
    import jax

    if keep_64_bit or all(leaf.dtype.itemsize < 8 for leaf in jax.tree.leaves(batch)):
        return batch
    for path, leaf in leaves_with_path(batch):
        if leaf.dtype.kind in "iu" and leaf.dtype.itemsize == 8 and leaf.size:
            limits = np.iinfo(np.int32 if leaf.dtype.kind == "i" else np.uint32)
            for value in (leaf.min(), leaf.max()):
                if not limits.min <= value <= limits.max:
                    raise DataError(
                        f"{path} of {name}: {value} does not fit {limits.dtype}, which JAX uses instead of "
                        f"{leaf.dtype}. Rescale or shift it in the source, or set JAX_ENABLE_X64=1."
                    )

    def convert(leaf: np.ndarray) -> np.ndarray:
        return leaf if is_text(leaf) else leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)

    return jax.tree.map(convert, batch)


def _keep_64_bit() -> bool:
    """Returns whether JAX keeps 64 bits; read in the main process, since a worker may have another setting."""
    import jax

    return bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


def _row_numbers(rows: Rows, batch_size: int) -> np.ndarray:
    return np.arange(batch_size)[slice(None) if rows is None else rows]
