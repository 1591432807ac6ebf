"""Marks of streams: they travel with each batch from the reader, and those of all processes are saved together."""

import functools
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from engine.base.types import Json
from engine.cluster import group
from engine.data.bad_examples import TolerantBatch
from engine.data.batch import Batch
from engine.data.reader import Numbered
from engine.data.sampling.sampler import Mark, Marks
from engine.data.source import BaseSource

EARLIER = 1024  # batches between two kept positions
GATHER_S = 30.0  # marks that are missing then only make a resume read more


@functools.partial(jax.tree_util.register_dataclass, data_fields=["batch"], meta_fields=["marks"])
@dataclass(frozen=True)
class MarkedBatch:
    """A batch, and the marks that it changes, from which the batch after it is read."""

    batch: Batch | TolerantBatch
    marks: Marks


class MarkedBatches:
    """Adds the marks to batches: prefetched batches have moved the shards on, so the marks of the reader are too late.

    Args:
        batches: batches by number.
        marks: returns the changed marks of a batch by its number.
    """

    def __init__(self, batches: Numbered[Any], marks: Callable[[int], Marks]):
        self._batches, self._marks = batches, marks

    def __getitem__(self, n: int) -> MarkedBatch:
        """Returns batch n."""
        return MarkedBatch(self._batches[n], self._marks(int(n) + 1))


class StreamPosition:
    """Where the shards of streams are opened to read on: the part of the position of a feed that streams add to it.

    Args:
        source: the data.
        saved: position of the checkpoint from which a run resumes.
        start: number of the first batch.
    """

    def __init__(self, source: BaseSource, saved: Mapping[str, Any] | None, start: int):
        self._content = zlib.crc32(source.fingerprint().encode())
        same = saved is not None and saved.get("content") == self._content
        self.marks: dict[str, Mark] = dict(saved["streams"]) if same else {}  # pyright: ignore[reportOptionalSubscript]
        """Before the batches that were requested latest; those of other data (--accept-data-change) are of no use."""
        self.changed: dict[str, Mark] = {}
        """Marks that these batches have changed."""
        self._began = start  # the first of these batches
        self._earlier = deque([(start, dict(self.marks))], maxlen=2)  # so that a batch is read again soon

    def marked(self, batches: Numbered[Any], marks: Callable[[int], Marks]) -> MarkedBatches:
        """Returns batches with their marks, for `unwrap`; arguments as for `MarkedBatches`."""
        return MarkedBatches(batches, marks)

    def begin(self, n: int) -> None:
        """Called before the batches from n on are requested."""
        self.marks |= self.changed
        self._began, self.changed = n, {}
        if n >= self._earlier[-1][0] + EARLIER:
            self._earlier.append((n, dict(self.marks)))

    def unwrap(self, found: MarkedBatch) -> Batch | TolerantBatch:
        """Keeps the marks of a batch and returns the batch."""
        add_later(self.changed, later(self.marks, found.marks))  # a worker may know only an earlier mark
        return found.batch

    def seek(self, step: int) -> None:
        """Drops the changes of the batches from `step` on, which the run discards."""
        if step == self._began:
            self.changed = {}

    @property
    def saved(self) -> dict[str, Json]:
        """Entries of the saved position: the marks, and a hash of the fingerprint of the data."""
        return {"content": self._content, "streams": self.marks | self.changed}

    def saved_before(self, n: int) -> dict[str, Json] | None:
        """Returns `saved` for a feed that reads batch n, a recent one, again; None if there are no marks before it."""
        marks = next((marks for first, marks in reversed(self._earlier) if first <= n), None)
        return {"content": self._content, "streams": marks} if marks else None


def gather_marks(position: Mapping[str, Json]) -> dict[str, Json]:
    """Returns the position of a feed of streams with the marks of all processes, on the primary; all call it."""
    if group.count() == 1:
        return dict(position)
    streams: Any = position["streams"]
    return {**position, "streams": latest(group.gather(streams, "the positions of the streams", GATHER_S).values())}


def latest(found: Iterable[Marks]) -> dict[str, Mark]:
    """Returns the latest mark of each shard, of those that several processes have read."""
    merged: dict[str, Mark] = {}
    for marks in found:
        add_later(merged, marks)
    return merged


def add_later(merged: dict[str, Mark], marks: Marks) -> None:
    """Adds to `merged` the marks that are not before those of their shards in it."""
    merged |= later(merged, marks)


def later(known: Marks, marks: Marks) -> dict[str, Mark]:
    """Returns the marks that are not before the known ones of their shards."""
    return {shard: mark for shard, mark in marks.items() if mark[0] >= known.get(shard, mark)[0]}
