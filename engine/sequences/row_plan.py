"""Assigns segments of drives to the rows of the batches: each row reads one segment after the other.

An epoch reads each segment once and takes the same number of steps in every epoch. The assignment depends on the sizes
of the segments, the seed and the epoch only, so batch n is a pure function of (seed, n).
"""

import heapq

import numpy as np

from engine.data.sampling.shuffle import EpochPermutation, derive_seed


class RowPlan:
    """The plan of the rows of a run.

    The longest segment goes to the row with the least work, then the next one, and so on (longest processing time
    first, Graham 1969). So an epoch takes at most 4/3 of the fewest possible steps. In each epoch, segments of one size
    change places, rows change places, and each row reads its segments in a new order.

    Args:
        sizes: number of windows of each segment, int64 `[segments]`, each from 1.
        rows: rows of a global batch.
        seed: seed of the run.
        shuffle: whether each epoch has a new plan; otherwise the segments of a row are in stored order.
    """

    def __init__(self, sizes: np.ndarray, rows: int, seed: int, shuffle: bool):
        self._sizes, self._rows = sizes, rows
        ranked = np.sort(sizes)[::-1]
        self._row_of_rank = _deal(ranked, rows)
        self._loads = np.bincount(self._row_of_rank, ranked, minlength=rows).astype(np.int64)
        self.steps = int(self._loads.max())
        """Steps of an epoch."""
        self.idle = 1 - float(self._loads.sum()) / (self.steps * rows)
        """Share of the rows of an epoch that have no window."""
        self._drives = EpochPermutation(len(sizes), derive_seed(seed, "drives"), shuffle)
        self._places = EpochPermutation(rows, derive_seed(seed, "rows"), shuffle)
        # The latest plans of even and of odd epochs: near the end of an epoch, threads already read the next.
        self._plans: list[tuple[bytes, np.ndarray, np.ndarray]] = [(b"", np.zeros(0), np.zeros(0))] * 2

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what the rows at positions of the run read, `[n]` each.

        Returns:
            Segments (-1 for a row that has read nothing yet in its epoch), windows within these segments, and whether
            the row is idle; then the window is the last one that it has read.
        """
        steps, rows = np.divmod(positions, self._rows)
        epochs, within = np.divmod(steps, self.steps)
        epochs, which = np.unique(epochs, return_inverse=True)
        begins, order = self._plan(epochs)
        keys = (which * self._rows + rows) * self.steps + within
        at = np.searchsorted(begins, keys, side="right") - 1
        mine = (at >= 0) & (begins[at] // self.steps == keys // self.steps)  # else nothing of this row has begun
        segments = np.where(mine, order[at], -1)
        sizes = np.where(mine, self._sizes[segments], 0)
        windows = np.where(mine, keys - begins[at], 0)
        idle = windows >= sizes
        return segments, np.where(idle, np.maximum(sizes - 1, 0), windows), idle

    def epochs(self, positions: np.ndarray) -> np.ndarray:
        """Returns the epochs of positions of the run, int64 `[n]`."""
        return positions // (self._rows * self.steps)

    def _plan(self, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the plans of epochs `[epochs]`.

        Returns:
            Where each segment begins, (index of the epoch * rows + row) * steps + step in increasing order, and the
            segments in this order.
        """
        key, slot = epochs.tobytes(), int(epochs[0]) % 2
        known, begins, order = self._plans[slot]
        if known == key:
            return begins, order
        count, rows = len(self._sizes), self._rows
        place = self._drives.indices((epochs[:, None] * count + np.arange(count)).reshape(-1)).reshape(-1, count)
        ranked = np.lexsort((place, np.broadcast_to(-self._sizes, place.shape)))
        row_of = self._places.indices((epochs[:, None] * rows + np.arange(rows)).reshape(-1)).reshape(-1, rows)
        row = row_of[:, self._row_of_rank]
        read = np.lexsort((np.take_along_axis(place, ranked, 1), row))
        segments, row = np.take_along_axis(ranked, read, 1), np.take_along_axis(row, read, 1)
        loads = np.empty_like(row_of)
        np.put_along_axis(loads, row_of, np.broadcast_to(self._loads, row_of.shape), 1)
        sizes = self._sizes[segments]
        before = np.cumsum(sizes, 1) - sizes - np.take_along_axis(np.cumsum(loads, 1) - loads, row, 1)
        begins = (np.arange(len(epochs))[:, None] * rows + row) * self.steps + before
        self._plans[slot] = found = (key, begins.reshape(-1), segments.reshape(-1))
        return found[1:]


def _deal(sizes: np.ndarray, rows: int) -> np.ndarray:
    """Returns the row of each segment, int64 `[segments]`, for sizes in decreasing order."""
    loads = [(0, row) for row in range(rows)]  # a heap
    found = np.empty(len(sizes), np.int64)
    for rank, size in enumerate(sizes.tolist()):
        load, row = loads[0]
        found[rank] = row
        heapq.heapreplace(loads, (load + size, row))
    return found
