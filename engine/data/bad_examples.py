"""Skips examples that cannot be read (`data.on_error=skip`): their rows get weight 0, and each is reported.

An example is bad if reading it or its transform fails, or if its shapes differ from those of the other examples. Its
row holds a filler, the next readable example in the order of the run, because a model that normalises over the batch
needs valid numbers. The choice of the filler depends on (seed, position) alone.
"""

import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np

from engine.base.errors import DataError
from engine.base.types import Json
from engine.data.batch import Batch
from engine.data.examples import Examples, leaves_with_path
from engine.data.source import BaseSource, source_name
from engine.data.text import without_text

FILLER_TRIES = 1000  # consecutive positions tried for a filler
WINDOW_BATCHES = 100  # latest batches over which the fraction of bad examples is measured
MAX_BAD_FRACTION = 0.1  # share of the examples in the window
ALWAYS_ALLOWED = 10  # bad examples in the window that never stop a run; the first ones are reported one by one


@dataclass(frozen=True)
class BadRow:
    """A row of a batch whose example could not be read."""

    row: int  # row of the global batch
    address: int  # address that the sampler gave it, as in the ledger of examples
    error: str  # error text, which names the example


@functools.partial(jax.tree_util.register_dataclass, data_fields=["batch"], meta_fields=["bad"])
@dataclass(frozen=True)
class TolerantBatch:
    """A batch whose bad examples have weight 0, and the list of these examples."""

    batch: Batch
    bad: tuple[BadRow, ...] = ()


class RowBatches(Protocol):
    """Batches that can also read a single row (`batches.py`)."""

    source: BaseSource
    batch_size: int
    rows: np.ndarray

    def __getitem__(self, n: int, /) -> Batch: ...

    def row(self, position: int, n: int) -> Examples: ...

    def shape(self, n: int) -> int: ...

    def weight(self, n: int) -> np.ndarray: ...

    def address(self, position: int) -> int: ...


class TolerantBatches:
    """Wraps batches so that a bad example gives a row of weight 0 instead of an error."""

    def __init__(self, batches: RowBatches):
        self._batches = batches
        if batches.source.continues_rows:
            raise DataError(
                f"data.on_error=skip: {source_name(batches.source)} continues drives in the rows of the batches, and a "
                "drive with a gap would not be the same drive. Use data.on_error=stop, and leave bad frames out of the "
                "dataset: the gap in time ends the drive."
            )
        self._specs = [
            [(path, spec.shape, spec.dtype) for path, spec in leaves_with_path(example)]
            for example in batches.source.shape_specs()
        ]

    def __getitem__(self, n: int) -> TolerantBatch:
        """Returns batch n.

        Raises:
            DataError: no filler was found for a bad example.
        """
        try:
            return TolerantBatch(self._batches[n])
        except DataError:
            return self._row_by_row(int(n))

    def block(self, first: int, count: int) -> list[TolerantBatch]:
        """Returns batches first, ..., first + count - 1, read in one call."""
        return [TolerantBatch(batch) for batch in self._batches.block(first, count)]  # pyright: ignore[reportAttributeAccessIssue]

    def _row_by_row(self, n: int) -> TolerantBatch:
        examples, bad = [], []
        weight = self._batches.weight(n).copy()
        for i, row in enumerate(self._batches.rows.tolist()):
            position = n * self._batches.batch_size + row
            try:
                examples.append(self._row(position, n))
            except DataError as error:
                if weight[i]:  # else the row is padding after the last example
                    bad.append(BadRow(row, self._batches.address(position), str(error)))
                weight[i] = 0
                examples.append(self._filler(position, n))
        return TolerantBatch(Batch(jax.tree.map(lambda *rows: np.concatenate(rows), *examples), weight), tuple(bad))

    def _row(self, position: int, n: int) -> Examples:
        """Returns the example at a position as a row in the shape of batch n. Raises DataError for a bad example."""
        row, spec = self._batches.row(position, n), self._specs[self._batches.shape(n)]
        found = [(path, leaf.shape[1:], leaf.dtype) for path, leaf in leaves_with_path(without_text(row))]
        if found != spec:
            raise DataError(
                f"Example {self._batches.address(position)} of {source_name(self._batches.source)} has {_text(found)}, "
                f"other examples have {_text(spec)}. Give all examples the same shapes and dtypes in the source."
            )
        return row

    def _filler(self, position: int, n: int) -> Examples:
        errors = []
        for other in range(position + 1, position + 1 + FILLER_TRIES):
            try:
                return self._row(other, n)
            except DataError as error:
                errors.append(error)
        raise DataError(f"{FILLER_TRIES} consecutive examples cannot be read. The last error: {errors[-1]}")


class BadExampleCounter:
    """Counts, logs and reports the bad examples that this process reads in one attempt.

    Args:
        write: appends one record for each bad example to a file of the run directory.
        on_message: called with a warning for the user: for each of the first bad examples, then at each doubling of
            their number.
    """

    def __init__(self, write: Callable[[Mapping[str, Json]], None], on_message: Callable[[str], None]):
        self._write, self._on_message = write, on_message
        self._window: deque[tuple[int, int]] = deque(maxlen=WINDOW_BATCHES)  # (bad examples, all examples) per batch
        self._count, self._report_at = 0, 1

    @classmethod
    def silent(cls) -> "BadExampleCounter":
        """Returns a counter for batches that are read again, which writes and says nothing."""
        return cls(lambda record: None, lambda text: None)

    def unwrap(self, n: int, found: TolerantBatch) -> Batch:
        """Counts the bad examples of batch n and returns the plain batch; call it for every batch.

        Raises:
            DataError: too many of the latest examples are bad.
        """
        self._window.append((len(found.bad), len(found.batch.weight)))
        for bad in found.bad:
            self._count += 1
            self._write({"step": n + 1, "batch": n, "row": bad.row, "example": bad.address, "error": bad.error})
            if self._count >= self._report_at:
                self._report_at = self._count + 1 if self._count < ALWAYS_ALLOWED else 2 * self._count
                self._on_message(
                    f"warning: step {n + 1}: {bad.error} Its row has weight 0 (data.on_error=skip; "
                    f"{self._count} bad example{'s' * (self._count > 1)} so far)"
                )
        bad_count, read_count = (sum(counts) for counts in zip(*self._window, strict=True))
        if found.bad and too_many(bad_count, read_count):
            raise DataError(
                f"step {n + 1}: {bad_count} of the last {read_count} examples cannot be read, and data.on_error=skip "
                f"allows {MAX_BAD_FRACTION:.0%}. The latest error: {found.bad[-1].error} Repair the data."
            )
        return found.batch


def too_many(bad: int, read: int) -> bool:
    """Returns whether so many of the examples that were read are bad that the run stops."""
    return bad > max(ALWAYS_ALLOWED, MAX_BAD_FRACTION * read)


def _text(spec: Sequence[tuple[str, Sequence[int], np.dtype]]) -> str:
    return ", ".join(f"{path} {np.dtype(dtype).name}{list(shape)}" for path, shape, dtype in spec)
