"""Matches the detections of one class and difficulty to labels as KITTI's evaluation code does, and averages precision.

Geiger et al. 2012, doi:10.1109/CVPR.2012.6248074, and the code `evaluate_object.cpp` of KITTI's development kit. Only
predictions that overlap a label are matched one label after the other; all frames and scores are matched together.
"""

import dataclasses

import numpy as np

RECALLS = 41  # recall 0 and the 40 recalls whose precisions are averaged
_BLOCK = 256  # frames that are matched together

OTHER, COUNTED, IGNORED = -1, 0, 1
"""Role of a label or a prediction: it takes no part, it counts, or it may match but counts neither way."""


@dataclasses.dataclass(frozen=True)
class Frames:
    """The labels and predictions of all frames for one class, difficulty and overlap.

    Attributes:
        scores: scores of predictions, float64 `[frames, predictions]`, finite where they have a role.
        roles: roles of predictions, `[frames, predictions]`.
        labels: roles of labels, `[frames, labels]`.
        overlaps: float64 `[frames, predictions, labels]`.
        in_region: predictions in a DontCare region, which are no false positives, `[frames, predictions]`.
        least: a match overlaps by more than this.
    """

    scores: np.ndarray
    roles: np.ndarray
    labels: np.ndarray
    overlaps: np.ndarray
    in_region: np.ndarray
    least: float

    def average_precision(self) -> float:
        """Returns the mean precision at 40 recalls, in 0 to 1; NaN without labels that count."""
        total = int((self.labels == COUNTED).sum())
        if not total:
            return float("nan")
        blocks = self._candidates()
        found = [block.scores_of_matches() for block in blocks]
        limits = score_limits(np.concatenate([np.empty(0), *found]), total)
        true, taken = np.zeros((2, len(limits)))
        for block in blocks:
            hits, kept = block.matched(limits)
            true, taken = true + hits, taken + kept
        alone = np.sort(self.scores[(self.roles == COUNTED) & ~self.in_region])
        false = len(alone) - np.searchsorted(alone, limits) - taken
        precision = np.zeros(max(RECALLS, len(limits)))
        precision[: len(limits)] = true / np.maximum(true + false, 1)
        return float(np.maximum.accumulate(precision[::-1])[::-1][1:RECALLS].mean())

    def _candidates(self) -> list["Frames"]:
        """Returns the predictions and labels that overlap, in blocks of frames."""
        reach = self.overlaps > self.least
        reach &= (self.roles != OTHER)[:, :, None] & (self.labels != OTHER)[:, None]
        frames = np.flatnonzero(reach.any((1, 2)))
        blocks = []
        for start in range(0, len(frames), _BLOCK):
            some = frames[start : start + _BLOCK]
            rows, columns = (_packed(reach[some].any(axis)) for axis in (2, 1))
            overlaps = np.where(reach[some], self.overlaps[some], 0)
            overlaps = np.take_along_axis(np.take_along_axis(overlaps, rows[:, :, None], 1), columns[:, None], 2)
            scores, roles, in_region = (
                np.take_along_axis(x[some], rows, 1) for x in (self.scores, self.roles, self.in_region)
            )
            labels = np.take_along_axis(self.labels[some], columns, 1)
            blocks.append(Frames(scores, roles, labels, overlaps, in_region, self.least))
        return blocks

    def scores_of_matches(self) -> np.ndarray:
        """Returns the scores of predictions that find a label when each label takes the highest score, `[matches]`."""
        free, frames, found = np.ones(self.scores.shape, bool), np.arange(len(self.scores)), []
        for label in range(self.labels.shape[1]):
            can = (self.overlaps[:, :, label] > self.least) & free
            best = np.where(can, self.scores, -np.inf).argmax(1)
            has = can.any(1)
            counts = has & (self.labels[:, label] == COUNTED) & (self.roles[frames, best] == COUNTED)
            found.append(self.scores[frames, best][counts])
            free[frames[has], best[has]] = False
        return np.concatenate(found)

    def matched(self, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of true positives, and of other possible false positives with a label, `[limits]` each.

        Each label takes the largest overlap. The first number is of labels that count; the second one is of predictions
        that have any label and lie in no DontCare region.

        Args:
            limits: predictions with at least this score take part, `[limits]`.
        """
        free = self.scores >= limits[:, None, None]  # [limits, frames, predictions]
        true, taken = np.zeros((2, len(limits)), np.int64)
        number, alone = np.arange(self.scores.shape[1]), (self.roles == COUNTED) & ~self.in_region
        for label in range(self.labels.shape[1]):
            overlap = self.overlaps[:, :, label]
            can = free & (overlap > self.least)
            counted, ignored = can & (self.roles == COUNTED), can & (self.roles == IGNORED)
            has = counted.any(-1)
            best = np.where(has, np.where(counted, overlap, -1).argmax(-1), ignored.argmax(-1))
            chosen = (number == best[..., None]) & can
            free &= ~chosen
            true += (has & (self.labels[:, label] == COUNTED)).sum(-1)
            taken += (chosen & alone).sum((1, 2))
        return true, taken


def score_limits(scores: np.ndarray, labels: int) -> np.ndarray:
    """Returns the scores whose recalls are closest to 0, 1/40, 2/40 and so on, decreasing.

    With fewer matches than recalls, each match gives one, so that a perfect detector of 10 labels has 10 of them and an
    average precision of 9/40. That is how KITTI counts.

    Args:
        scores: scores of all matches, `[matches]`.
        labels: number of labels that count.
    """
    found, recall, last = [], 0.0, len(scores) - 1
    for index, score in enumerate(np.sort(scores)[::-1].tolist()):
        left = (index + 1) / labels
        right = (index + 2) / labels if index < last else left
        if index < last and right - recall < recall - left:
            continue
        found.append(score)
        recall += 1 / (RECALLS - 1)
    return np.array(found)


def _packed(kept: np.ndarray) -> np.ndarray:
    """Returns the indices of the kept entries of each row first, in their order, `[rows, most kept of a row]`."""
    return np.argsort(~kept, axis=1, kind="stable")[:, : int(kept.sum(1).max())]
