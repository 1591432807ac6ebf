"""Batches on the host, addressed by their number.

Batch n of a training run is a pure function of (seed, n). The order of the examples comes from the sampler
(`sampler.py`); the reader (`reader.py`) decides which batches are made, and when.
"""

import math

import numpy as np

from engine.config.errors import DataError
from engine.data.batch import Batch
from engine.data.sampler import gather, sampler_of, stack
from engine.data.shuffle import draws
from engine.data.source import Examples, Source, example_spec, has_transform, leaves, name_of

Rows = slice | np.ndarray | None
"""The rows of a global batch that this process feeds, as a slice or row numbers `[rows]`; None for all."""

BLOCK, BLOCK_BYTES = 128, 16 * 2**20  # batches, and their bytes, that are read in one call where that is cheap;
# each reader thread has one such block ahead
GROUP = 4096  # positions whose order is computed at once: the arrays are then large enough that numpy, too,
# releases Python's lock, and its cost per call is spread over many small batches


class Batches:
    """The endless batches of a training run.

    Batches may cross epochs: none is short and no example is left out.
    """

    def __init__(self, source: Source, batch_size: int, seed: int, shuffle: bool, rows: Rows = None):
        """Takes the examples of a global batch, and which of its rows are made here."""
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self._sampler = sampler_of(source, seed, shuffle)
        self.rows = _row_numbers(rows, batch_size)
        """Positions in the global batch of the rows that are made here, int64 `[rows]`."""
        self.ones = np.ones(len(self.rows), np.float32)
        """The weight of every batch, one array that all of them share."""
        self._group = max(1, GROUP // len(self.rows))  # batches whose order is computed in one call
        self._groups: list[tuple[int, np.ndarray | None]] = [(-1, None)] * 2  # two, as threads overlap at a border
        self._wide = _wide()

    @property
    def block_size(self) -> int:
        """How many batches are best read in one call: several small ones, where the source gathers rows itself."""
        if not self._sampler.gathers or self._sampler.changes:
            return 1
        specs = [spec for _, spec in leaves(example_spec(self.source))]
        size = len(self.rows) * sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)
        return max(1, min(BLOCK, BLOCK_BYTES // max(1, size)))

    def block(self, first: int, count: int) -> list[Batch]:
        """Returns batches first, ..., first + count - 1 of a source without `transform`, read in one call.

        Raises:
            DataError: as for one batch.
        """
        import jax

        addresses = np.concatenate([self.addresses(n) for n in range(first, first + count)])
        rows = narrow(self._sampler.read(addresses), self._wide, name_of(self.source))
        size = len(self.rows)
        parts = [jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], rows) for i in range(count)]
        return [Batch(examples, self.ones) for examples in parts]

    def __getitem__(self, n: int) -> Batch:
        """Returns this process's rows of global batch n.

        Raises:
            DataError: an example cannot be read, or differs from the others in its shape.
        """
        n = int(n)
        return Batch(self._read(self.addresses(n), n * self.batch_size + self.rows), self.ones)

    def row(self, position: int) -> Examples:
        """Returns the example at a position of the run as a batch of one row, made as in its batch.

        Raises:
            DataError: it cannot be read.
        """
        return self._read(np.array([self.address(position)]), np.array([position]))

    def weight(self, n: int) -> np.ndarray:
        """Returns the weight of batch n where all of its examples can be read, float32 `[rows]`."""
        return self.ones

    def address(self, position: int) -> int:
        """Returns the sampler's address of the example at a position."""
        return int(self._sampler.addresses(np.array([position]))[0])

    def addresses(self, n: int) -> np.ndarray:
        """Returns the sampler's addresses of the rows of batch n, int64 `[rows]`."""
        group, within = divmod(n, self._group)
        known, addresses = self._groups[group % 2]
        if known != group or addresses is None:
            numbers = group * self._group + np.arange(self._group)
            positions = (numbers[:, None] * self.batch_size + self.rows).reshape(-1)
            addresses = self._sampler.addresses(positions).reshape(self._group, -1)
            self._groups[group % 2] = (group, addresses)
        return addresses[within]

    def _read(self, addresses: np.ndarray, positions: np.ndarray) -> Examples:
        examples = self._sampler.read(addresses)
        if self._sampler.changes:
            examples = self._transform(examples, addresses, positions)
        return narrow(examples, self._wide, name_of(self.source))

    def _transform(self, batch: Examples, addresses: np.ndarray, positions: np.ndarray) -> Examples:
        """Changes each row with the random generator of its position in the run."""
        import jax

        owners = [self._sampler.owner(address) for address in addresses.tolist()]
        examples = []
        for row, ((source, number), rng) in enumerate(zip(owners, draws(self.seed, positions), strict=True)):
            example = jax.tree.map(lambda array, row=row: array[row], batch)
            try:
                examples.append(source.transform(example, rng) if has_transform(source) else example)
            except Exception as error:
                raise DataError(
                    f"{name_of(source)}.transform failed at example {number} (global example index "
                    f"{positions[row]}): {type(error).__name__}: {error}. Mend the transform, or the example."
                ) from error
        return stack(examples, lambda row: f"{owners[row][1]} of {name_of(owners[row][0])}")


