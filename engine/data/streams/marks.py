"""Marks of streams: they travel with each batch from the reader, and those of all processes are saved together."""

import functools
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


def gather_marks(position: Mapping[str, Json]) -> dict[str, Json]:
    """Returns a position with the marks of the shards of all processes, on the primary; all processes call it."""
    if "streams" not in position or group.count() == 1:
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
