"""Batches on the host, addressed by their number.

Owns: which examples are in batch n and, while training, their random changes. Does not own: the order of the examples
and their reading (`sampler.py`), and who calls for batches, and when (`reader.py`).

Terms. *Rows*: the part of a global batch that this process feeds, as a slice or as row numbers `[rows]`. *Group*:
successive batches whose order is computed in one go.
"""

import math

import numpy as np

from engine.config.errors import DataError
from engine.data.sampler import arrange, gather, stack
from engine.data.shuffle import draws
from engine.data.source import Batch, Source, example_spec, has_transform, leaves, name_of

Rows = slice | np.ndarray | None

AT_ONCE, AT_ONCE_BYTES = 128, 16 * 2**20  # batches, and their bytes, that are read in one go where that is cheap;
# each reader thread has one such block ahead
GROUP = 4096  # places of the order that are computed at once: the arrays are then large enough that numpy, too,
# gives up Python's lock, and its cost per call is spread over many small batches


class Batches:
    """The endless batches of a training run; `batches[n]` is a pure function of (seed, n).

    Batches may cross epochs: none is short and no example is left out.
    """

    def __init__(self, source: Source, batch_size: int, seed: int, shuffle: bool, rows: Rows = None):
        """Takes the examples of a global batch, and which of its rows are made here (None: all of them)."""
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self._arrangement = arrange(source, seed, shuffle)
        self.rows = _row_numbers(rows, batch_size)
        """Places in the global batch of the rows that are made here, int64 `[rows]`."""
        self._group = max(1, GROUP // len(self.rows))
        self._groups: list[tuple[int, np.ndarray | None]] = [(-1, None)] * 2  # two, as threads overlap at a border
        self._wide = _wide()

    @property
    def at_once(self) -> int:
        """How many batches are best read in one go: several small ones, where the source gathers rows itself."""
        if not self._arrangement.gathers or self._arrangement.changes:
            return 1
        specs = [spec for _, spec in leaves(example_spec(self.source))]
        size = len(self.rows) * sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)
        return max(1, min(AT_ONCE, AT_ONCE_BYTES // max(1, size)))

    def block(self, first: int, count: int) -> list[Batch]:
        """Returns batches first, ..., first + count - 1 of a source without `transform`, read in one go.

        Raises:
            DataError: as for one batch.
        """
        import jax

        addresses = np.concatenate([self.addresses(n) for n in range(first, first + count)])
        rows = narrow(self._arrangement.read(addresses), self._wide, name_of(self.source))
        size = len(self.rows)
        return [jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], rows) for i in range(count)]

    def __getitem__(self, n: int) -> Batch:
        """Returns this process's rows `[rows, ...]` of global batch n.

        Raises:
            DataError: an example cannot be read, or differs from the others in its shape.
        """
        n = int(n)
        addresses = self.addresses(n)
        batch = self._arrangement.read(addresses)
        if self._arrangement.changes:
            batch = self._transform(batch, addresses, n * self.batch_size + self.rows)
        return narrow(batch, self._wide, name_of(self.source))

    def row(self, place: int) -> Batch:
        """Returns the example at a place (a global example index) as a batch of one row, made as in its batch.

        Raises:
            DataError: it cannot be read.
        """
        addresses = np.array([self.address(place)])
        batch = self._arrangement.read(addresses)
        if self._arrangement.changes:
            batch = self._transform(batch, addresses, np.array([place]))
        return narrow(batch, self._wide, name_of(self.source))

    def address(self, place: int) -> int:
        """Returns what is at a place, in the arrangement."""
        return int(self._arrangement.addresses(np.array([place]))[0])

    def addresses(self, n: int) -> np.ndarray:
        """Returns what the rows of batch n are in the arrangement, int64 `[rows]`."""
        group, place = divmod(n, self._group)
        known, addresses = self._groups[group % 2]
        if known != group or addresses is None:
            numbers = group * self._group + np.arange(self._group)
            places = (numbers[:, None] * self.batch_size + self.rows).reshape(-1)
            addresses = self._arrangement.addresses(places).reshape(self._group, -1)
            self._groups[group % 2] = (group, addresses)
        return addresses[place]

    def _transform(self, batch: Batch, addresses: np.ndarray, global_ids: np.ndarray) -> Batch:
        """Changes each row with the random generator of its place in the run."""
        import jax

        owners = [self._arrangement.owner(address) for address in addresses.tolist()]
        examples = []
        for row, ((source, number), rng) in enumerate(zip(owners, draws(self.seed, global_ids), strict=True)):
            example = jax.tree.map(lambda array, row=row: array[row], batch)
            try:
                examples.append(source.transform(example, rng) if has_transform(source) else example)  # pyright: ignore[reportAttributeAccessIssue]
            except Exception as error:
                raise DataError(
                    f"{name_of(source)}.transform failed at example {number} (global example index "
                    f"{global_ids[row]}): {type(error).__name__}: {error}. Mend the transform, or the example."
                ) from error
        return stack(examples, lambda row: f"{owners[row][1]} of {name_of(owners[row][0])}")


class OrderedBatches:
    """The batches of one evaluation: each example once, in the source's order, without random changes."""

    def __init__(self, source: Source, batch_size: int, rows: Rows = None):
        self.source, self.batch_size = source, batch_size
        self.rows = _row_numbers(rows, batch_size)
        """Places in the global batch of the rows that are made here, int64 `[rows]`."""
        self._wide = _wide()

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, n: int) -> Batch:
        """Returns rows `[rows, ...]` of batch n; rows past the end repeat the last example."""
        return self._read(np.minimum(int(n) * self.batch_size + self.rows, len(self.source) - 1))

    def row(self, place: int) -> Batch:
        """Returns the example at a place as a batch of one row; past the end it begins anew. Raises DataError."""
        return self._read(np.array([self.address(place)]))

    def address(self, place: int) -> int:
        """Returns the index of the example at a place."""
        return place % len(self.source)

    def rest(self) -> Batch:
        """Returns all the examples `[len(source) % batch_size, ...]` that do not fill a batch, on every process."""
        size = len(self.source)
        return self._read(np.arange(size - size % self.batch_size, size))

    def _read(self, indices: np.ndarray) -> Batch:
        return narrow(gather(self.source, indices), self._wide, name_of(self.source))

    def weight(self, n: int) -> np.ndarray:
        """Returns float32 `[rows]`: 1 for an example, 0 for a row past the end."""
        return (n * self.batch_size + self.rows < len(self.source)).astype(np.float32)


def narrow(batch: Batch, wide: bool, name: str) -> Batch:
    """Returns the batch with 64-bit numbers as 32 bits, as JAX has them unless JAX_ENABLE_X64 is set (`wide`).

    JAX does the same without a word; an integer that does not fit would arrive as another number.

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
    """Whether JAX keeps 64 bits; asked here because a worker process may not have been told."""
    import jax

    return bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


def _row_numbers(rows: Rows, batch_size: int) -> np.ndarray:
    return np.arange(batch_size)[slice(None) if rows is None else rows]
