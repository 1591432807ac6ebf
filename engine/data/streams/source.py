"""Makes a stream a source, so that everything that reads sources reads streams."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engine.base.duration import UNKNOWN_LENGTH
from engine.base.errors import DataError
from engine.base.types import Json
from engine.base.user_errors import describe
from engine.data.collate import Collator
from engine.data.examples import Example, Examples, content_of
from engine.data.sampling.sampler import Mark, Marks, Sampler
from engine.data.source import SEPARATOR, BaseSource
from engine.data.stages import stage
from engine.data.streams.cursor import StreamReader
from engine.data.streams.order import StreamOrder
from engine.data.streams.stream import BaseStream, IterableStream

KEPT_BATCHES = 8  # batches whose items are kept; a cursor keeps more if threads read further ahead of each other
FINGERPRINT_ITEMS = 16


class StreamSource(BaseSource):
    """A source that reads a stream. Indices are in the unshuffled order, and are best read in increasing order.

    Args:
        stream: the stream.
        window: examples that are shuffled together in training, over all shards.
        name: name of the stream in texts.
        counts: examples of each shard in an epoch; None if they are unknown.
    """

    reads_stream = True

    def __init__(self, stream: BaseStream, window: int, name: str, counts: Sequence[int] | None):
        self.stream, self.window, self.source_name = stream, max(1, window // stream.shards), name
        self.counts = None if counts is None else list(counts)
        self.file_states = stream.file_states
        if self.counts is not None and len(self.counts) != stream.shards:
            raise DataError(f"{name}: counts gives {len(self.counts)} numbers for {stream.shards} shards.")
        if self.counts is not None and not (min(self.counts) >= 0 < sum(self.counts)):
            raise DataError(f"{name}: no examples. A stream needs at least one; check its files and arguments.")
        if stream.transform is not None:
            self.transform = stream.transform
        self._in_order = StreamSampler(self, seed=0, shuffle=False)

    def __len__(self) -> int:
        """Number of examples of an epoch; UNKNOWN_LENGTH if it is not known."""
        return UNKNOWN_LENGTH if self.counts is None else sum(self.counts)

    def __getitem__(self, index: int) -> Example:
        return self._in_order.example(*self._in_order.shard_and_item(self._addresses([index])[0]))

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the examples at `indices` `[batch]` as arrays `[batch, ...]`."""
        return self._in_order.read(self._addresses(indices))

    def _addresses(self, indices: Any) -> np.ndarray:
        return self._in_order.addresses(np.asarray(indices, np.int64))

    def sampler(self, seed: int, shuffle: bool) -> "StreamSampler":
        """Returns the sampler of a training run (`engine/data/sampling/sampler.py`)."""
        return StreamSampler(self, seed, shuffle)

    def batch_sampler(self, seed: int, shuffle: bool, batch_size: int) -> "StreamSampler":
        """Returns the sampler of a training run with this batch size, in which each process reads few shards."""
        return StreamSampler(self, seed, shuffle, batch_size)

    def limited(self, count: int) -> "StreamSource":
        """Returns the first `count` examples, spread over the shards; reads them once if the length is unknown."""
        if self.counts is None:
            counts = self._first_counts(count)
        else:
            order = StreamOrder(self.counts, self.stream.shards, window=1, seed=0)
            counts = order.needed(min(count, len(self))).tolist() if count < len(self) else self.counts
        return StreamSource(self.stream, self.window * self.stream.shards, self.source_name, counts)

    def counted(self) -> "StreamSource":
        """Returns the source with a known length, for which it reads the stream once."""
        counts = [sum(1 for _ in self._read(shard)) for shard in self._shards]
        return StreamSource(self.stream, self.window * self.stream.shards, self.source_name, counts)

    @property
    def _shards(self) -> range:
        return range(self.stream.shards)

    def _first_counts(self, count: int) -> list[int]:
        """Returns how many of the first `count` items, read from the shards in turn, each shard has; reads them."""
        readers, counts = {shard: self._read(shard) for shard in self._shards}, [0] * self.stream.shards
        while readers and sum(counts) < count:
            for shard in list(readers)[: count - sum(counts)]:
                if next(readers[shard], None) is None:
                    del readers[shard]
                else:
                    counts[shard] += 1
        return counts

    def _read(self, shard: int) -> Iterator[tuple[Any, Json]]:
        """Yields the items of a shard with their positions. Raises DataError."""
        try:
            yield from self.stream.open(shard, None)
        except Exception as error:
            where = f"shard {shard} of {self.source_name}" if self.stream.shards > 1 else self.source_name
            raise DataError(f"{where} cannot be read: {describe(error)} Correct the data.") from error

    def fingerprint(self) -> str:
        """Returns that of the stream, or a hash of its first examples; with the shards, on which the order depends."""
        own = self.stream.fingerprint()
        counts = "" if self.counts is None else f" {self.counts if len(self.counts) <= 8 else sum(self.counts)}"
        return f"{self._content() if own is None else own}{SEPARATOR}{self.stream.shards} shards{counts}"

    def _content(self) -> str:
        hashes = []
        for _ in range(2):  # two readings, to find out whether they agree
            sampler = StreamSampler(self, seed=0, shuffle=False)
            addresses = sampler.addresses(np.arange(min(len(self), FINGERPRINT_ITEMS)))
            found = hashlib.blake2b(digest_size=16)
            for address in addresses.tolist():
                found.update(content_of(functools.partial(sampler.example, *sampler.shard_and_item(address))))
            hashes.append(found.hexdigest())
        if hashes[0] != hashes[1]:
            return "examples that differ from one reading to the next"
        return f"first examples {hashes[0]}"

    def description(self, training: bool = True, mixed: bool = False, shuffle: bool = True) -> str:
        """Returns a sentence that says how the stream is read, in training or in evaluations, and if it is `mixed`."""
        shards, size = self.stream.shards, "of unknown length" if self.counts is None else f"of {len(self):,} examples"
        if isinstance(self.stream, IterableStream):
            parts = [f"{self.source_name} can only be iterated, so it is read as a stream {size}", "1 shard"]
            resume = ["every process reads all examples in order", "a resume skips the earlier ones by reading them"]
        else:
            parts = [f"{self.source_name} is a stream {size}", f"{shards} shard{'s' * (shards > 1)}"]
            own = "may read all shards" if mixed else "reads the shards of its rows"
            resume = [f"each process {own} in order", "a resume opens them at saved positions"]
        if not training:
            return f"{'; '.join(parts)}; every process reads all examples in order."
        parts += resume
        if self.window > 1 and shuffle:
            parts.append(f"data.shuffle mixes examples only within {self.window * shards:,} of them (shuffle_window)")
        if self.counts is None:
            parts.append("a shard that ends starts again")
        return f"{'; '.join(parts)}."


