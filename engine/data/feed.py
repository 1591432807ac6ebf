"""What the loop and the evaluations draw their batches from, as a program takes them.

A feed has no thread of its own: the loop runs ahead of the device, so that a batch is on its way while the step before
it computes, and the reader makes host batches ahead. The position of a run in its data is the number of its next batch.
"""

import logging
from collections.abc import Callable, Generator, Sequence

from jax.sharding import NamedSharding

from engine.config.errors import DataError
from engine.config.schema import Data
from engine.data.bad_examples import Bad, BadExamples, TolerantBatch, TolerantBatches
from engine.data.batch import Batch
from engine.data.batches import Batches, OrderedBatches
from engine.data.placement import Placement, local_rows, place
from engine.data.reader import read
from engine.data.source import Source, example_spec, limited


class TrainFeed:
    """The batches of a training run from one of them on."""

    def __init__(
        self,
        source: Source,
        settings: Data,
        *,
        batch_size: int,
        seed: int,
        sharding: NamedSharding,
        start: int,
        stop: int,
        steps_per_dispatch: int = 1,
        on_batch: Callable[[int, list[int], list[int]], None] | None = None,
        bad: BadExamples | None = None,
    ):
        """Starts the readers.

        Args:
            source: of examples; `settings.limit` is applied here.
            settings: the section `data`.
            batch_size: examples of a global batch, over all processes.
            seed: of the order and of random changes.
            sharding: of the batch dimension of every array.
            start: number of the first batch, which is `position["next_batch"]` of the run that is resumed.
            stop: number after the last batch.
            steps_per_dispatch: batches that are usually drawn in one call; `settings.prefetch` counts such draws.
            on_batch: called with each batch that is drawn: its number, the rows that this process feeds, and their
                examples (`run/ledger.py`).
            bad: takes what cannot be read where `settings.on_error` is skip; None stops at it.

        Raises:
            DataError: the source is empty or holds something else than numbers.
            ShardingError: the batch does not divide over the devices.
        """
        source = limited(source, settings.limit)
        example_spec(source)
        rows = local_rows(sharding, batch_size)
        self._batches = batches = Batches(source, batch_size, seed, settings.shuffle, rows)
        self._place = Placement(sharding, batches.ones)
        self._on_batch = on_batch
        self._bad = bad
        self._reader = read(
            batches if bad is None else TolerantBatches(batches),
            start,
            stop,
            threads=settings.threads,
            workers=settings.workers,
            prefetch=settings.prefetch * steps_per_dispatch,
            block=batches.block_size,
        )
        self._batch_size, self._next, self._stop = batch_size, start, stop

    @property
    def wait_s(self) -> float:
        """Seconds that `next` has waited for batches on the host since the feed was made."""
        return self._reader.wait_s

    def next(self, count: int) -> tuple[Batch, ...]:
        """Returns the next `count` batches.

        Raises:
            DataError: an example cannot be read, or fewer batches are left.
        """
        if self._next + count > self._stop:
            raise DataError(f"{count} batches asked for at batch {self._next}, but the run ends at {self._stop}.")
        batches = [self._checked(n, next(self._reader)) for n in range(self._next, self._next + count)]
        if self._on_batch is not None:
            for n in range(self._next, self._next + count):
                self._on_batch(n, self._batches.rows.tolist(), self._batches.addresses(n).tolist())
        self._next += count
        return self._place(batches)

    def _checked(self, n: int, batch: Batch | TolerantBatch) -> Batch:
        if isinstance(batch, TolerantBatch):
            assert self._bad is not None
            return self._bad.take(n, batch)
        return batch

    def seek(self, step: int) -> None:
        """Sets the position back to batch `step`: the run ends here, and its resume draws the later ones again."""
        self._next = step

    @property
    def position(self) -> dict[str, int]:
        """The next batch to draw and the global index of its first example; batches made ahead do not count."""
        return {"next_batch": self._next, "next_example": self._next * self._batch_size}

    def close(self) -> None:
        """Ends the readers."""
        self._reader.close()


class EvaluationFeed:
    """The batches of an evaluation: every example exactly once, in order; as many batches on every host.

    Each iteration reads the source anew. Rows that fill up the last batch repeat the last example, so that they are
    valid numbers, and have weight 0.
    """

    def __init__(
        self,
        source: Source,
        settings: Data,
        *,
        batch_size: int,
        sharding: NamedSharding,
        replicated: NamedSharding,
        exact_last: bool = False,
    ):
        """Reads nothing yet.

        Args:
            source: of examples; `settings.limit` is applied here.
            settings: the section `evaluations.<name>.data`.
            batch_size: examples of a global batch.
            sharding: of the batch dimension of every array.
            replicated: the sharding of what every device holds whole.
            exact_last: give the last batch its own size, replicated, and no row of weight 0: for metrics that take
                the whole batch and know no weight.
        """
        self._source = limited(source, settings.limit)
        example_spec(self._source)
        self._settings, self._replicated = settings, replicated
        self._batches = OrderedBatches(self._source, batch_size, local_rows(sharding, batch_size))
        self._place = Placement(sharding, self._batches.ones)
        # Without weights no row can be left out, so what cannot be read stops the evaluation.
        self._tolerant = settings.on_error == "skip" and not exact_last
        self._rest = len(self._source) % batch_size if exact_last else 0

    def __len__(self) -> int:
        """Number of batches, the last one included."""
        return len(self._batches)

    def __iter__(self) -> Generator[Batch]:
        reader = read(
            TolerantBatches(self._batches) if self._tolerant else self._batches,
            0,
            len(self) - bool(self._rest),
            threads=self._settings.threads,
            workers=self._settings.workers,
            prefetch=self._settings.prefetch,
        )
        try:
            for batch in reader:
                if isinstance(batch, TolerantBatch):
                    _report(batch.bad)
                    batch = batch.batch
                yield from self._place([batch])
        finally:
            reader.close()
        if self._rest:
            yield place(self._batches.rest(), self._replicated)


def _report(bad: Sequence[Bad]) -> None:
    for one in bad:
        logging.getLogger("convoy").warning("an evaluation leaves out what cannot be read: %s", one.error)
