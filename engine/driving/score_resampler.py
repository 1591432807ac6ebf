"""The results of `DetectionScore` over many resamples: boxes are matched and sorted once, errors are averaged anew."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from engine.driving.matching import by_score
from engine.driving.precision_resampler import PrecisionResampler, mean_of_known_each
from engine.driving.ranked import in_order, is_tied, tie_starts
from engine.metrics.resampling import Numbers, Resampler

LEAST_RECALL = 0.1


def ranked_errors(scores: np.ndarray, hits: np.ndarray, errors: np.ndarray, total: int) -> np.ndarray:
    """Returns the errors of one class as their mean over recalls, `[errors]`.

    Args:
        scores: those of its predictions, the largest first.
        hits: whether each has a label, likewise.
        errors: errors of those that have one, `[hits, errors]`; NaN where an error is not defined.
        total: number of labels, at least 1.
    """
    recalls = np.linspace(0, 1, 101)
    at = np.interp(recalls, np.cumsum(hits) / total, scores, right=0) if hits.any() else np.zeros(101)
    first, last = round(100 * LEAST_RECALL) + 1, int(np.flatnonzero(at)[-1]) if at.any() else 0
    if last < first:
        return np.ones(errors.shape[-1])
    scores, known = scores[hits], ~np.isnan(errors)
    means = np.cumsum(np.where(known, errors, 0), axis=0) / np.maximum(np.cumsum(known, axis=0), 1)
    means[:, ~known.any(axis=0)] = 1
    by_recall = [np.interp(at[::-1], scores[::-1], column[::-1])[::-1] for column in means.T]
    return np.stack(by_recall)[:, first : last + 1].mean(axis=1)


@dataclasses.dataclass(frozen=True)
class RankedErrors:
    """The predictions of one class, in the order of their scores, and the errors of those with a label.

    Attributes:
        examples: the example of each prediction.
        scores: its score, float64.
        hits: whether it has a label.
        errors: errors of those that have one, `[hits, errors]`.
        labels: number of labels of each example, `[examples]`.
        starts: index of the first prediction of its tie, see `tie_starts`.
    """

    examples: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    errors: np.ndarray
    labels: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(
        cls, scores: np.ndarray, chosen: np.ndarray, hits: np.ndarray, errors: np.ndarray, labels: np.ndarray
    ) -> Self:
        """Returns those of the chosen predictions; arrays are `[examples, predictions, ...]`, labels `[examples]`."""
        order = by_score(scores[chosen], "nuscenes")
        ranked, examples = hits[chosen][order], np.nonzero(chosen)[0][order]
        values, starts = scores[chosen][order].astype(np.float64), tie_starts(scores[chosen][order], examples)
        return cls(examples, values, ranked, errors[chosen][order][ranked], labels, starts)

    def subset(self, rows: np.ndarray) -> Self:
        """Returns those of some examples."""
        new = np.full(len(self.labels), -1)
        new[rows] = np.arange(len(rows))
        examples = new[self.examples]
        kept = examples >= 0
        errors, starts = self.errors[kept[self.hits]], np.cumsum(kept)[self.starts[kept]] - 1
        return type(self)(examples[kept], self.scores[kept], self.hits[kept], errors, self.labels[rows], starts)

    def means(self, counts: np.ndarray) -> np.ndarray:
        """Returns the errors over each resample, `[resamples, errors]`; NaN without labels."""
        found = np.full((len(counts), self.errors.shape[-1]), np.nan)
        has_ties, hit = bool(is_tied(self.starts).any()), np.cumsum(self.hits) - 1  # row of `errors`
        for number, row in enumerate(counts):
            if total := int(row @ self.labels):
                weights = row.take(self.examples)
                at = in_order(self.starts, weights)[0] if has_ties else np.repeat(np.arange(len(weights)), weights)
                scores, hits = self.scores[at], self.hits[at]
                found[number] = ranked_errors(scores, hits, self.errors[hit[at[hits]]], total)
        return found


class ScoreResampler(Resampler):
    """See `DetectionScore.resampler`.

    Args:
        classes: names of the classes.
        errors: names of the errors, the last of which needs attributes.
        left_out: which errors are not defined, bool `[classes, errors]`.
        has_attribute: whether each example has an attribute, `[examples]`.
        parts: "" or a range -> its average precision, and the errors of each class.
    """

    def __init__(
        self,
        classes: Sequence[str],
        errors: Sequence[str],
        left_out: np.ndarray,
        has_attribute: np.ndarray,
        parts: Mapping[str, tuple[PrecisionResampler, Sequence[RankedErrors]]],
    ):
        self._classes, self._errors, self._left_out = classes, errors, left_out
        self._has_attribute, self._parts = has_attribute, parts

    def subset(self, rows: np.ndarray) -> Self:
        parts = {
            name: (precision.subset(rows), [ranked.subset(rows) for ranked in by_class])
            for name, (precision, by_class) in self._parts.items()
        }
        return type(self)(self._classes, self._errors, self._left_out, self._has_attribute[rows], parts)

    def numbers(self, counts: np.ndarray) -> Numbers:
        found: Numbers = {}
        without = counts @ self._has_attribute.astype(np.int64) == 0
        for name, (precision, by_class) in self._parts.items():
            values = np.stack([ranked.means(counts) for ranked in by_class], axis=1)  # [resamples, classes, errors]
            values[:, self._left_out] = np.nan
            values[without, :, -1] = np.nan
            for key, part in self._scored(precision.numbers(counts), values).items():
                found["/".join(filter(None, (name, key)))] = part
        return found

    def _scored(self, precision: Numbers, values: np.ndarray) -> Numbers:
        means = np.stack([mean_of_known_each(column) for column in np.moveaxis(values, -1, 0)], axis=-1)
        known = ~np.isnan(means)
        summed = np.where(known, np.maximum(0, 1 - means), 0).sum(1)
        found = {"": (5 * precision[""] + summed) / (5 + known.sum(1))}
        found |= {"/".join(filter(None, ("ap", key))): part for key, part in precision.items()}
        for number, name in enumerate(self._errors):
            found[f"{name}_error"] = means[:, number]
            found |= {f"{name}_error/{label}": values[:, c, number] for c, label in enumerate(self._classes)}
        return found