class StreamSampler(Sampler):
    """Sampler of a stream; an address is (number of the item in its shard) * shards + shard.

    The number counts the items of all epochs. It also holds where the shards are read (`StreamReader`).
    """

    is_marked = True

    def __init__(self, source: StreamSource, seed: int, shuffle: bool, batch_size: int | None = None):
        self._source, shards = source, source.stream.shards
        self.has_transform = source.has_transform
        self.needs_whole_batches = batch_size is not None
        window = source.window if shuffle else 1
        self._order = StreamOrder(source.counts, shards, window=window, seed=seed, batch_size=batch_size)
        kept = KEPT_BATCHES * -(-(batch_size or 64) // shards)
        self._reader = StreamReader(
            source.stream, counts=source.counts, window=window, keep=2 * window + kept, name=source.source_name
        )

    def addresses(self, positions: np.ndarray) -> np.ndarray:
        shards, items = self._order.locate(positions)
        return items * self._order.shards + shards

    def shard_and_item(self, address: int) -> tuple[int, int]:
        """Returns the shard of an address, and the number of its item."""
        item, shard = divmod(int(address), self._order.shards)
        return shard, item

    def locate(self, address: int) -> tuple[BaseSource, int]:
        return self._source, address

    def read(self, addresses: np.ndarray) -> Examples:
        places = [self.shard_and_item(address) for address in addresses.tolist()]
        batch = Collator(len(places))
        for place in places:
            batch.add(self.example(*place))
        return batch.batch(lambda row: self._name(*places[row]))

    def example(self, shard: int, item: int) -> Example:
        """Returns an example. Raises StreamReadError, and DataError if only this example is bad."""
        found = self._reader.fetch(shard, item)
        try:
            with stage("decode"):
                return self._source.stream.decode(found)
        except Exception as error:
            what = str(error) if isinstance(error, DataError) else describe(error)
            raise DataError(
                f"Example {self._name(shard, item)}: {what} Repair it, remove it, or set data.on_error=skip."
            ) from error

    def _name(self, shard: int, item: int) -> str:
        count = None if self._source.counts is None else self._source.counts[shard]
        of_shard = f" of shard {shard}" if self._order.shards > 1 else ""
        return f"{item if count is None else item % count}{of_shard} of {self._source.source_name}"

    def seek(self, marks: Marks) -> None:
        """Sets where some shards are opened: marks by shard, as `marks` returns them."""
        self._reader.seek({int(shard): (int(mark[0]), mark[1]) for shard, mark in marks.items()})

    def marks(self, position: int) -> dict[str, Mark]:
        """Returns the changed marks, by shard, from which the examples at `position` and later ones can be read."""
        return {str(shard): mark for shard, mark in self._reader.marks(self._order.needed(position)).items()}
