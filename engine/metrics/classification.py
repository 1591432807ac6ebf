"""Metrics of classifiers: confusion matrix, ROC curve and precision-recall curve."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from engine.base.errors import TaskError
from engine.metrics.metric import Metric, added, collected
from engine.metrics.results import Curve, Image
from engine.metrics.values import rows_and_mask

if TYPE_CHECKING:
    from engine.metrics.resampling import Resampler

_SHOWN = 64  # classes up to which the matrix itself is a result


class ConfusionMatrix(Metric):
    """Counts of (true class, predicted class), with accuracy, F1 and IoU.

    F1 is the harmonic mean of precision and recall; IoU is TP / (TP + FP + FN), the Jaccard index (Everingham et al.
    2010, doi:10.1007/s11263-009-0275-4, section 4.1). Their means are over the classes that occur, as labels or as
    predictions. The matrix needs batch x classes x classes integers of memory during an evaluation step.
    """

    higher_is_better = True

    counts: jax.Array
    classes: tuple[str, ...]
    odd: jax.Array = added()  # number of values that are no class, so that they are in no cell

    @classmethod
    def of(
        cls,
        predicted: ArrayLike,
        labels: ArrayLike,
        classes: int | Sequence[str],
        where: ArrayLike | None = None,
        *,
        outside: Literal["error", "column"] = "error",
    ) -> Self:
        """Returns the confusion matrix of each example.

        Args:
            predicted: predicted classes, whole numbers `[batch, ...]`, such as `[batch]` or `[batch, height, width]`.
            labels: true classes, likewise. Labels outside of 0..classes-1, such as 255, are left out.
            classes: names of the classes, which give results of each class, or their number.
            where: mask, `[batch]` up to `[batch, ...]`.
            outside: what a prediction outside of 0..classes-1 is, where the label is a class. "error": an error, when
                the results are computed. "column": a wrong prediction, counted in an additional last column.
        """
        if jnp.shape(predicted) != jnp.shape(labels):
            raise TaskError(
                f"ConfusionMatrix.of: predicted has shape {list(jnp.shape(predicted))}, labels "
                f"{list(jnp.shape(labels))}. Both are classes, such as logits.argmax(-1), of the same shape."
            )
        if outside not in ("error", "column"):
            raise TaskError(f"ConfusionMatrix.of: outside = {outside!r}. Allowed are 'error' and 'column'.")
        names = ("",) * classes if isinstance(classes, int) else tuple(classes)
        n, column = len(names), outside == "column"
        _, kept = rows_and_mask("ConfusionMatrix", labels, where)
        true, guess = (_numbers(x).reshape(kept.shape) for x in (labels, predicted))
        kept &= (true >= 0) & (true < n)
        odd_label = kept & (true != jnp.round(true))
        odd_guess = kept & ~((guess >= 0) & (guess < n) & (guess == jnp.round(guess)))
        odd = odd_label if column else odd_label | odd_guess
        counted = kept & ~odd
        # A value that is not counted may be NaN, which is no integer.
        true, guess = (jnp.where(counted, x, 0).astype(jnp.int32) for x in (true, jnp.where(odd_guess, n, guess)))
        cells = n * (n + column)

        def count(cell: jax.Array, counted: jax.Array) -> jax.Array:
            return jnp.zeros(cells, jnp.int32).at[cell].add(counted)

        counts = jax.vmap(count)(true * (n + column) + guess, counted)
        return cls(counts.reshape(-1, n, n + column), names, odd.sum(1, dtype=jnp.int32))

    def compute(self) -> dict[str, Any]:
        """Returns accuracy, f1, iou, the matrix as an array and an image, and f1 and iou of each named class.

        Raises:
            TaskError: a prediction is outside of the classes, or a value is no whole number.
        """
        n = len(self.classes)
        if count := int(self.odd):
            raise TaskError(
                f"the classes are the whole numbers 0 to {n - 1}, found {count:,} other "
                f"{'predictions' if count > 1 else 'prediction'}. Name all classes that the model predicts, mask these "
                "values by `where`, or count predictions outside of the classes as wrong: "
                "ConfusionMatrix.of(..., outside='column')."
            )
        counts = np.asarray(self.counts, np.float64)
        hits, true, guessed = np.diag(counts), counts.sum(1), counts.sum(0)[:n]
        seen = true + guessed > 0
        f1, iou = 2 * hits / (true + guessed), hits / (true + guessed - hits)
        results: dict[str, Any] = {"accuracy": hits.sum() / counts.sum()}
        for name, values in (("f1", f1), ("iou", iou)):
            each = {label: value for label, value in zip(self.classes, values, strict=True) if label}
            results[name] = {"": values[seen].mean() if seen.any() else np.nan, **each}
        if n <= _SHOWN:
            shares = counts / np.maximum(true, 1)[:, None]
            results["matrix"] = np.asarray(self.counts)
            results["image"] = Image(1 - np.kron(shares, np.ones((8, 8))))
        return results

    def resampler(self) -> "Resampler | None":
        from engine.metrics.resampling import Sums

        return None if np.asarray(self.odd).any() else Sums({"counts": np.asarray(self.counts)}, self._of_resamples)

    def _of_resamples(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the numbers of `compute` for counts `[resamples, ...]`."""
        counts, n = sums["counts"], len(self.classes)
        hits, true, guessed = np.diagonal(counts, axis1=1, axis2=2), counts.sum(2), counts.sum(1)[:, :n]
        seen = true + guessed > 0
        results = {"accuracy": hits.sum(1) / counts.sum((1, 2))}
        for name, values in (("f1", 2 * hits / (true + guessed)), ("iou", hits / (true + guessed - hits))):
            results[name] = np.where(seen, values, 0).sum(1) / seen.sum(1)
            results |= {f"{name}/{label}": values[:, c] for c, label in enumerate(self.classes) if label}
        return results


