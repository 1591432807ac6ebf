"""Training metrics as pairs: each row of a step's metrics `[names, 2]` is a `Mean`, or two sums of another metric.

A metric that is not a `Mean` takes as many rows as half of its sums need. They are named "<metric>#0", "<metric>#1"...
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from engine.base.errors import TaskError
from engine.metrics.mean import Mean, reduce_mean
from engine.metrics.metric import Metric, array_fields, is_added
from engine.metrics.results import Result
from engine.metrics.state import MetricStates, compute

MAX_SUMS = 1025  # largest number of sums in one metric: a confusion matrix of 32 classes


def pairs_of(metrics: Mapping[str, Metric], rows: jax.Array | np.ndarray | None) -> dict[str, jax.Array]:
    """Returns the rows of a batch by name, float32 `[2]` each: for a Mean its total and weight. To be traced.

    Args:
        metrics: name -> metric without collected fields.
        rows: float32 `[batch]`, 0 for a row that does not count; None if every row counts.
    """
    found: dict[str, jax.Array] = {}
    for name, metric in metrics.items():
        if type(metric) is Mean:
            found[name] = reduce_mean(metric, rows)
            continue
        flat = MetricStates({name: metric}).flat({name: metric}, rows)
        if len(flat) > MAX_SUMS:
            raise TaskError(
                f"metric {name!r} of the loss has {len(flat)} sums, allowed are {MAX_SUMS}, since each step returns "
                "them to the host. Return it from `evaluate`."
            )
        pairs = jnp.pad(flat, (0, len(flat) % 2)).reshape(-1, 2)
        found |= {f"{name}#{i}": pair for i, pair in enumerate(pairs)}
    return found


class TrainingMetrics:
    """The metrics of a Task's loss, and their rows.

    Args:
        metrics: name -> metric of abstract arrays.
    """

    def __init__(self, metrics: Mapping[str, Metric]):
        self.names = tuple(metrics)
        abstract = jax.eval_shape(lambda metrics: pairs_of(metrics, None), dict(metrics))
        self.rows = tuple(sorted(abstract))
        """Names of the rows, sorted."""
        self.added = tuple(row for row in self.rows if row in _added(metrics))
        """Those of them that the checkpoints of earlier versions of a metric lack; they are 0 there."""
        self._states = {
            name: MetricStates({name: metric}) for name, metric in metrics.items() if type(metric) is not Mean
        }

    def results(self, rows: Iterable[str], sums: np.ndarray) -> dict[str, Result]:
        """Returns the results of the metrics that are not a Mean.

        Args:
            rows: names of the rows of `sums`; others than those of these metrics are ignored.
            sums: the rows added up over steps, `[names, 2]`.
        """
        by_name = dict(zip(rows, sums, strict=True))
        found: dict[str, Result] = {}
        for name, states in self._states.items():
            mine = [row for row in self.rows if row.rpartition("#")[0] == name]
            flat = np.concatenate([by_name[row] for row in sorted(mine, key=_number)])
            found |= compute(name, states.unflat(flat)[name])
        return found

    def is_part(self, row: str) -> bool:
        """Returns whether a row is a part of a metric that is not a Mean."""
        return row.rpartition("#")[0] in self._states


def _added(metrics: Mapping[str, Metric]) -> set[str]:
    found: set[str] = set()
    for name, metric in metrics.items():
        old, new = 0, 0
        for field, _ in array_fields(metric):
            size = int(np.prod(jnp.shape(getattr(metric, field))[1:]))
            old, new = old + size * (not is_added(metric, field)), new + size
        found |= {f"{name}#{i}" for i in range(-(-old // 2), -(-new // 2))}
    return found


def _number(row: str) -> int:
    return int(row.rpartition("#")[2])
