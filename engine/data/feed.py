"""Feeds that give the training loop and the evaluations their batches as arrays on the devices.

A feed starts no thread: the reader prefetches host batches, and the loop dispatches ahead of the device, so that a
batch is transferred while the previous step computes. The position of a run is the number of its next batch.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from engine.base.errors import DataError
from engine.base.types import Json, PyTree
from engine.config.schema import Data
from engine.data.batch import Batch, Placement, local_rows, to_global_arrays
from engine.data.batches import Batches, OrderedBatches, batch_bytes
from engine.data.prefetch import dispatches_ahead
from engine.data.reader import Numbered, read
from engine.data.sampling.sampler import evaluation_positions
from engine.data.source import BaseSource, example_spec, limited, source_name
from engine.data.stages import Times
from engine.data.text import has_text, without_text

if TYPE_CHECKING:
    from engine.data.bad_examples import BadExampleCounter, BadRow, RowBatches
    from engine.data.streams.marks import StreamPosition


@dataclasses.dataclass(frozen=True)
class Batching:
    """How the examples of a run become batches.

    Attributes:
        batch_size: rows of a global batch, over all processes.
        seed: seed of the order and of random transforms.
        sharding: sharding of the batch dimension of every array.
        total_steps: steps of the run, which transforms may read; None: up to the last batch of the feed.
    """

    batch_size: int
    seed: int
    sharding: NamedSharding
    total_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class FeedCallbacks:
    """What a feed of a training run calls.

    Attributes:
        on_batch: called for each batch with its number, the rows that this process feeds, the addresses of their
            examples, and how many have each tag (`run/ledger.py`).
        bad: counter of bad examples for `data.on_error` = skip; None raises at the first bad example.
        on_message: called with a sentence about the number of workers that `data.workers` = auto has found.
    """

    on_batch: Callable[[int, list[int], list[int], dict[str, int]], None] | None = None
    bad: "BadExampleCounter | None" = None
    on_message: Callable[[str], None] = lambda text: None


class TrainFeed:
    """The batches of a training run, from a given batch on."""

    def __init__(
        self,
        source: BaseSource,
        settings: Data,
        batching: Batching,
        numbers: range,
        *,
        steps_per_dispatch: int = 1,
        callbacks: FeedCallbacks | None = None,
        saved: Mapping[str, Any] | None = None,
    ):
        """Starts the readers.

        Args:
            source: source of examples; `settings.limit` is applied to it.
            settings: config section `data`.
            batching: how the examples become batches.
            numbers: numbers of the batches; a resumed run begins with its `position["next_batch"]`.
            steps_per_dispatch: usual number of batches per call of `next`; `settings.prefetch` counts such calls.
            callbacks: what the feed calls.
            saved: `position` of the checkpoint from which a run resumes: where the shards of streams are opened.

        Raises:
            DataError: the source is empty, or its examples hold something other than numbers.
            ShardingError: the batch does not divide over the devices.
        """
        source = limited(source, settings.limit)
        example = example_spec(source)
        batch_size, start, self._callbacks = batching.batch_size, numbers.start, callbacks or FeedCallbacks()
        rows = local_rows(batching.sharding, batch_size)
        self._batches = batches = Batches(
            source, batch_size, batching.seed, settings.shuffle, rows, batching.total_steps or numbers.stop
        )
        self._place = Placement(batching.sharding, batches.ones)
        made = batches if self._callbacks.bad is None else _tolerant(batches)
        self._streams = _stream_position(source, saved, start) if batches.has_marks else None
        if self._streams is not None:
            batches.seek(self._streams.marks)
            made = self._streams.marked(made, batches.marks)
        dispatch_bytes = steps_per_dispatch * batch_bytes(example, len(batches.rows))
        ahead = dispatches_ahead(settings.prefetch, dispatch_bytes)
        self._reader = read(
            made,
            numbers,
            threads=settings.threads,
            workers=settings.workers,
            prefetch=ahead * steps_per_dispatch,
            block=batches.block_size,
            on_message=self._callbacks.on_message,
        )
        self._batch_size, self._next, self._stop = batch_size, start, numbers.stop

    @property
    def wait_s(self) -> float:
        """Seconds that `next` has waited for host batches since the feed was created."""
        return self._reader.wait_s

    @property
    def made_s(self) -> float:
        """Seconds in which the threads or workers, working in parallel, have made the batches so far."""
        return self._reader.made_s

    @property
    def times(self) -> Times:
        """Seconds by stage so far: of the readers, added up over them, and of the loop that transfers the batches."""
        return (*self._reader.times[:-1], self._place.transfer_s)

    @property
    def readers(self) -> int:
        """Number of threads or worker processes that read."""
        return self._reader.parallel

    def next(self, count: int) -> tuple[Batch, ...]:
        """Returns the next `count` batches.

        Raises:
            DataError: an example cannot be read, or fewer than `count` batches are left.
        """
        if self._next + count > self._stop:
            raise DataError(f"{count} batches requested at batch {self._next}, but the run ends at {self._stop}.")
        if self._streams is not None:
            self._streams.begin(self._next)
        batches = [self._unwrap(n, next(self._reader)) for n in range(self._next, self._next + count)]
        if self._callbacks.on_batch is not None:
            rows = self._batches.rows.tolist()
            for n in range(self._next, self._next + count):
                self._callbacks.on_batch(n, rows, self._batches.addresses(n).tolist(), self._batches.tag_counts(n))
        self._next += count
        if self._streams is not None:
            self._batches.seek(self._streams.changed)  # for workers that start now
        return self._place(batches)

    def _unwrap(self, n: int, found: Any) -> Batch:
        """Returns batch n without its marks and its bad examples, which are kept and reported."""
        if self._streams is not None:
            found = self._streams.unwrap(found)
        return found if self._callbacks.bad is None else self._callbacks.bad.unwrap(n, found)

    def same_shape(self, count: int) -> bool:
        """Returns whether the next `count` batches have one shape, so that one dispatch can take them."""
        return self._batches.same_shape(self._next, count)

    def seek(self, step: int) -> None:
        """Sets the saved position to batch `step`, where the run stops. A resume reads the later batches again."""
        if self._streams is not None:
            self._streams.seek(step)
        self._next = step

    @property
    def position(self) -> dict[str, Json]:
        """Number of the next batch and position of its first example in the run; prefetched batches do not count.

        For streams also "streams", where the shards that this process reads are opened again, and "content", a hash of
        the fingerprint of the data.
        """
        position: dict[str, Json] = {"next_batch": self._next, "next_example": self._next * self._batch_size}
        return position if self._streams is None else position | self._streams.saved

    def saved_before(self, n: int) -> dict[str, Json] | None:
        """Returns `saved` of a feed that reads batch n, a recent one, again; None if there are no marks before it."""
        return None if self._streams is None else self._streams.saved_before(n)

    def close(self) -> None:
        """Stops the reader threads and worker processes."""
        self._reader.close()


class EvaluationFeed:
    """The batches of an evaluation: every example exactly once, with as many batches on every process.

    Each iteration reads the source again. The last batch is padded with copies of the last example, so that padding
    holds valid numbers; these rows have weight 0.
    """

    def __init__(
        self,
        source: BaseSource,
        settings: Data,
        *,
        batch_size: int,
        sharding: NamedSharding,
        exact_last: bool = False,
        keep_text: bool = False,
        in_order: bool = False,
    ):
        """Creates the feed; examples are read by iterating.

        Args:
            source: source of examples; `settings.limit` is applied to it.
            settings: config section `evaluations.<name>.data`.
            batch_size: rows of a global batch.
            sharding: sharding of the batch dimension of every array.
            exact_last: keep the last batch at its real size, replicated and without padding, for metrics of a whole
                batch that take no row weights.
            keep_text: keep the text of the examples in the host batches of `with_host_batches`.
            in_order: read the examples in the order of the source, also if its evaluations read them in another one.

        Raises:
            DataError: the source is empty, or its examples hold something other than numbers.
            ShardingError: the batch does not divide over the devices.
        """
        self._source = limited(source, settings.limit)
        example = example_spec(self._source)
        self._settings, self._sharding = settings, sharding
        self._replicated = NamedSharding(sharding.mesh, PartitionSpec())
        rows = local_rows(sharding, batch_size)
        self._batches = OrderedBatches(self._source, batch_size, rows, keep_text, in_order)
        self._place = Placement(sharding, self._batches.ones, measured=False)
        self._ahead = dispatches_ahead(settings.prefetch, batch_bytes(example, len(self._batches.rows)))
        # Without row weights no row can be left out, so a bad example raises an error.
        self._tolerant = settings.on_error == "skip" and not exact_last
        self._made: Numbered[Any] = _tolerant(self._batches) if self._tolerant else self._batches
        self._remainder = last_rows(self._source, batch_size) if exact_last else 0

    def __len__(self) -> int:
        """Number of batches, including a partial last batch."""
        return len(self._batches)

    @property
    def rows(self) -> np.ndarray:
        """Row numbers in the global batch that this process reads, int64 `[rows]`."""
        return self._batches.rows

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        """Returns the indices in the source of the examples at positions of the evaluation, int64 `[n]`."""
        return np.array([self._batches.address(position) for position in positions.tolist()], np.int64)

    def positions(self, n: int) -> np.ndarray:
        """Returns the positions in the evaluation of the rows of this process in batch n; int64 `[rows]`.

        Positions past the end are those of padding.
        """
        return n * self._batches.batch_size + (np.arange(self._remainder) if self._is_exact(n) else self.rows)

    def to_global(self, rows: PyTree, n: int) -> PyTree:
        """Returns arrays of the rows of this process in batch n as global arrays, with the sharding of the batch."""
        return to_global_arrays(rows, self._replicated if self._is_exact(n) else self._sharding)

    def __iter__(self) -> Generator[Batch]:
        with contextlib.closing(self.with_host_batches()) as batches:
            for placed, _ in batches:
                yield placed

    def with_host_batches(self, numbers: range | None = None) -> Generator[tuple[Batch, Batch]]:
        """Yields each batch on the devices, and its rows of this process on the host, which may hold text.

        Args:
            numbers: consecutive numbers of the batches; None: all of them.
        """
        numbers = range(len(self)) if numbers is None else numbers
        has_last = self._is_exact(numbers.stop - 1)
        reader = read(
            self._made,
            range(numbers.start, numbers.stop - has_last),
            threads=self._settings.threads,
            workers=self._settings.workers,
            prefetch=self._ahead,
        )
        try:
            for batch in reader:
                if self._tolerant:
                    _report(batch.bad)
                    batch = batch.batch
                [placed] = self._place([_numbers(batch)])
                yield placed, batch
        finally:
            reader.close()
        if has_last:
            batch = self._batches.remainder()
            yield to_global_arrays(_numbers(batch), self._replicated), batch

    def _is_exact(self, n: int) -> bool:
        """Whether batch n is the last one at its real size."""
        return bool(self._remainder) and n == len(self) - 1


def _numbers(batch: Batch) -> Batch:
    """Returns a host batch without its text."""
    return Batch(without_text(batch.examples), batch.weight) if has_text(batch.examples) else batch


def last_rows(source: BaseSource, batch_size: int) -> int:
    """Returns the rows of the last batch of an evaluation that is not padded; 0 if it is a whole one.

    Raises:
        DataError: some rows of earlier batches are idle.
    """
    if source.continues_rows and (idle := evaluation_positions(source, batch_size) - len(source)):
        raise DataError(
            f"{source_name(source)}: {idle} rows of the evaluation are idle, and a metric has no entry for each row, "
            "which would leave them out. Return metrics with one entry for each row, or evaluate with batch_size=1."
        )
    return len(source) % batch_size


def padding_text(source: BaseSource, batch_size: int) -> str:
    """Returns which batches of an evaluation or of predictions are padded; "" if none is."""
    if source.continues_rows and (rows := evaluation_positions(source, batch_size) - len(source)):
        return f"{rows} rows are idle after their last drive"
    if not source.continues_rows and (rows := -len(source) % batch_size):
        return f"the last batch is padded with {rows} rows"
    return "batches are padded" if len(source.shape_specs()) > 1 else ""  # the last one of each length


def _stream_position(source: BaseSource, saved: Mapping[str, Any] | None, start: int) -> "StreamPosition":
    """Returns the position of a feed in its streams, which few runs read."""
    from engine.data.streams.marks import StreamPosition

    return StreamPosition(source, saved, start)


def _tolerant(batches: "RowBatches") -> Numbered[Any]:
    """Returns batches that list their bad examples; few runs skip these."""
    from engine.data.bad_examples import TolerantBatches

    return TolerantBatches(batches)


def _report(bad: "Sequence[BadRow]") -> None:
    for example in bad:
        logging.getLogger("convoy").warning("the evaluation skips an example: %s", example.error)