def _numbers(x: ArrayLike) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32)


class _Scores(Metric):
    """Scores, binary labels and their mask, collected."""

    higher_is_better = True

    scores: jax.Array = collected()
    positive: jax.Array = collected()
    kept: jax.Array = collected()

    @classmethod
    def of(cls, scores: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None) -> Self:
        """Returns the scores and labels of each example.

        Args:
            scores: `[batch, ...]`; larger for positive examples. Only their order counts.
            labels: 1 or True for positive, likewise.
            where: mask, `[batch]` up to `[batch, ...]`.
        """
        scores, kept = rows_and_mask(cls.__name__, scores, where)
        positive, _ = rows_and_mask(cls.__name__, labels, None)
        if positive.shape != scores.shape:
            raise TaskError(f"{cls.__name__}.of: scores and labels differ in shape. Give each score a label.")
        return cls(scores, positive > 0, kept)

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the true and the false positives above each distinct score, from the highest, starting with 0.

        Without scores, or if one is NaN, all are 0, so that the areas are NaN.
        """
        kept = np.asarray(self.kept)
        scores, positive = np.asarray(self.scores)[kept], np.asarray(self.positive)[kept]
        if not len(scores) or np.isnan(scores).any():
            return np.zeros(2, np.int64), np.zeros(2, np.int64)
        order = np.argsort(-scores, kind="stable")
        scores, positive = scores[order], positive[order]
        ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
        hits = np.cumsum(positive, dtype=np.int64)[ends]
        return np.append(0, hits), np.append(0, ends + 1 - hits)


class Roc(_Scores):
    """ROC curve: true positive rate over false positive rate, and the area below it by the trapezoidal rule.

    Definition: Fawcett 2006, doi:10.1016/j.patrec.2005.10.010, algorithms 1 and 2. NaN without positive or negative
    examples, or if a score is NaN.
    """

    def compute(self) -> dict[str, Any]:
        """Returns auc and curve."""
        hits, misses = self._counts()
        x, y = misses / misses[-1], hits / hits[-1]
        return {"auc": float(np.trapezoid(y, x)), "curve": Curve(x, y, "false_positive_rate", "true_positive_rate")}


class PrecisionRecall(_Scores):
    """Precision over recall, with two areas below it; NaN without positive examples, or if a score is NaN.

    - average_precision: sum of precision times the increase of recall, without interpolation (Manning et al. 2008,
      Introduction to Information Retrieval, section 8.4).
    - auc: by the trapezoidal rule, which is too optimistic (Davis and Goadrich 2006, doi:10.1145/1143844.1143874).
    """

    def compute(self) -> dict[str, Any]:
        """Returns average_precision, auc and curve."""
        hits, misses = self._counts()
        recall = hits / hits[-1]
        precision = np.append(1.0, hits[1:] / (hits[1:] + misses[1:]))
        return {
            "average_precision": float((np.diff(recall) * precision[1:]).sum()) if hits[-1] else np.nan,
            "auc": float(np.trapezoid(precision, recall)),
            "curve": Curve(recall, precision, "recall", "precision"),
        }
