"""The order of a run over a stream: which item of which shard is read at each position.

The shards alternate as long as they have items left in the epoch. Within a shard, the items of each window of
consecutive items are permuted. Both are computed, so any position is found without reading.
"""

from collections.abc import Sequence

import numpy as np

from engine.base.duration import UNKNOWN_LENGTH
from engine.data.sampling.shuffle import EpochPermutation


class StreamOrder:
    """Maps positions of a run to (shard, item). Items of a shard are numbered on and on: epoch follows epoch.

    Args:
        counts: items of each shard in an epoch; None if they are unknown, which is one epoch without an end.
        shards: number of shards.
        window: items of a shard that are permuted together; 1 keeps their order.
        seed: seed of the permutations.
        batch_size: rows of a batch, whose examples of an epoch are then sorted by shard, so that a process, which feeds
            neighbouring rows, reads few shards. None keeps the positions as they are.
    """

    def __init__(
        self, counts: Sequence[int] | None, shards: int, *, window: int, seed: int, batch_size: int | None = None
    ):
        unknown = UNKNOWN_LENGTH // shards
        self.counts = np.full(shards, unknown) if counts is None else np.array(counts, np.int64)
        self.shards, self.window, self._seed, self._batch_size = shards, window, seed, batch_size
        self.length = int(self.counts.sum())
        # A shard takes part until its count is reached, so the parts of an epoch begin where shards end. In part j,
        # the shards `_by_count[_first[j]:]` alternate from their item `_begin[j]` on, from position `_start[j]` on.
        self._by_count = np.argsort(self.counts, kind="stable")
        self._rank = np.argsort(self._by_count)
        ends = np.unique(self.counts[self.counts > 0])
        self._begin = np.concatenate([[0], ends[:-1]])
        sorted_counts = self.counts[self._by_count]
        self._first = np.searchsorted(sorted_counts, ends, side="left")
        before = np.concatenate([[0], np.cumsum(sorted_counts)])
        self._start = before[self._first] + self._begin * (shards - self._first)
        self._permutations: dict[int, EpochPermutation] = {}  # size of a window -> its permutation

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the shards and the items in them, int64 `[n]` each, of positions int64 `[n]`."""
        if self._batch_size is None:
            shards, items = self._interleaved(positions)
        else:
            shards, items = self._sorted_by_shard(positions, self._batch_size)
        return shards, items if self.window == 1 else self._shuffled(shards, items)

    def needed(self, position: int) -> np.ndarray:
        """Returns, for each shard, the first item that this position or a later one may read, int64 `[shards]`.

        The position is the first one of a batch.
        """
        epoch, within = divmod(position, self.length)
        part = int(np.searchsorted(self._start, within, side="right")) - 1
        rounds, rest = divmod(within - int(self._start[part]), self.shards - int(self._first[part]))
        done = self._begin[part] + rounds + (self._rank - self._first[part] < rest)
        return epoch * self.counts + np.where(done < self.counts, done // self.window * self.window, self.counts)

    def _interleaved(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epoch, within = np.divmod(positions, self.length)
        part = np.searchsorted(self._start, within, side="right") - 1
        rounds, turn = np.divmod(within - self._start[part], self.shards - self._first[part])
        shards = self._by_count[self._first[part] + turn]
        return shards, epoch * self.counts[shards] + self._begin[part] + rounds

    def _sorted_by_shard(self, positions: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        batches, row = np.divmod(positions, batch_size)
        numbers, which = np.unique(batches, return_inverse=True)
        whole = numbers[:, None] * batch_size + np.arange(batch_size)
        shards, items = (part.reshape(whole.shape) for part in self._interleaved(whole.reshape(-1)))
        order = np.argsort(whole // self.length * self.shards + shards, axis=1, kind="stable")  # epochs stay apart
        found = which, order[which, row]
        return shards[found], items[found]

    def _shuffled(self, shards: np.ndarray, items: np.ndarray) -> np.ndarray:
        counts = self.counts[shards]
        epoch, within = np.divmod(items, counts)
        window, index = np.divmod(within, self.window)
        start = window * self.window
        sizes = np.minimum(self.window, counts - start)
        # Numbers the windows of all shards and epochs, so that each has a permutation of its own. Without an end, the
        # number of windows in an epoch is of no use, and would overflow.
        windows = np.where(counts < UNKNOWN_LENGTH // self.shards, -(-counts // self.window), 0)
        number = (epoch * windows + window) * self.shards + shards
        found = np.empty_like(items)
        for size in np.unique(sizes).tolist():
            chosen = sizes == size
            found[chosen] = self._permutation(size).indices(number[chosen] * size + index[chosen])
        return epoch * counts + start + found

    def _permutation(self, size: int) -> EpochPermutation:
        if size not in self._permutations:
            self._permutations[size] = EpochPermutation(size, self._seed, shuffle=True)
        return self._permutations[size]
