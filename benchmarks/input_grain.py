"""A plain Grain pipeline of `input.py`: a worker. Its mode is "threads" or "processes"."""

import sys

import grain
import numpy as np
from absl import flags

from benchmarks.input_files import MOST_AGENTS, READERS, ROW_TOKENS, arguments, open_source, rate
from benchmarks.worker import serve


def pad(example):
    """Pads the agents of a scene, and adds a mask."""
    agents = np.zeros((MOST_AGENTS, *example["agents"].shape[1:]), np.float32)
    agents[: len(example["agents"])] = example["agents"]
    return {"agents": agents, "mask": np.arange(MOST_AGENTS) < len(example["agents"])}


def to_int32(example):
    """Converts the tokens of a document."""
    return {"tokens": example["tokens"].astype(np.int32)}


def dataset(name, source, mode):
    """Returns the batches of a source as a Grain dataset."""
    examples = grain.MapDataset.range(len(source)) if name == "small" else grain.MapDataset.source(source)
    examples = examples.seed(0).shuffle().repeat()
    threads = grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=2 * READERS)
    inline = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    processes = grain.MultiprocessingOptions(num_workers=READERS)
    if name == "tokens":  # rows are packed in order, so threads can only read documents ahead
        documents = examples.map(to_int32).to_iter_dataset(threads if mode == "threads" else inline)
        rows = grain.experimental.ConcatThenSplitIterDataset(documents, length_struct={"tokens": ROW_TOKENS})
        batches = rows.batch(source.batch_size)
        return batches if mode == "threads" else batches.mp_prefetch(processes)
    if name == "scenes":
        examples = examples.map(pad)
    if hasattr(source, "augment"):
        examples = examples.random_map(source.augment)
    batches = examples.batch(source.batch_size)
    if name == "small":  # a batch of indices, so that each example is not read and stacked by itself
        batches = batches.map(source.take)
    if mode == "threads":
        return batches.to_iter_dataset(threads)
    return batches.to_iter_dataset(inline).mp_prefetch(processes)


def main():
    """Reads a turn at a time."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    name, folder, mode = arguments(sys.argv)
    source = open_source(name, folder)
    batches = iter(dataset(name, source, mode))
    serve(lambda milliseconds: [rate(batches, source.batch_size, milliseconds)])
    batches.close()


if __name__ == "__main__":
    main()
