"""Examples that cannot be read, where `data.on_error` is skip: their rows weigh nothing, and they are told.

Owns: batches that stay full whatever cannot be read (`Forgiving`), and the account of what could not (`BadExamples`).
Does not own: the weight's way into the loss (`training/step.py`), or the error where the policy is stop (`batches.py`).

Terms. *Bad*: reading the example, or its transform, failed, or its shapes are not those of the others. *Filler*: what
stands in its row, the next readable example of the run's order: a pure function of (seed, place) as every example is,
and valid numbers, as a model that normalises over a batch needs. Its weight is 0.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engine.config.errors import DataError
from engine.data.source import Batch, Source, example_spec, leaves, name_of

TRIED = 1000  # places in a row, for a filler
WINDOW = 100  # batches, of which too many bad examples are too many
SHARE = 0.1  # of their examples that may be bad
FEW = 10  # bad examples that are never too many, and that are told one by one


@dataclass(frozen=True)
class Bad:
    """One example that could not be read."""

    row: int  # in the global batch
    address: int  # in the source's arrangement, as the ledger of examples has it
    error: str  # a sentence that names it


@dataclass(frozen=True)
class Readable:
    """A batch `[rows, ...]`, the weight of its rows (float32 `[rows]`, 1 or 0), and what could not be read."""

    batch: Batch
    weight: np.ndarray
    bad: tuple[Bad, ...]


class ByRow(Protocol):
    """Batches that can also make one row alone (`batches.py`)."""

    source: Source
    batch_size: int
    rows: np.ndarray

    def __getitem__(self, n: int, /) -> Batch: ...

    def row(self, place: int) -> Batch: ...

    def address(self, place: int) -> int: ...


class Forgiving:
    """The same batches, each as a `Readable`."""

    def __init__(self, batches: ByRow):
        self._batches = batches
        self._spec = [(path, spec.shape, spec.dtype) for path, spec in leaves(example_spec(batches.source))]

    def __getitem__(self, n: int) -> Readable:
        """Returns batch n.

        Raises:
            DataError: no filler was found for a row.
        """
        rows = self._batches.rows
        try:
            return Readable(self._batches[n], np.ones(len(rows), np.float32), ())
        except DataError:
            return self._row_by_row(int(n))

    def block(self, first: int, count: int) -> list[Readable]:
        """Returns batches first, ..., first + count - 1, read in one go."""
        ones = np.ones(len(self._batches.rows), np.float32)
        return [Readable(batch, ones, ()) for batch in self._batches.block(first, count)]  # pyright: ignore[reportAttributeAccessIssue]

    def _row_by_row(self, n: int) -> Readable:
        import jax

        examples, bad = [], []
        weight = np.ones(len(self._batches.rows), np.float32)
        for i, row in enumerate(self._batches.rows.tolist()):
            place = n * self._batches.batch_size + row
            try:
                examples.append(self._row(place))
            except DataError as error:
                bad.append(Bad(row, self._batches.address(place), str(error)))
                weight[i] = 0
                examples.append(self._filler(place))
        return Readable(jax.tree.map(lambda *parts: np.concatenate(parts), *examples), weight, tuple(bad))

    def _row(self, place: int) -> Batch:
        """The example at a place as a batch of one row. Raises DataError."""
        row = self._batches.row(place)
        found = [(path, leaf.shape[1:], leaf.dtype) for path, leaf in leaves(row)]
        if found != self._spec:
            raise DataError(
                f"Example {self._batches.address(place)} of {name_of(self._batches.source)} has {_text(found)}, the "
                f"others have {_text(self._spec)}. Bring all to one shape and dtype in the source."
            )
        return row

    def _filler(self, place: int) -> Batch:
        errors = []
        for other in range(place + 1, place + 1 + TRIED):
            try:
                return self._row(other)
            except DataError as error:
                errors.append(error)
        raise DataError(f"{TRIED} examples one after the other cannot be read, the last one so: {errors[-1]}")


class BadExamples:
    """The account of the bad examples that this process has met in one attempt.

    Args:
        write: takes a line for the run directory, one for each bad example.
        on_message: called with sentences for the user: each of the first bad examples, then at each doubling.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None], on_message: Callable[[str], None]):
        self._write, self._say = write, on_message
        self._recent: deque[tuple[int, int]] = deque(maxlen=WINDOW)  # bad examples, and all, of a batch
        self._count, self._tell_at = 0, 1

    def take(self, n: int, rows: int, bad: Sequence[Bad]) -> None:
        """Takes the bad examples of batch n, of which this process feeds so many rows; every batch is handed over.

        Raises:
            DataError: there are too many.
        """
        self._recent.append((len(bad), rows))
        for one in bad:
            self._count += 1
            self._write({"step": n + 1, "batch": n, "row": one.row, "example": one.address, "error": one.error})
            if self._count >= self._tell_at:
                self._tell_at = self._count + 1 if self._count < FEW else 2 * self._count
                self._say(
                    f"warning: step {n + 1}: {one.error} Its row has weight 0 (data.on_error=skip; "
                    f"{self._count} bad example{'s' * (self._count > 1)} so far)"
                )
        recent, read = (sum(counts) for counts in zip(*self._recent, strict=True))
        if bad and recent > max(FEW, SHARE * read):
            raise DataError(
                f"step {n + 1}: {recent} of the last {read} examples cannot be read, which is more than {SHARE:.0%}; "
                f"the newest: {bad[-1].error} Mend the data: this is more than data.on_error=skip passes over."
            )


def _text(spec: Sequence[tuple[str, Any, Any]]) -> str:
    return ", ".join(f"{path} {np.dtype(dtype).name}{list(shape)}" for path, shape, dtype in spec)
