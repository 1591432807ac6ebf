"""The engine's reader of `input.py`: a worker. Its mode is "threads" or "processes"."""

import sys

import jax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.input_files import MOST_AGENTS, READERS, ROW_TOKENS, arguments, open_source, rate
from benchmarks.worker import serve
from engine import Packed, Padded
from engine.config.schema import Data
from engine.data.feed import Batching, TrainFeed
from engine.data.source import ArraySource
from engine.data.source_adapter import indexed


class Augmented:
    """A source whose random transform is its `augment`."""

    def __init__(self, source):
        self.source = source
        self.transform = source.augment
        self.new_arrays = source.new_arrays

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source[index]


def engine_source(name, folder):
    """Returns the source as an author of a config would give it to the engine."""
    source = open_source(name, folder)
    if name == "scenes":
        return Padded(source, MOST_AGENTS, "agents")
    if name == "tokens":
        return Packed(source, ROW_TOKENS)
    if name == "small":
        return ArraySource({"image": source.images, "label": source.labels})
    return Augmented(source)


def open_feed(name, folder, mode="threads", start=0):
    """Returns the feed of a training run from a batch on."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    return TrainFeed(
        indexed(engine_source(name, folder), "data"),
        Data(threads=READERS, workers=READERS if mode == "processes" else 0),
        Batching(open_source(name, folder).batch_size, 0, NamedSharding(mesh, PartitionSpec("data"))),
        range(start, 10**8),
    )


def main():
    """Reads a turn at a time."""
    name, folder, mode = arguments(sys.argv)
    feed = open_feed(name, folder, mode)
    batches = iter(lambda: feed.next(1), None)
    size = open_source(name, folder).batch_size
    serve(lambda milliseconds: [rate(batches, size, milliseconds)])
    feed.close()


if __name__ == "__main__":
    main()
