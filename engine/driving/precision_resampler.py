"""The results of `AveragePrecision` over many resamples at once: by class, threshold, range and size."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from engine.driving.ranked import Ranked
from engine.metrics.resampling import Numbers, Resampler

if TYPE_CHECKING:
    from engine.driving.detection import AveragePrecision


@dataclasses.dataclass(frozen=True)
class Table:
    """Average precisions of all classes and thresholds, of all predictions, of a range, or of a size.

    Attributes:
        ranked: the predictions of each class: either at all thresholds, or one entry for each threshold.
        found: number of labels that the first predictions find, `[recalls_at, thresholds, classes, examples]`.
    """

    ranked: Sequence[Sequence[Ranked]]
    found: np.ndarray

    @classmethod
    def of(
        cls, metric: "AveragePrecision", labels: np.ndarray, kept: np.ndarray, hits: np.ndarray, ranks: np.ndarray
    ) -> Self:
        """Returns the table of some labels and predictions.

        Args:
            metric: the metric.
            labels: the classes of the labels that count, `[examples, labels]`; -1 for the others.
            kept: predictions that count, `[thresholds, examples, predictions]`.
            hits: predictions that have a label, likewise.
            ranks: what `class_ranks` returns.
        """
        scores, guesses, is_same = np.asarray(metric.scores), np.asarray(metric.guesses), (kept == kept[:1]).all()
        ranked, found = [], np.zeros((len(metric.recalls_at), len(kept), len(metric.classes), len(scores)))
        for c in range(len(metric.classes)):
            total, chosen = (labels == c).sum(1), kept & (guesses == c)
            groups = [(chosen[0], hits)] if is_same else zip(chosen, hits[:, None], strict=True)
            ranked.append([Ranked.of(scores, some, hit, total, metric.area) for some, hit in groups])
            for n, most in enumerate(metric.recalls_at):
                found[n, :, c] = (chosen & hits & (ranks < most)).sum(-1)
        return cls(ranked, found)

    def subset(self, rows: np.ndarray) -> Self:
        """Returns that of some examples."""
        ranked = [[part.subset(rows) for part in parts] for parts in self.ranked]
        return dataclasses.replace(self, ranked=ranked, found=self.found[..., rows])

    def values(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns average precisions `[resamples, thresholds, classes]`, and recalls `[recalls_at, ...]` likewise."""
        values = [np.concatenate([part.average_precision(counts) for part in parts], axis=1) for parts in self.ranked]
        totals = np.stack([counts @ parts[0].labels for parts in self.ranked], axis=1)  # [resamples, classes]
        found = np.moveaxis(self.found @ counts.T.astype(np.float64), -1, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack(values, axis=-1), found / np.where(totals, totals, np.nan)[:, None]


class PrecisionResampler(Resampler):
    """See `AveragePrecision.resampler`.

    Args:
        classes: names of the classes; "" for one that gives no result of its own.
        thresholds: names of the thresholds; none if there is one only.
        recalls: names of the recalls.
        tables: name of the results, "" for all and else a range or a size -> its table.
    """

    def __init__(
        self, classes: Sequence[str], thresholds: Sequence[str], recalls: Sequence[str], tables: Mapping[str, Table]
    ):
        self._classes, self._thresholds, self._recalls, self._tables = classes, thresholds, recalls, tables

    def part(self, name: str) -> Self:
        """Returns that of all ("") or of a range alone."""
        return type(self)(self._classes, self._thresholds if not name else (), (), {"": self._tables[name]})

    def subset(self, rows: np.ndarray) -> Self:
        tables = {name: table.subset(rows) for name, table in self._tables.items()}
        return type(self)(self._classes, self._thresholds, self._recalls, tables)

    def numbers(self, counts: np.ndarray) -> Numbers:
        counts = counts.astype(np.int32)
        found: Numbers = {}
        for name, table in self._tables.items():
            values, recalls = table.values(counts)
            by_class = [(label, values[..., c]) for c, label in enumerate(self._classes) if label]
            by_threshold = [(label, values[:, t]) for t, label in enumerate(self._thresholds)] if not name else []
            by_recall = [(f"recall/{label}", part) for label, part in zip(self._recalls, recalls, strict=True)]
            for key, part in (("", values), *by_class, *by_recall, *by_threshold):
                found["/".join(filter(None, (name, key)))] = mean_of_known_each(part)
        return found


def mean_of_known_each(values: np.ndarray) -> np.ndarray:
    """Returns the mean of the values that are not NaN of each resample, `[resamples]`; NaN if there are none."""
    flat = values.reshape(len(values), -1)
    known = ~np.isnan(flat)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, flat, 0).sum(1) / known.sum(1)
