"""Planners that assign pieces of documents to rows, from the lengths of the documents and a permutation.

A piece is a range of tokens of one document. A planner is created once from the lengths; its number of rows does not
depend on the permutation, so every epoch has the same length.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """The pieces of all rows of an epoch, in the order of the rows."""

    first: np.ndarray  # int64 [rows + 1]: index of the first piece of each row, and the number of pieces at the end
    document: np.ndarray  # int64 [pieces]: index of the document
    start: np.ndarray  # int64 [pieces]: index of the first token in the document
    stop: np.ndarray  # int64 [pieces]: index after the last token


class SplitPlanner:
    """Concatenates the documents and cuts them at row borders: every row but the last is full."""

    def __init__(self, lengths: np.ndarray, row_length: int):
        """Creates a planner for lengths int64 `[documents]` and `row_length` tokens per row."""
        self._lengths, self._row_length = lengths, row_length
        self.items = len(lengths)
        """Size of the permutation: the number of documents."""
        self.rows = -(-int(lengths.sum()) // row_length)

    def plan(self, order: np.ndarray) -> Plan:
        """Returns the plan for the documents in the order of a permutation int64 `[items]`."""
        lengths = self._lengths[order]
        ends = np.cumsum(lengths)
        borders = np.arange(self.rows + 1) * self._row_length
        cuts = np.minimum(np.sort(np.concatenate([borders, ends]), kind="stable"), ends[-1])  # merges two sorted runs
        cuts = cuts[np.diff(cuts, prepend=-1) > 0]
        begin, end = cuts[:-1], cuts[1:]
        number = np.searchsorted(ends, begin, side="right")  # the first document that ends later: never an empty one
        offset = ends[number] - lengths[number]
        return Plan(np.searchsorted(begin, borders), order[number], begin - offset, end - offset)


class WholePlanner:
    """Packs whole documents by best-fit decreasing (Johnson et al. 1974); only documents longer than a row are cut.

    The combination of lengths in each row, and so the number of rows, is the same in every epoch. A permutation only
    exchanges pieces of equal length.
    """

    def __init__(self, lengths: np.ndarray, row_length: int):
        """Creates a planner for lengths int64 `[documents]` and `row_length` tokens per row."""
        counts = -(-lengths // row_length)
        self._document = np.repeat(np.arange(len(lengths)), counts)
        within = np.arange(len(self._document)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._start = within * row_length
        self._stop = np.minimum(self._start + row_length, lengths[self._document])
        self._sizes = self._stop - self._start
        rows = best_fit(np.sort(self._sizes)[::-1], row_length)
        self._by_row = np.argsort(rows, kind="stable")
        self.items = len(self._document)
        """Size of the permutation: the number of pieces."""
        self.rows = int(rows.max()) + 1
        self._first = np.searchsorted(rows[self._by_row], np.arange(self.rows + 1))

    def plan(self, order: np.ndarray) -> Plan:
        """Returns the plan in which pieces of equal length are in the order of a permutation int64 `[items]`."""
        pieces = order[np.argsort(-self._sizes[order], kind="stable")][self._by_row]
        return Plan(self._first, self._document[pieces], self._start[pieces], self._stop[pieces])


def best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Returns the row int64 `[items]` of each item: the fullest row with enough space for it, else a new row.

    Items of equal size are placed together, so the time grows with the number of distinct sizes, not of items.

    Args:
        sizes: integers `[items]` from 1 to `capacity`, in decreasing order.
        capacity: capacity of a row.
    """
    found = np.empty(len(sizes), np.int64)
    open_rows: dict[int, list[np.ndarray]] = {}  # free space -> rows with that much space
    spaces: list[int] = []  # keys of open_rows, in increasing order

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
            each = space // size  # with one item a row is still the fullest that fits, so it takes all that it can
            used = min(len(rows), -(-(end - done) // each))
            placed = min(end - done, used * each)
            found[done : done + placed] = np.repeat(rows[:used], each)[:placed]
            put(space - each * size, rows[: used - 1])
            put(space - (placed - (used - 1) * each) * size, rows[used - 1 : used])
            put(space, rows[used:])
            done += placed
    return found
