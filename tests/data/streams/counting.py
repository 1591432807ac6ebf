"""A stream whose items are numbered, and which counts what is read, for the tests of streams."""

import functools

import numpy as np

from engine.data.adapt import as_source
from engine.data.batches import Batches
from engine.data.streams.marks import latest


class Counting:
    """Shards of (shard, number of the item); `known` gives the lengths to the engine."""

    def __init__(self, counts, known=True):
        self.lengths_of, self.shards, self.reads = list(counts), len(counts), 0
        if known:
            self.counts = functools.partial(list, self.lengths_of)

    def open(self, shard, position):
        for number in range(position or 0, self.lengths_of[shard]):
            self.reads += 1
            yield {"shard": np.int32(shard), "item": np.int32(number)}, number + 1

    def decode(self, item):
        return item


def drawn(batches, n):
    """Returns the (shard, item) pairs of the rows of a batch."""
    found = batches[n].examples
    return list(zip(found["shard"].tolist(), found["item"].tolist(), strict=True))


def run(make_stream, segments, *, batch_size, shuffle=True, window=1, wrap=lambda source: source):
    """Returns the global batches of a run, and the items that each segment of it has read.

    Args:
        make_stream: returns the stream of a process.
        segments: (number of processes, number of steps) of each attempt; an attempt starts from the saved marks.
        batch_size, shuffle, window: settings of the run.
        wrap: makes the source of the run from that of the stream.
    """
    marks, found, reads, step = {}, [], [], 0
    for processes, steps in segments:
        streams = [make_stream() for _ in range(processes)]
        parts = []
        for stream, rows in zip(streams, np.array_split(np.arange(batch_size), processes), strict=True):
            source = wrap(as_source(stream, "data", window=window))
            if len(rows):
                parts.append(Batches(source, batch_size, 3, shuffle, rows))
        before = [stream.reads for stream in streams]
        for part in parts:
            part.seek(marks)
        for n in range(step, step + steps):
            found.append([pair for part in parts for pair in drawn(part, n)])
        step += steps
        marks = latest([marks, *(part.marks(step) for part in parts)])
        reads.append([stream.reads - start for stream, start in zip(streams, before, strict=True)])
    return found, reads
