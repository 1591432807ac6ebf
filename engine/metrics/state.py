"""Reduces the metrics of a batch on the device, and merges the reduced batches on the host.

The device sums fields in float32 or int32 and passes on collected rows unchanged. The host adds in float64 and int64,
in the order of the batches, and concatenates; rows of several lengths are padded. Every process gets the same arrays,
and therefore the same results.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from engine.base.errors import TaskError
from engine.metrics.mean import Mean
from engine.metrics.metric import Metric, array_fields, fill_of, settings
from engine.metrics.results import Result, named_results
from engine.metrics.values import describe_value, not_real, pad_rows

type Reduced = dict[str, jax.Array]
"""The metrics of one batch: "float32" and "int32" with all sums, "rows" and each collected field."""


def check_metrics(metrics: Mapping[str, Metric], batch_size: int, where: str, *, collect: bool = True) -> bool:
    """Checks the metrics of a Task; returns whether every metric has one entry per row.

    Args:
        metrics: name -> metric of abstract or concrete arrays.
        batch_size: rows of the batch that was passed to the Task.
        where: name of the method, for error texts.
        collect: whether metrics may collect entries.

    Raises:
        TaskError: the metrics are no dict, a name is no text, an entry is not a Metric, or its arrays have a wrong
            shape or are not real.
    """
    if not isinstance(metrics, Mapping):
        raise TaskError(
            f"{where} returned {describe_value(metrics)}. Return a dict of metrics, name -> Mean.of(values)."
        )
    by_row = True
    for name, metric in metrics.items():
        if not isinstance(name, str) or not name:
            raise TaskError(f"{where}: metric {name!r} is not a name. Use text.")
        if not isinstance(metric, Metric):
            raise TaskError(f"{where}: metric {name!r} is {describe_value(metric)}. Return Mean.of(values) for it.")
        for field, is_collected in array_fields(metric):
            x = getattr(metric, field)
            if problem := not_real(x):
                raise TaskError(f"{where}: metric {name!r} holds {problem}, allowed are real numbers.")
            if is_collected and not collect:
                raise TaskError(
                    f"{where}: metric {name!r} collects `{field}` of all examples, which only evaluations can. Return "
                    "it from `evaluate`, or use a metric whose fields are summed."
                )
            _check_shape(metric, field, is_collected, f"{where}: metric {name!r}", batch_size)
            by_row = by_row and jnp.ndim(x) > 0
        _check_settings(metric, f"{where}: metric {name!r}")
    return by_row


def _check_shape(metric: Metric, field: str, is_collected: bool, where: str, batch_size: int) -> None:
    shape = tuple(jnp.shape(getattr(metric, field)))
    if isinstance(metric, Mean):
        if shape not in ((), (batch_size,)):
            raise TaskError(
                f"{where} has total {list(jnp.shape(metric.total))} and weight {list(jnp.shape(metric.weight))} for a "
                f"batch of {batch_size}. Allowed: [{batch_size}], one entry for each example, or scalars. "
                "Mean.of(values, where) sums the other dimensions."
            )
    elif shape[:1] != (batch_size,) and (is_collected or shape):
        raise TaskError(
            f"{where}: `{field}` of {type(metric).__name__} has shape {list(shape)} for a batch of {batch_size}. "
            f"Allowed: [{batch_size}, ...], one entry for each example{'' if is_collected else ', or a scalar'}."
        )


def _check_settings(metric: Metric, where: str) -> None:
    for name, value in settings(metric).items():
        try:
            hash(value)
        except TypeError:
            raise TaskError(
                f"{where}: `{name}` of {type(metric).__name__} is {describe_value(value)}. A field that is not "
                "annotated as an array must be hashable: use a tuple, or annotate an array with jax.Array."
            ) from None


@dataclasses.dataclass(frozen=True)
class _Field:
    metric: str
    name: str
    kind: str  # "float32" or "int32" of a sum, "" of a collected field
    shape: tuple[int, ...]  # without the batch; of a collected field, the largest
    dtype: Any
    fill: float = 0  # value of the rows that pad a collected field

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def full_name(self) -> str:
        return f"{self.metric}.{self.name}"


class MetricStates:
    """The states of a Task's metrics: their layout, their reduction on the device, and their results.

    Args:
        metrics: name -> metric of abstract arrays, as checked by `check_metrics`. If there are batches of several
            lengths, of the largest.
    """

    def __init__(self, metrics: Mapping[str, Metric]):
        self.names = tuple(sorted(metrics))
        self._metrics = {name: metrics[name] for name in self.names}
        self._fields = [field for name in self.names for field in _fields(name, metrics[name])]
        self._collected = [field for field in self._fields if not field.kind]

    def reduce(self, metrics: Mapping[str, Metric], rows: jax.Array | np.ndarray | None) -> Reduced:
        """Returns the metrics of a batch with summed fields added up; to be traced.

        Args:
            metrics: the metrics of the batch.
            rows: float32 `[batch]`, 0 for a row that does not count; None if every row counts.
        """
        kept = {field.full_name: self._array(metrics, field) for field in self._collected}
        found = kept | self.sums(metrics, rows)
        return found | ({"rows": jnp.asarray(rows)} if self._collected and rows is not None else {})

    def sums(self, metrics: Mapping[str, Metric], rows: jax.Array | np.ndarray | None) -> Reduced:
        """Returns "float32" and "int32" of `reduce`; arguments as there."""
        parts: dict[str, list[jax.Array]] = {}
        for field in self._fields:
            if not field.kind:
                continue
            x = self._array(metrics, field)
            if x.ndim:
                if rows is not None:
                    x = jnp.where(rows.reshape(-1, *(1,) * (x.ndim - 1)) > 0, x, 0)
                x = x.sum(0)
            parts.setdefault(field.kind, []).append(x.reshape(-1))
        return {kind: jnp.concatenate(arrays) for kind, arrays in parts.items()}

    def summed_rows(self, metrics: Mapping[str, Metric]) -> Reduced:
        """Returns the entries of each row of the summed fields, by full name, `[batch, ...]`; to be traced."""
        return {field.full_name: self._array(metrics, field) for field in self._fields if field.kind}

    @property
    def summed_names(self) -> list[str]:
        """Full names of the summed fields."""
        return [field.full_name for field in self._fields if field.kind]

    def _array(self, metrics: Mapping[str, Metric], field: _Field) -> jax.Array:
        return jnp.asarray(getattr(metrics[field.metric], field.name), field.dtype)

    def flat(self, metrics: Mapping[str, Metric], rows: jax.Array | np.ndarray | None) -> jax.Array:
        """Returns the summed fields of a batch as one float32 array; arguments as for `reduce`. To be traced."""
        reduced = self.reduce(metrics, rows)
        return jnp.concatenate([reduced[kind].astype(jnp.float32) for kind in sorted(reduced)])

    def unflat(self, flat: np.ndarray) -> dict[str, Metric]:
        """Returns the metrics whose sums `flat` has given, added up over batches."""
        sums, start = {}, 0
        for kind, size in sorted(self._sizes.items()):
            sums[kind], start = flat[start : start + size], start + size
        return self.merge(sums, {})

    @property
    def _sizes(self) -> dict[str, int]:
        kinds = {field.kind for field in self._fields} - {""}
        return {kind: sum(field.size for field in self._fields if field.kind == kind) for kind in kinds}

    def merge(
        self,
        sums: Mapping[str, np.ndarray],
        rows: Mapping[str, list[np.ndarray]],
        order: np.ndarray | None = None,
    ) -> dict[str, Metric]:
        """Returns the metrics over all examples, as numpy arrays.

        Args:
            sums: "float32" and "int32" -> the sums over all batches.
            rows: full name of a collected field -> the rows of each batch. A summed field that has rows here keeps
                them, too.
            order: indices that sort the rows of all batches; None keeps their order.
        """
        arrays: dict[str, dict[str, np.ndarray]] = {name: {} for name in self.names}
        start = dict.fromkeys(sums, 0)
        for field in self._fields:
            if field.kind and field.full_name not in rows:
                begin = start[field.kind]
                start[field.kind] = end = begin + field.size
                x = sums[field.kind][begin:end].reshape(field.shape)[()]
            else:
                parts = [pad_rows(part, field.shape, field.fill) for part in rows[field.full_name]]
                x = np.concatenate([np.zeros((0, *field.shape), field.dtype), *parts])
                x = x if order is None else x[order]
            arrays[field.metric][field.name] = x
        return {name: dataclasses.replace(cast(Any, self._metrics[name]), **arrays[name]) for name in self.names}

    def merger(self) -> "Merger":
        """Returns the merged state of no batch."""
        wide = {"float32": np.float64, "int32": np.int64}
        sums = {kind: np.zeros(size, wide[kind]) for kind, size in self._sizes.items()}
        return Merger(self, sums, {field.full_name: [] for field in self._collected})


class Merger:
    """Adds reduced batches on the host."""

    def __init__(self, states: MetricStates, sums: dict[str, np.ndarray], rows: dict[str, list[np.ndarray]]):
        self._states = states
        self.sums = sums
        """"float32" and "int32" -> the sums over all batches."""
        self.rows = rows
        """Full name of a collected field -> its rows of each batch, without those of weight 0."""

    def add(self, reduced: Reduced) -> None:
        """Adds a batch; waits for its result. Collected rows of weight 0 are dropped."""
        for kind, total in self.sums.items():
            total += np.asarray(reduced[kind], total.dtype)
        if self.rows:
            kept = np.asarray(reduced["rows"]) > 0
            for name, rows in self.rows.items():
                rows.append(np.asarray(reduced[name])[kept])

    def metrics(self, order: np.ndarray | None = None) -> dict[str, Metric]:
        """Returns the metrics over all added examples, as numpy arrays; `order` as for `MetricStates.merge`."""
        return self._states.merge(self.sums, self.rows, order)


def compute(name: str, metric: Metric) -> dict[str, Result]:
    """Returns the results of a metric by full name.

    Raises:
        TaskError: `compute` raises it, or returns something else; the text names the metric.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        try:
            value = metric.compute()
        except TaskError as error:
            raise TaskError(f"metric {name!r}: {error}") from error
        return named_results(name, value, f"{type(metric).__name__}.compute")


def _fields(name: str, metric: Metric) -> Iterator[_Field]:
    for field, is_collected in array_fields(metric):
        x = getattr(metric, field)
        whole = not jnp.issubdtype(x.dtype, jnp.floating)
        if not is_collected:
            kind = "int32" if whole else "float32"
            yield _Field(name, field, kind, tuple(x.shape[1:]), np.dtype(kind))
        else:
            dtype = x.dtype if whole else np.dtype(np.float32)
            yield _Field(name, field, "", tuple(x.shape[1:]), dtype, fill_of(metric, field))
