"""Planners that assign pieces of documents to rows, from the lengths of the documents and a permutation.

A *piece* is a range of tokens of one document that lies in one row. A planner is created once from the lengths. Its
number of rows does not depend on the permutation, so every epoch has the same number of rows.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """The pieces of all rows of an epoch, in the order of the rows."""

    first: np.ndarray  # int64 [rows + 1]: index of the first piece of each row; the last entry is the number of pieces
    document: np.ndarray  # int64 [pieces]: index of the document in the source
    start: np.ndarray  # int64 [pieces]: index in the document of the first token of the piece
    stop: np.ndarray  # int64 [pieces]: index in the document after the last token of the piece


class SplitPlanner:
    """Concatenates the documents and cuts them at row borders: every row but the last is full."""

    def __init__(self, lengths: np.ndarray, row_length: int):
        """Creates a planner for lengths int64 `[documents]` and `row_length` tokens per row."""
        self._lengths, self._row_length = lengths, row_length
        self.items = len(lengths)
        """Size of the permutation for `plan`: the number of documents."""
        self.rows = -(-int(lengths.sum()) // row_length)

    def plan(self, order: np.ndarray) -> Plan:
        """Returns the plan for the documents in the order `order`, a permutation int64 `[items]`."""
        lengths = self._lengths[order]
        ends = np.cumsum(lengths)  # token offsets in the concatenated documents, like all of the following
        borders = np.arange(self.rows + 1) * self._row_length
        cuts = np.minimum(np.sort(np.concatenate([borders, ends]), kind="stable"), ends[-1])  # merges two sorted runs
        cuts = cuts[np.diff(cuts, prepend=-1) > 0]
        begin, end = cuts[:-1], cuts[1:]
        rank = np.searchsorted(ends, begin, side="right")  # in `order`, of the document; side="right" skips empty ones
        document_begin = ends[rank] - lengths[rank]
        return Plan(np.searchsorted(begin, borders), order[rank], begin - document_begin, end - document_begin)


class WholePlanner:
    """Packs whole documents by best-fit decreasing (Johnson et al. 1974); only documents longer than a row are cut.

    The lengths of the pieces in each row, and so the number of rows, are the same in every epoch. A permutation only
    exchanges pieces of equal length.
    """

    def __init__(self, lengths: np.ndarray, row_length: int):
        """Creates a planner for lengths int64 `[documents]` and `row_length` tokens per row."""
        counts = -(-lengths // row_length)
        self._document = np.repeat(np.arange(len(lengths)), counts)
        piece_number = np.arange(len(self._document)) - np.repeat(np.cumsum(counts) - counts, counts)  # in its document
        self._start = piece_number * row_length
        self._stop = np.minimum(self._start + row_length, lengths[self._document])
        self._sizes = self._stop - self._start
        rows = best_fit(np.sort(self._sizes)[::-1], row_length)
        self._by_row = np.argsort(rows, kind="stable")  # ranks of the pieces by decreasing size, sorted by row
        self.items = len(self._document)
        """Size of the permutation for `plan`: the number of pieces."""
        self.rows = int(rows.max()) + 1
        self._first = np.searchsorted(rows[self._by_row], np.arange(self.rows + 1))
        self.pieces = np.diff(self._first)
        """Number of pieces of each row, int64 `[rows]`; the same in every epoch."""

    def plan(self, order: np.ndarray) -> Plan:
        """Returns the plan in which pieces of equal length have the order `order`, a permutation int64 `[items]`."""
        by_size = order[np.argsort(-self._sizes[order], kind="stable")]  # pieces by decreasing size, ties as in `order`
        pieces = by_size[self._by_row]
        return Plan(self._first, self._document[pieces], self._start[pieces], self._stop[pieces])


def best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Returns the row of each item, int64 `[items]`: the fullest row with enough space for the item, else a new row.

    Items of equal size are placed together, so the time grows with the number of distinct sizes, not of items.

    Args:
        sizes: integers `[items]` from 1 to `capacity`, in decreasing order.
        capacity: capacity of a row.
    """
    found = np.empty(len(sizes), np.int64)
    open_rows: dict[int, list[np.ndarray]] = {}  # free space -> arrays of rows with that much free space
    spaces: list[int] = []  # keys of open_rows, in increasing order

    def add_open(space: int, rows: np.ndarray) -> None:
        if len(rows):
            if space not in open_rows:
                insort(spaces, space)
            open_rows.setdefault(space, []).append(rows)

    row_count = done = 0  # rows that exist, items that are placed
    for size, count in zip(*(part.tolist()[::-1] for part in np.unique(sizes, return_counts=True)), strict=True):
        end = done + count
        while done < end:
            smallest = bisect_left(spaces, size)  # index of the smallest sufficient space: the fullest rows
            if smallest == len(spaces):
                new = -(-(end - done) // (capacity // size))
                add_open(capacity, np.arange(row_count, row_count + new))
                row_count += new
            space = spaces[smallest]
            rows = open_rows[space].pop()
            if not open_rows[space]:
                del open_rows[space], spaces[smallest]
            # A row that receives an item stays the fullest row; it receives items while it has enough space.
            per_row = space // size
            used = min(len(rows), -(-(end - done) // per_row))
            placed = min(end - done, used * per_row)
            found[done : done + placed] = np.repeat(rows[:used], per_row)[:placed]
            add_open(space - per_row * size, rows[: used - 1])
            in_last_row = placed - (used - 1) * per_row
            add_open(space - in_last_row * size, rows[used - 1 : used])
            add_open(space, rows[used:])
            done += placed
    return found