class OrderedBatches:
    """The batches of one evaluation: each example once, in the source's order, without random changes."""

    def __init__(self, source: Source, batch_size: int, rows: Rows = None):
        self.source, self.batch_size = source, batch_size
        self.rows = _row_numbers(rows, batch_size)
        """Positions in the global batch of the rows that are made here, int64 `[rows]`."""
        self.ones = np.ones(len(self.rows), np.float32)
        """The weight of every full batch, one array that all of them share."""
        self._wide = _wide()

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, n: int) -> Batch:
        """Returns the rows of batch n; rows past the end repeat the last example and have weight 0."""
        n = int(n)
        indices = np.minimum(n * self.batch_size + self.rows, len(self.source) - 1)
        return Batch(self._read(indices), self.weight(n))

    def row(self, position: int) -> Examples:
        """Returns the example at a position as a batch of one row; past the end it begins anew. Raises DataError."""
        return self._read(np.array([self.address(position)]))

    def weight(self, n: int) -> np.ndarray:
        """Returns float32 `[rows]`: 1 for an example, 0 for a row past the end."""
        if (n + 1) * self.batch_size <= len(self.source):
            return self.ones
        return (n * self.batch_size + self.rows < len(self.source)).astype(np.float32)

    def address(self, position: int) -> int:
        """Returns the index of the example at a position."""
        return position % len(self.source)

    def rest(self) -> Batch:
        """Returns the examples that do not fill a batch, `len(source) % batch_size` rows, on every process."""
        size = len(self.source)
        rows = size % self.batch_size
        return Batch(self._read(np.arange(size - rows, size)), np.ones(rows, np.float32))

    def _read(self, indices: np.ndarray) -> Examples:
        return narrow(gather(self.source, indices), self._wide, name_of(self.source))


def narrow(batch: Examples, wide: bool, name: str) -> Examples:
    """Returns the arrays with 64-bit numbers as 32 bits, as JAX has them unless JAX_ENABLE_X64 is set (`wide`).

    JAX does the same silently; an integer that does not fit would arrive as another number.

    Raises:
        DataError: an integer does not fit.
    """
    import jax

    if wide or all(leaf.dtype.itemsize < 8 for leaf in jax.tree.leaves(batch)):
        return batch
    for path, leaf in leaves(batch):
        if leaf.dtype.kind in "iu" and leaf.dtype.itemsize == 8 and leaf.size:
            limits = np.iinfo(np.int32 if leaf.dtype.kind == "i" else np.uint32)
            for value in (leaf.min(), leaf.max()):
                if not limits.min <= value <= limits.max:
                    raise DataError(
                        f"{path} of {name}: {value} does not fit {limits.dtype}, which JAX uses in place of "
                        f"{leaf.dtype}. Rescale or shift it in the source, or set JAX_ENABLE_X64=1."
                    )
    return jax.tree.map(lambda leaf: leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False), batch)


def _wide() -> bool:
    """Whether JAX keeps 64 bits; read here because a worker process may have another setting."""
    import jax

    return bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


def _row_numbers(rows: Rows, batch_size: int) -> np.ndarray:
    return np.arange(batch_size)[slice(None) if rows is None else rows]
