"""Feeds: what the loop and the evaluations draw their batches from, as a program takes them (`placement.py`).

Owns: the position of a run in its data, and the time that the host waited for it. Does not own: the steps.

A feed has no thread of its own. The loop runs ahead of the device, so that a batch is on its way while the step before
it computes; batches for the host are made ahead by the reader.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from engine.config.errors import DataError
from engine.config.schema import Data
from engine.data.bad_examples import Bad, BadExamples, Forgiving
from engine.data.batches import Batches, OrderedBatches
from engine.data.placement import local_rows, place
from engine.data.reader import read
from engine.data.source import Batch, Source, example_spec, limited


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
            steps_per_dispatch: batches that are usually drawn at once; `settings.prefetch` counts such draws.
            on_batch: called with each batch that is drawn: its number, the rows that this process feeds, and their
                examples (`run/ledger.py`).
            bad: takes what cannot be read where `settings.on_error` is skip; `next` then returns pairs, each batch
                with the weight of its rows, float32 `[batch_size]`.

        Raises:
            DataError: the source is empty or holds something else than numbers.
            ShardingError: the batch does not divide over the devices.
        """
        source = limited(source, settings.limit)
        example_spec(source)
        rows = local_rows(sharding, batch_size)
        self._batches = batches = Batches(source, batch_size, seed, settings.shuffle, rows)
        self._on_batch = on_batch
        self._bad = bad
        self._reader = read(
            batches if bad is None else Forgiving(batches),
            start,
            stop,
            threads=settings.threads,
            workers=settings.workers,
            prefetch=settings.prefetch * steps_per_dispatch,
            at_once=batches.at_once,
        )
        self._sharding, self._batch_size = sharding, batch_size
        self._next, self._stop = start, stop

    @property
    def wait_s(self) -> float:
        """Seconds that `next` has waited for batches on the host since the feed was made."""
        return self._reader.wait_s

    def next(self, count: int) -> tuple[Batch, ...]:
        """Returns the next `count` batches, arrays `[batch_size, ...]` as a program takes them.

        Raises:
            DataError: an example cannot be read, or fewer batches are left.
        """
        if self._next + count > self._stop:
            raise DataError(f"{count} batches asked for at batch {self._next}, but the run ends at {self._stop}.")
        batches = self._draw(count)
        if self._on_batch is not None:
            for n in range(self._next, self._next + count):
                self._on_batch(n, self._batches.rows.tolist(), self._batches.addresses(n).tolist())
        self._next += count
        return place(batches, self._sharding)

    def _draw(self, count: int) -> tuple[Batch, ...]:
        batches = tuple([next(self._reader) for _ in range(count)])
        if self._bad is None:
            return batches
        for n, batch in enumerate(batches, self._next):
            self._bad.take(n, len(batch.weight), batch.bad)
        return tuple((batch.batch, batch.weight) for batch in batches)

    def seek(self, step: int) -> None:
        """The batches from number `step` on count as not drawn: the run ends here, and goes on with them."""
        self._next = step

    @property
    def position(self) -> dict[str, int]:
        """The next unread batch and the global index of its first example; batches made ahead do not count."""
        return {"next_batch": self._next, "next_example": self._next * self._batch_size}

    def close(self) -> None:
        """Ends the readers."""
        self._reader.close()


class EvaluationFeed:
    """The batches of an evaluation: every example exactly once, in order; as many batches on every host.

    Iterating yields `(batch, weight)`, both as a program takes them; each iteration reads the source anew. Rows that
    fill up the last batch repeat the last example, so that they are valid numbers, and have weight 0.
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
            sharding: of the batch dimension of every array, and of the weight.
            replicated: the sharding of what every device holds whole.
            exact_last: give the last batch its own size, replicated, and no row of weight 0: for metrics that take
                the whole batch and know no weight.
        """
        self._source = limited(source, settings.limit)
        example_spec(self._source)
        self._settings, self._batch_size = settings, batch_size
        self._sharding, self._replicated = sharding, replicated
        self._batches = OrderedBatches(self._source, batch_size, local_rows(sharding, batch_size))
        self._exact_last = exact_last
        self._rest = len(self._source) % batch_size if exact_last else 0

    def __len__(self) -> int:
        """Number of batches, the last one included."""
        return len(self._batches)

    def __iter__(self) -> Generator[tuple[Batch, Any]]:
        full = len(self) - 1
        ones = place(np.ones_like(self._batches.weight(0)), self._sharding)
        settings = self._settings
        whole = full if self._rest else full + 1
        forgiving = settings.on_error == "skip" and not self._exact_last  # else rows cannot be left out
        reader = read(
            Forgiving(self._batches) if forgiving else self._batches,
            0,
            whole,
            threads=settings.threads,
            workers=settings.workers,
            prefetch=settings.prefetch,
        )
        try:
            for n, batch in enumerate(reader):
                weight = ones if n < full else place(self._batches.weight(n), self._sharding)
                if forgiving:
                    if batch.bad:
                        weight = place(self._batches.weight(n) * batch.weight, self._sharding)
                        _tell(batch.bad)
                    batch = batch.batch
                yield place(batch, self._sharding), weight
        finally:
            reader.close()
        if self._rest:
            yield self._last()

    def _last(self) -> tuple[Batch, Any]:
        """The examples that do not fill a batch, on every device."""
        weight = np.ones(self._rest, np.float32)
        return place(self._batches.rest(), self._replicated), place(weight, self._replicated)


def _tell(bad: Sequence[Bad]) -> None:
    for one in bad:
        logging.getLogger("convoy").warning("an evaluation leaves out what cannot be read: %s", one.error)
