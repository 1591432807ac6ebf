"""Examples that cannot be read, where `data.on_error` is skip: their rows have weight 0, and they are reported.

An example is bad where reading it or its transform fails, or where its shapes are not those of the others. Its row
holds a filler instead, the next readable example of the run's order, since a model that normalises over a batch needs
valid numbers. Which example that is depends on (seed, position) alone.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.config.errors import DataError
from engine.data.batch import Batch
from engine.data.source import Examples, Source, example_spec, leaves, name_of
from engine.types import Json

FILLER_TRIES = 1000  # positions in a row that are tried for a filler
WINDOW = 100  # batches over which the share of bad examples is measured
SHARE = 0.1  # of the examples in the window that may be bad
FEW = 10  # bad examples that are never too many, and that are reported one by one


@dataclass(frozen=True)
class Bad:
    """One example that could not be read."""

    row: int  # in the global batch
    address: int  # the sampler's, as the ledger of examples has it
    error: str  # a sentence that names it


@dataclass(frozen=True)
class TolerantBatch:
    """A batch in which what could not be read has weight 0."""

    batch: Batch
    bad: tuple[Bad, ...] = ()


class RowBatches(Protocol):
    """Batches that can also make one row alone (`batches.py`)."""

    source: Source
    batch_size: int
    rows: np.ndarray

    def __getitem__(self, n: int, /) -> Batch: ...

    def row(self, position: int) -> Examples: ...

    def weight(self, n: int) -> np.ndarray: ...

    def address(self, position: int) -> int: ...


class TolerantBatches:
    """The same batches, each as a `TolerantBatch`."""

    def __init__(self, batches: RowBatches):
        self._batches = batches
        self._spec = [(path, spec.shape, spec.dtype) for path, spec in leaves(example_spec(batches.source))]

    def __getitem__(self, n: int) -> TolerantBatch:
        """Returns batch n.

        Raises:
            DataError: no filler was found for a row.
        """
        try:
            return TolerantBatch(self._batches[n])
        except DataError:
            return self._row_by_row(int(n))

    def block(self, first: int, count: int) -> list[TolerantBatch]:
        """Returns batches first, ..., first + count - 1, read in one call."""
        return [TolerantBatch(batch) for batch in self._batches.block(first, count)]  # pyright: ignore[reportAttributeAccessIssue]

    def _row_by_row(self, n: int) -> TolerantBatch:
        import jax

        examples, bad = [], []
        weight = self._batches.weight(n).copy()
        for i, row in enumerate(self._batches.rows.tolist()):
            position = n * self._batches.batch_size + row
            try:
                examples.append(self._row(position))
            except DataError as error:
                bad.append(Bad(row, self._batches.address(position), str(error)))
                weight[i] = 0
                examples.append(self._filler(position))
        return TolerantBatch(Batch(jax.tree.map(lambda *rows: np.concatenate(rows), *examples), weight), tuple(bad))

    def _row(self, position: int) -> Examples:
        """Returns the example at a position as a batch of one row. Raises DataError."""
        row = self._batches.row(position)
        found = [(path, leaf.shape[1:], leaf.dtype) for path, leaf in leaves(row)]
        if found != self._spec:
            raise DataError(
                f"Example {self._batches.address(position)} of {name_of(self._batches.source)} has {_text(found)}, the "
                f"others have {_text(self._spec)}. Bring all to one shape and dtype in the source."
            )
        return row

    def _filler(self, position: int) -> Examples:
        errors = []
        for other in range(position + 1, position + 1 + FILLER_TRIES):
            try:
                return self._row(other)
            except DataError as error:
                errors.append(error)
        raise DataError(f"{FILLER_TRIES} examples one after the other cannot be read, the last one so: {errors[-1]}")


class BadExamples:
    """The account of the bad examples that this process has met in one attempt.

    Args:
        write: takes a line for the run directory, one for each bad example.
        on_message: called with sentences for the user: each of the first bad examples, then at each doubling.
    """

    def __init__(self, write: Callable[[Mapping[str, Json]], None], on_message: Callable[[str], None]):
        self._write, self._say = write, on_message
        self._window: deque[tuple[int, int]] = deque(maxlen=WINDOW)  # bad examples, and all, of a batch
        self._count, self._report_at = 0, 1

    def take(self, n: int, found: TolerantBatch) -> Batch:
        """Counts the bad examples of batch n and returns the batch; every batch is passed through here.

        Raises:
            DataError: there are too many.
        """
        self._window.append((len(found.bad), len(found.batch.weight)))
        for bad in found.bad:
            self._count += 1
            self._write({"step": n + 1, "batch": n, "row": bad.row, "example": bad.address, "error": bad.error})
            if self._count >= self._report_at:
                self._report_at = self._count + 1 if self._count < FEW else 2 * self._count
                self._say(
                    f"warning: step {n + 1}: {bad.error} Its row has weight 0 (data.on_error=skip; "
                    f"{self._count} bad example{'s' * (self._count > 1)} so far)"
                )
        recent, read = (sum(counts) for counts in zip(*self._window, strict=True))
        if found.bad and recent > max(FEW, SHARE * read):
            raise DataError(
                f"step {n + 1}: {recent} of the last {read} examples cannot be read, which is more than {SHARE:.0%}; "
                f"the newest: {found.bad[-1].error} Mend the data: this is more than data.on_error=skip passes over."
            )
        return found.batch


def _text(spec: Sequence[tuple[str, Sequence[int], np.dtype]]) -> str:
    return ", ".join(f"{path} {np.dtype(dtype).name}{list(shape)}" for path, shape, dtype in spec)
