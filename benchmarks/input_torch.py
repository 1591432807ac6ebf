"""PyTorch's DataLoader of `input.py`: a worker. It needs torch, numpy and, for JPEG, simplejpeg, not the engine."""

import sys

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from input_files import MOST_AGENTS, READERS, ROW_TOKENS, arguments, open_source, rate
from torch.utils.data import DataLoader, Dataset, Sampler  # pyright: ignore[reportMissingImports]
from worker import serve


class Endless(Sampler):
    """A new permutation in every epoch, without end."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        rng = np.random.default_rng(0)
        while True:
            yield from rng.permutation(self.size).tolist()


class Examples(Dataset):
    """A source as a Dataset; random transforms use a generator of the example."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example = self.source[index]
        if hasattr(self.source, "augment"):
            return self.source.augment(example, np.random.default_rng((0, index)))
        return example


class Arrays(Dataset):
    """A source of arrays, read a batch at a time."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitems__(self, indices):
        return {name: torch.from_numpy(values) for name, values in self.source.take(indices).items()}


class Rows(Dataset):
    """Rows of tokens: the documents in a fixed random order, one after the other, cut at the ends of rows."""

    def __init__(self, source):
        self.source = source
        self.order = np.random.default_rng(0).permutation(len(source))
        self.ends = np.concatenate([[0], np.cumsum(source.lengths()[self.order])])

    def __len__(self):
        return int(self.ends[-1]) // ROW_TOKENS

    def __getitem__(self, index):
        names = ("tokens", "targets", "segment_ids", "positions")
        row = {name: np.zeros(ROW_TOKENS, np.int32) for name in names}
        weight = np.zeros(ROW_TOKENS, np.float32)
        at, stop = index * ROW_TOKENS, (index + 1) * ROW_TOKENS
        number = int(np.searchsorted(self.ends, at, side="right")) - 1
        begin, segment = 0, 1
        while at < stop:
            tokens = self.source[int(self.order[number])]["tokens"]
            first = at - int(self.ends[number])
            count = min(len(tokens) - first, stop - at)
            last = min(first + count, len(tokens) - 1)
            row["tokens"][begin : begin + count] = tokens[first : first + count]
            row["targets"][begin : begin + last - first] = tokens[first + 1 : last + 1]
            row["segment_ids"][begin : begin + count] = segment
            row["positions"][begin : begin + count] = np.arange(count)
            weight[begin : begin + last - first] = 1
            begin, at, number, segment = begin + count, at + count, number + 1, segment + 1
        return {**row, "weight": weight}


def pad(examples):
    """Collates scenes: pads the agents into one array, and adds a mask."""
    agents = np.zeros((len(examples), MOST_AGENTS, *examples[0]["agents"].shape[1:]), np.float32)
    mask = np.zeros((len(examples), MOST_AGENTS), bool)
    for row, example in enumerate(examples):
        count = len(example["agents"])
        agents[row, :count], mask[row, :count] = example["agents"], True
    return {"agents": torch.from_numpy(agents), "mask": torch.from_numpy(mask)}


def as_it_is(batch):
    """Returns a batch that is already collated."""
    return batch


def main():
    """Reads a turn at a time."""
    name, folder, _ = arguments(sys.argv)
    source = open_source(name, folder)
    data = {"tokens": Rows, "small": Arrays}.get(name, Examples)(source)
    collate = {"scenes": pad, "small": as_it_is}.get(name)
    loader = DataLoader(data, source.batch_size, sampler=Endless(len(data)), num_workers=READERS, collate_fn=collate)
    batches = iter(loader)
    serve(lambda milliseconds: [rate(batches, source.batch_size, milliseconds)])


if __name__ == "__main__":
    main()
