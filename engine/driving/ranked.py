"""Areas below precision over recall: of ranked predictions, and of many resamples of them at once.

A resample says how often each example counts, so each of its predictions counts as often. Hits and predictions up to a
prediction are then sums of these counts: predictions are sorted only once, and none is repeated. Of ties within an
example, each copy of the example is written out, since the ties of one copy come before those of the next one.
"""

import dataclasses
from typing import Self

import numpy as np

from engine.driving.matching import by_score

_BLOCK = 2**18  # entries of an array of a block, so that it stays in the cache of a core
_LONG = 4096  # hits from which on each row is searched by itself
_RECALLS = np.linspace(0, 1, 101)


def average_precision(scores: np.ndarray, hits: np.ndarray, total: int, area: str) -> float:
    """Returns the area below precision over recall of predictions of one class; NaN without labels.

    Args:
        scores: `[predictions]`; for equal scores see AveragePrecision.
        hits: whether each has a label, likewise.
        total: number of labels.
        area: how the area is computed, see AveragePrecision.
    """
    if not total:
        return float("nan")
    order = by_score(scores, area)
    ends = np.arange(len(scores))
    if area not in ("coco", "nuscenes"):
        ends = ends[np.append(np.diff(scores[order]) != 0, True)[: len(ends)]]
    true = np.cumsum(hits[order], dtype=np.int64)[ends]
    recall, precision = true / total, true / (ends + 1)
    if area == "nuscenes":
        if not hits.any():
            return 0.0
        sampled = np.interp(np.linspace(0, 1, 101), recall, precision, right=0)[11:]
        return float(np.maximum(sampled - 0.1, 0).mean() / 0.9)
    if area != "sum":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    if area == "coco":
        at = np.searchsorted(recall, np.linspace(0, 1, 101))
        return float(np.append(precision, 0)[at].mean())
    return float((np.diff(recall, prepend=0) * precision).sum())


