"""Plans of packing: which piece of which document lies in which row, computed from lengths and a permutation.

Owns: the two ways to pack. Does not own: the documents and the rows made of them (`packing.py`).

Terms. *Piece*: successive tokens of one document in one row. *Plan*: the pieces of every row for one epoch. A planner
is made once from the lengths; the number of its rows does not depend on the permutation.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """The pieces of all rows, row by row; document, start and stop are int64 `[pieces]`."""

    first: np.ndarray  # int64 [rows + 1]: number of the first piece of each row; the last entry is that of all pieces
    document: np.ndarray  # index of the document
    start: np.ndarray  # first token of the piece in its document
    stop: np.ndarray  # after its last token


class SplitPlanner:
    """Documents end to end, cut at the borders of rows: every row but the last is full."""

    def __init__(self, lengths: np.ndarray, row_length: int):
        """Takes the lengths int64 `[documents]` and the tokens of a row."""
        self._lengths, self._row_length = lengths, row_length
        self.items = len(lengths)
        """What a permutation is of: the documents."""
        self.rows = -(-int(lengths.sum()) // row_length)

    def plan(self, order: np.ndarray) -> Plan:
        """Returns the plan for documents in the order of a permutation int64 `[items]`."""
        lengths = self._lengths[order]
        ends = np.cumsum(lengths)
        borders = np.arange(self.rows + 1) * self._row_length
        cuts = np.minimum(np.sort(np.concatenate([borders, ends]), kind="stable"), ends[-1])  # merges two sorted runs
        cuts = cuts[np.diff(cuts, prepend=-1) > 0]
        begin, end = cuts[:-1], cuts[1:]
        place = np.searchsorted(ends, begin, side="right")  # the first document that ends later: never an empty one
        offset = ends[place] - lengths[place]
        return Plan(np.searchsorted(begin, borders), order[place], begin - offset, end - offset)


class WholePlanner:
    """Whole documents by best fit, the longest first (Johnson et al. 1974); only what is longer than a row is cut.

    Which lengths share a row is the same in every epoch, and with it the number of rows; a permutation exchanges
    pieces of one length.
    """

    def __init__(self, lengths: np.ndarray, row_length: int):
        """Takes the lengths int64 `[documents]` and the tokens of a row."""
        counts = -(-lengths // row_length)
        self._document = np.repeat(np.arange(len(lengths)), counts)
        within = np.arange(len(self._document)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._start = within * row_length
        self._stop = np.minimum(self._start + row_length, lengths[self._document])
        self._sizes = self._stop - self._start
        rows = best_fit(np.sort(self._sizes)[::-1], row_length)
        self._by_row = np.argsort(rows, kind="stable")
        self.items = len(self._document)
        """What a permutation is of: the pieces."""
        self.rows = int(rows.max()) + 1
        self._first = np.searchsorted(rows[self._by_row], np.arange(self.rows + 1))

    def plan(self, order: np.ndarray) -> Plan:
        """Returns the plan for pieces of which those of one length come in the order of a permutation `[items]`."""
        pieces = order[np.argsort(-self._sizes[order], kind="stable")][self._by_row]
        return Plan(self._first, self._document[pieces], self._start[pieces], self._stop[pieces])


def best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Returns the row int64 `[items]` of each item: the fullest row that has room for it, else a new one.

    Items of one size are placed together, so the time grows with the number of different sizes, not of items.

    Args:
        sizes: falling, 1 to `capacity` each.
        capacity: of a row.
    """
    found = np.empty(len(sizes), np.int64)
    open_rows: dict[int, list[np.ndarray]] = {}  # free space -> rows that have it
    spaces: list[int] = []  # the keys above, rising

    def put(space: int, rows: np.ndarray) -> None:
        if len(rows):
            if space not in open_rows:
                insort(spaces, space)
            open_rows.setdefault(space, []).append(rows)

    made = done = 0
    for size, count in zip(*(part.tolist()[::-1] for part in np.unique(sizes, return_counts=True)), strict=True):
        end = done + count
        while done < end:
            at = bisect_left(spaces, size)
            if at == len(spaces):
                new = -(-(end - done) // (capacity // size))
                put(capacity, np.arange(made, made + new))
                made += new
            space = spaces[at]
            rows = open_rows[space].pop()
            if not open_rows[space]:
                del open_rows[space], spaces[at]
            each = space // size  # after one item a row is the fullest with room still, so it takes all that fit
            used = min(len(rows), -(-(end - done) // each))
            placed = min(end - done, used * each)
            found[done : done + placed] = np.repeat(rows[:used], each)[:placed]
            put(space - each * size, rows[: used - 1])
            put(space - (placed - (used - 1) * each) * size, rows[used - 1 : used])
            put(space, rows[used:])
            done += placed
    return found