def mean_of_known(values: np.ndarray) -> float:
    """Returns the mean of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The predictions of one class, in the order of their scores, and which of them are hits.

    Attributes:
        examples: the example of each prediction, `[predictions]`.
        at: indices of the predictions that are a hit at some threshold, `[hits]`.
        ends: index of the last prediction with the score of each of them, likewise.
        hits: which of them is a hit at each threshold: 1 or 0, int32 `[thresholds, 1, hits]`.
        labels: number of labels of each example, `[examples]`.
        area: how the area is computed, see `AveragePrecision`.
        starts: index of the first prediction of its tie, `[predictions]`: its own, if ties do not matter.
    """

    examples: np.ndarray
    at: np.ndarray
    ends: np.ndarray
    hits: np.ndarray
    labels: np.ndarray
    area: str
    starts: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, chosen: np.ndarray, hits: np.ndarray, labels: np.ndarray, area: str) -> Self:
        """Returns the ranked predictions of a class.

        Args:
            scores: `[examples, predictions]`.
            chosen: the predictions that count, likewise.
            hits: which predictions have a label, `[thresholds, examples, predictions]`.
            labels: number of labels of each example.
            area: see `AveragePrecision`.
        """
        order = by_score(scores[chosen], area)
        ranked, ranked_hits = scores[chosen][order], hits[:, chosen][:, order]
        last = np.flatnonzero(np.append(np.diff(ranked) != 0, True)[: len(order)])
        ends = last[np.searchsorted(last, np.arange(len(order)))] if len(order) else order
        at, examples = np.flatnonzero(ranked_hits.any(0)), np.nonzero(chosen)[0][order]
        found, starts = ranked_hits[:, None, at].astype(np.int32), np.arange(len(order))
        if area in ("coco", "nuscenes"):  # the other areas count predictions of equal scores together
            starts = _mixed(tie_starts(ranked, examples), ranked_hits)
        return cls(examples, at, ends[at], found, labels.astype(np.int64), area, starts)

    def subset(self, rows: np.ndarray) -> Self:
        """Returns the predictions of some examples, given by increasing indices."""
        new = np.full(len(self.labels), -1)
        new[rows] = np.arange(len(rows))
        examples = new[self.examples]
        kept = examples >= 0
        before, own = np.cumsum(kept), kept[self.at]
        return dataclasses.replace(
            self,
            examples=examples[kept],
            at=before[self.at[own]] - 1,
            ends=before[self.ends[own]] - 1,
            hits=np.ascontiguousarray(self.hits[..., own]),
            labels=self.labels[rows],
            starts=before[self.starts[kept]] - 1,
        )

    def _with_copies(self, most: int) -> tuple["Ranked", np.ndarray | None]:
        """Returns the ranking with each tie `most` times, and the number of the copy that each prediction belongs to.

        It is -1 for a prediction that stands for all of its copies. None: all do.
        """
        tied = is_tied(self.starts)
        if not tied.any() or most < 2:
            return self, None
        own, copy = in_order(self.starts, np.where(tied, most, 1))
        place = np.full(len(self.examples), -1)  # in `at`, of each hit
        place[self.at] = np.arange(len(self.at))
        at = np.flatnonzero(place[own] >= 0)
        hits = np.ascontiguousarray(self.hits[..., place[own[at]]])
        found = dataclasses.replace(
            self, examples=self.examples[own], at=at, ends=at, hits=hits, starts=np.arange(len(own))
        )
        return found, np.where(tied[own], copy, -1)

    def average_precision(self, counts: np.ndarray) -> np.ndarray:
        """Returns the average precision at each threshold over each resample, `[resamples, thresholds]`.

        It is NaN without labels.

        Args:
            counts: how often each example counts, int32 `[resamples, examples]`.
        """
        found = np.zeros((len(counts), len(self.hits)))
        totals = np.rint(counts @ self.labels.astype(np.float64)).astype(np.int64)
        found[totals == 0] = np.nan
        if not len(self.at):
            return found
        rows, (ranked, copy) = np.flatnonzero(totals), self._with_copies(int(counts.max(initial=0)))
        block = max(1, _BLOCK // max(len(ranked.examples), ranked.hits.size))
        for first in range(0, len(rows), block):
            some = rows[first : first + block]
            weights = counts[some].take(ranked.examples, axis=1)  # of each prediction
            if copy is not None:
                weights = np.where(copy < 0, weights, weights > copy)
            seen = np.cumsum(weights, axis=1, dtype=np.int32)  # predictions up to each one
            true = weights.take(ranked.at, axis=1) * ranked.hits  # [thresholds, resamples, hits]
            np.cumsum(true, axis=2, dtype=np.int32, out=true)
            found[some] = ranked._areas(true, seen, totals[some]).T
        return found

    def _areas(self, true: np.ndarray, seen: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Returns the areas `[thresholds, resamples]`.

        Args:
            true: number of hits up to each of `at`, `[thresholds, resamples, hits]`.
            seen: number of predictions up to each one, `[resamples, predictions]`.
            total: number of labels, at least 1, `[resamples]`.
        """
        if self.area == "nuscenes":
            return _interpolated(true, seen, self.at, total[:, None])
        if self.area == "coco":
            precision = _highest_after(true / np.maximum(seen.take(self.at, axis=1), 1))
            fewest = np.maximum(_least_count(_RECALLS, total[:, None]), 1)
            at, exists = _first_hit(true, fewest)
            return np.where(exists, np.take_along_axis(precision, at, 2), 0).mean(2)
        last = np.append(np.diff(self.ends) != 0, True)  # predictions of equal scores count together
        true = true[..., last]
        precision = true / np.maximum(seen.take(self.ends[last], axis=1), 1)
        if self.area == "voc":
            precision = _highest_after(precision)
        return (np.diff(true, axis=2, prepend=0) * precision).sum(2) / total


def tie_starts(scores: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Returns the index of the first prediction with the same score and example, `[predictions]`.

    Args:
        scores: scores of ranked predictions, `[predictions]`.
        examples: the example of each, likewise.
    """
    is_first = np.append(True, (np.diff(scores) != 0) | (np.diff(examples) != 0))[: len(scores)]
    return np.maximum.accumulate(np.where(is_first, np.arange(len(scores)), 0))


def _mixed(starts: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Returns the starts without ties that are all hits, or all none, at each threshold: any order gives the same.

    Args:
        starts: what `tie_starts` returns.
        hits: which predictions have a label, `[thresholds, predictions]`.
    """
    begins, size = np.unique(starts, return_counts=True)
    if len(begins) == len(starts):
        return starts
    found = np.add.reduceat(hits.astype(np.int64), begins, axis=1)
    is_mixed = ((found > 0) & (found < size)).any(0)
    return np.where(np.repeat(is_mixed, size), starts, np.arange(len(starts)))


def is_tied(starts: np.ndarray) -> np.ndarray:
    """Returns which predictions have a tie, from what `tie_starts` returns: bool `[predictions]`."""
    return np.bincount(starts, minlength=len(starts))[starts] > 1


def in_order(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predictions of repeated examples in the order of their ranks, and the number of the copy of each.

    Args:
        starts: what `tie_starts` returns.
        counts: how often each prediction counts, `[predictions]`.
    """
    index = np.repeat(np.arange(len(starts)), counts)
    number = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.lexsort((index, number, starts[index]))
    return index[order], number[order]


def _interpolated(true: np.ndarray, seen: np.ndarray, at: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Returns the area of "nuscenes": precision between two hits is interpolated over recall."""
    recalls, resamples = _RECALLS[11:], np.arange(len(seen))[:, None]
    count = _least_count(recalls, total)
    count -= count / total > recalls  # the largest number of hits whose recall is at most this one
    start = count / total
    share = (recalls - start) / ((count + 1) / total - start)  # of the way to the next hit
    after, exists = _first_hit(true, count + 1)  # the next hit; its copies follow each other
    hits = true.ravel().take(after + true.shape[2] * np.arange(len(true) * len(seen)).reshape(*true.shape[:2], 1))
    before = seen.ravel().take(at.take(after) + seen.shape[1] * resamples)
    before += count - hits  # predictions up to the next hit, without it and its copies
    np.maximum(before, 0, out=before)  # where there is no next hit
    precision = count / np.maximum(before, 1)
    precision += before == 0  # a first hit has precision 1 from recall 0 on
    precision += ((count + 1) / (before + 1) - precision) * share
    precision *= exists
    for where in zip(*np.nonzero((count == true[..., -1:]) & (start == recalls) & (count > 0)), strict=True):
        precision[where] = count[where[1:]] / seen[where[1], -1]  # the recall of all predictions
    precision -= 0.1
    return np.maximum(precision, 0, out=precision).sum(2) / (0.9 * len(recalls))


def _least_count(recalls: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Returns the smallest numbers of hits with at least these recalls, `[resamples, recalls]`.

    It is exact, as a comparison of each recall `hits / total` with it: a product may be rounded to another number.
    """
    count = np.ceil(recalls * total).astype(np.int32)
    count -= (count > 0) & ((count - 1) / total >= recalls)
    count += count / total < recalls
    return count


def _first_hit(true: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first hit with so many hits up to it, `[resamples, recalls]`, and whether there is one.

    Both are `[thresholds, resamples, recalls]`.
    """
    thresholds, resamples, hits = true.shape
    if hits > _LONG:
        found = np.array([[row.searchsorted(c) for row, c in zip(rows, count, strict=True)] for rows in true])
    else:  # one search in all rows, each of which is above the one before
        step = int(max(true[..., -1].max(), count.max())) + 1
        number = np.arange(thresholds * resamples, dtype=np.int32 if step * true[..., 0].size < 2**31 else np.int64)
        number = number.reshape(thresholds, resamples, 1)
        found = np.searchsorted((true + step * number).ravel(), (count + step * number).ravel())
        found = found.reshape(thresholds, *count.shape) - hits * number
    return np.minimum(found, hits - 1), found < hits


def _highest_after(precision: np.ndarray) -> np.ndarray:
    """Returns the highest precision at this or a later hit."""
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
