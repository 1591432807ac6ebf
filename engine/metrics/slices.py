"""The states of an evaluation: of all examples, of each slice of them, and of single examples, which a score ranks.

A slice is the same metrics with a mask of its examples. The score of an example is the value of a metric over this
example alone. Both merge over batches, devices and hosts as the metrics do: counts exactly, floats up to rounding.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from engine.base.errors import TaskError, did_you_mean
from engine.base.types import PyTree
from engine.metrics.mean import Mean, Sum
from engine.metrics.metric import Metric, array_fields
from engine.metrics.results import Table, named_results, scalars
from engine.metrics.state import MetricStates, Reduced

KEY = "key"  # tag that names an example: two files that both have it describe the same examples if their keys are equal
COUNT = "examples"  # metric of a slice: the number of its examples
SCORE = "loss"  # ranks the slices if the evaluation has such a metric and no score is set

type Addresses = Callable[[np.ndarray], np.ndarray]
"""Positions in an evaluation `[n]` -> indices of these examples in the dataset `[n]`."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How examples and slices are ranked.

    Attributes:
        count: number of worst examples to list.
        score: name of the number that ranks them, "<metric>" or "<metric>/<key>"; None: "loss" if there is one.
        largest: whether the largest score is worst; None: as the metric says (`direction.py`), else the largest.
        each: whether the states of all single examples are kept, too.
    """

    count: int = 0
    score: str | None = None
    largest: bool | None = None
    each: bool = False


NO_RANKING = Ranking()


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """The metrics of single examples, in the order of the dataset.

    Attributes:
        indices: indices in the dataset, int64 `[examples]`.
        slices: name -> which examples a slice has, bool `[examples]`.
        metrics: name -> metric whose fields are all `[examples, ...]`.
        tags: name -> one value for each example `[examples]`: numbers, or text of NumPy's kind U. Examples with the
            same value form a group, such as the frames of a scene. The tag `KEY`, if there is one, identifies an
            example by something that does not depend on the order of the dataset.
        content: fingerprint of the dataset; "" if it is not known.
    """

    indices: np.ndarray
    slices: Mapping[str, np.ndarray]
    metrics: Mapping[str, Metric]
    tags: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    content: str = ""


class SlicedStates:
    """The states of a Task's metrics over all examples, in each slice, and of the worst examples.

    Without slices and without a ranking it is the same as `MetricStates`.

    Args:
        metrics: as for `MetricStates`.
        slices: names of the slices.
        ranking: how examples and slices are ranked.
        where: config section of the evaluation, for error texts.

    Raises:
        TaskError: no metric has the name of the score, a metric has no entry for each example, or is named "examples".
    """

    def __init__(self, metrics: Mapping[str, Metric], slices: Sequence[str], ranking: Ranking, where: str):
        self.states, self.slices, self.ranking = MetricStates(metrics), tuple(slices), ranking
        self.score = _score_name(metrics, ranking, where)
        """Full name of the number that ranks, and the metric that gives it; None if there is none."""
        self.largest = ranking.largest
        """Whether the largest score is worst; None if that is not known, so that the largest counts as worst."""
        if self.score is not None and self.largest is None:
            from engine.metrics.direction import higher_is_better

            name, metric = self.score
            better = higher_is_better(name, metrics[metric])
            self.largest = None if better is None else not better
        self._metrics = metrics
        if slices or ranking.count or ranking.each:
            _check_rows(metrics, where)
        if slices and COUNT in metrics:
            raise TaskError(
                f"{where}.slices: {COUNT!r} is the name of the number of examples of a slice, and of a metric. Rename "
                "the metric."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics, without those of slices."""
        return self.states.names

    @property
    def is_largest_worst(self) -> bool:
        """Whether the largest score counts as worst."""
        return self.largest is not False

    @property
    def order_text(self) -> str:
        """The title of a table that the score orders."""
        name, _ = cast(tuple[str, str], self.score)
        return f"{'largest' if self.is_largest_worst else 'smallest'} {name} first"

    @property
    def abstract(self) -> Mapping[str, Metric]:
        """The metrics of a batch, of abstract arrays `[batch, ...]`."""
        return self._metrics

    @property
    def scored(self) -> Metric | None:
        """The metric that ranks examples; None if no examples are listed."""
        return self._metrics[self.score[1]] if self.score and self.ranking.count else None

    def reduce(
        self, metrics: Mapping[str, Metric], rows: jax.Array | np.ndarray, masks: Mapping[str, jax.Array]
    ) -> Reduced:
        """Returns the metrics of a batch with summed fields added up; to be traced.

        Args:
            metrics: the metrics of the batch.
            rows: float32 `[batch]`, 0 for a row that does not count.
            masks: slice -> bool `[batch]`.
        """
        found = self.states.reduce(metrics, rows)
        if self.slices:
            members = jnp.stack([masks[name] for name in self.slices]) & (rows > 0)  # [slices, batch]
            sums = jax.vmap(lambda member: self.states.sums(metrics, member))(members)
            found |= {_of_slices(kind): x for kind, x in sums.items()} | {_of_slices("members"): members}
        if self.scored is not None and self.score is not None:
            metric = metrics[self.score[1]]
            found |= {_of_score(field): jnp.asarray(getattr(metric, field)) for field, _ in array_fields(metric)}
        if self.ranking.each:
            found |= {_of_each(name): x for name, x in self.states.summed_rows(metrics).items()}
        return found | (
            {"rows": jnp.asarray(rows)} if self.slices or self.scored is not None or self.ranking.each else {}
        )

    def merger(self, addresses: Addresses = lambda positions: positions) -> "SlicedMerger":
        """Returns the merged state of no batch."""
        return SlicedMerger(self, addresses)


class SlicedMerger:
    """Adds reduced batches on the host.

    Args:
        states: the states.
        addresses: gives the indices of examples in the dataset. Collected rows are in this order, and ties too, so that
            no result depends on the batches of a source that sorts its examples by length.
    """

    def __init__(self, states: SlicedStates, addresses: Addresses):
        self._states, self._addresses = states, addresses
        self._whole = states.states.merger()
        slices = len(states.slices)
        self._sums = {kind: np.stack([x] * slices) if slices else x for kind, x in self._whole.sums.items()}
        self._examples: list[np.ndarray] = []  # indices of the rows of each batch, if a metric collects
        self._members: list[np.ndarray] = []  # one array `[slices, rows]` for each batch, if a metric collects
        self._counts = np.zeros(slices, np.int64)
        self._worst = np.zeros(0), np.zeros(0, np.int64)  # scores and indices of the worst examples so far
        self._keeps_rows = bool(self._whole.rows) or states.ranking.each
        self._summed: dict[str, list[np.ndarray]] = {}  # full name of a summed field -> its rows of each batch

    def add(self, reduced: Reduced, first: int) -> None:
        """Adds a batch; waits for its result. `first` is the position of its first example in the evaluation."""
        self._whole.add(reduced)
        if self._keeps_rows:
            kept = np.asarray(reduced["rows"]) > 0
            self._examples.append(self._addresses(first + np.flatnonzero(kept)))
            for name in self._states.states.summed_names if self._states.ranking.each else ():
                self._summed.setdefault(name, []).append(np.asarray(reduced[_of_each(name)])[kept])
        if self._states.slices:
            for kind, total in self._sums.items():
                total += np.asarray(reduced[_of_slices(kind)], total.dtype)
            members = np.asarray(reduced[_of_slices("members")])
            self._counts += members.sum(1)
            if self._keeps_rows:
                self._members.append(members[:, np.asarray(reduced["rows"]) > 0])
        if self._states.scored is not None:
            self._rank(*self._scores(reduced), first)

    def metrics(self) -> dict[str, Metric]:
        """Returns the metrics over all added examples, as numpy arrays."""
        return self._whole.metrics(_order(self._examples))

    def slices(self) -> Iterator[tuple[str, dict[str, Metric]]]:
        """Yields each slice and the metrics over its examples, with their number as `COUNT`.

        One slice after the other, since each has a copy of the collected entries of its examples.
        """
        for number, name in enumerate(self._states.slices):
            rows = {
                field: [part[members[number]] for part, members in zip(parts, self._members, strict=True)]
                for field, parts in self._whole.rows.items()
            }
            sums = {kind: x[number] for kind, x in self._sums.items()}
            count: PyTree = self._counts[number]  # merged metrics hold numpy
            found = zip(self._examples, self._members, strict=True) if self._keeps_rows else ()
            order = _order([examples[members[number]] for examples, members in found])
            yield name, {**self._states.states.merge(sums, rows, order), COUNT: Sum(count)}

    def each(self) -> Examples:
        """Returns the metrics of single examples, with `Ranking.each`."""
        order = _order(self._examples)
        metrics = self._states.states.merge({}, {**self._whole.rows, **self._summed}, order)
        indices = np.concatenate([np.zeros(0, np.int64), *self._examples])
        no_members = np.zeros((len(self._states.slices), len(indices)), bool)
        joined = np.concatenate(self._members, axis=1) if self._members else no_members
        indices, joined = (indices, joined) if order is None else (indices[order], joined[:, order])
        return Examples(indices, dict(zip(self._states.slices, joined, strict=True)), metrics)

    def worst(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scores of the worst examples, float64, and their indices in the dataset; the worst first.

        Examples without a score, as those without labels, are left out. Those for which the model gives NaN come first.
        Equal scores are in the order of the dataset.
        """
        return self._worst

    def _rank(self, scores: np.ndarray, has_score: np.ndarray, first: int) -> None:
        known, worst = np.flatnonzero(has_score), self._worst[0]
        if len(worst) == self._states.ranking.count:  # their addresses are computed one by one, so leave out the rest
            last, found = worst[-1], scores[known]
            known = known[np.isnan(found) | (found >= last if self._states.is_largest_worst else found <= last)]
        if not len(known):
            return
        scores = np.concatenate([worst, scores[known]])
        indices = np.concatenate([self._worst[1], self._addresses(first + known)])
        order = np.lexsort((indices, -scores if self._states.is_largest_worst else scores, ~np.isnan(scores)))
        chosen = order[: self._states.ranking.count]
        self._worst = scores[chosen], indices[chosen]

    def _scores(self, reduced: Reduced) -> tuple[np.ndarray, np.ndarray]:
        """Returns the score of each row, float64 `[batch]`, and whether it has one, bool `[batch]`.

        A `Mean` shows whether NaN comes from the model or from a weight of 0. With other metrics, NaN is no score.
        """
        metric, counted = cast(Metric, self._states.scored), np.asarray(reduced["rows"]) > 0
        name, metric_name = cast(tuple[str, str], self._states.score)
        fields = {field: _real(np.asarray(reduced[_of_score(field)])) for field, _ in array_fields(metric)}
        if type(metric) is Mean:  # the usual case, without a call for each example
            total, weight = (fields[field].astype(np.float64) for field in ("total", "weight"))
            has_score = counted & (weight != 0)
            return np.divide(total, weight, out=np.full(len(total), np.nan), where=has_score), has_score
        scores, rows = np.full(len(counted), np.nan), np.flatnonzero(counted)
        for field, is_collected in array_fields(metric):
            fields[field] = fields[field][rows] if is_collected else _wide(fields[field][rows])
        each = dataclasses.replace(cast(Any, metric), **fields).compute_each(name[len(metric_name) + 1 :])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            results = list(each)
            if len(results) != len(rows):
                raise TaskError(
                    f"{type(metric).__name__}.compute_each gave {len(results)} results for {len(rows)} examples. Yield "
                    "one result for each example, in their order."
                )
            for row, result in zip(rows, results, strict=True):
                found = scalars(named_results(metric_name, result, f"{type(metric).__name__}.compute"))
                scores[row] = found.get(name, np.nan)
        return scores, ~np.isnan(scores)


def _order(examples: Sequence[np.ndarray]) -> np.ndarray | None:
    """Returns the indices that sort the examples of all batches; None if they are in order."""
    indices = np.concatenate([np.zeros(0, np.int64), *examples])
    return None if (np.diff(indices) > 0).all() else np.argsort(indices, kind="stable")


def rank_slices(scores: Mapping[str, float], largest: bool) -> list[str]:
    """Returns the slices with a score, the worst first; slices of equal score in their order."""
    known = [name for name, score in scores.items() if not np.isnan(score)]
    return sorted(known, key=lambda name: -scores[name] if largest else scores[name])


def worst_slices(states: SlicedStates, numbers: Mapping[str, float]) -> Table:
    """Returns the table of the slices, the worst first.

    Args:
        states: the states of the evaluation, which have a score.
        numbers: the results that are numbers, by name: "<slice>/<metric>".
    """
    score, _ = cast(tuple[str, str], states.score)
    scores = {name: numbers.get(f"{name}/{score}", np.nan) for name in states.slices}
    ranked = rank_slices(scores, states.is_largest_worst)
    counts = [int(numbers[f"{name}/{COUNT}"]) for name in ranked]
    return Table({"slice": ranked, score: [scores[name] for name in ranked], COUNT: counts}, states.order_text)


def _of_slices(name: str) -> str:
    return f"slices:{name}"


def _of_score(name: str) -> str:
    return f"score:{name}"


def _of_each(name: str) -> str:
    return f"each:{name}"


def _real(x: np.ndarray) -> np.ndarray:
    """Returns an array in the type of a collected field: bfloat16 as float32."""
    return x if x.dtype.kind in "iub" else x.astype(np.float32, copy=False)


def _wide(x: np.ndarray) -> np.ndarray:
    """Returns a summed field in the type of a merged state."""
    return x.astype(np.float64 if x.dtype.kind not in "iub" else np.int64)


def _score_name(metrics: Mapping[str, Metric], ranking: Ranking, where: str) -> tuple[str, str] | None:
    """Returns the full name of the score and the name of its metric. Raises TaskError."""
    name = ranking.score
    if name is None:
        if SCORE in metrics:
            return SCORE, SCORE
        if not ranking.count:
            return None
        raise TaskError(
            f"{where}.worst: there is no metric {SCORE!r} that could rank the examples. Set {where}.score to one of "
            f"{', '.join(metrics)}, or to a number of it, such as ap/car."
        )
    found = [metric for metric in metrics if f"{name}/".startswith(f"{metric}/")]
    if not found:
        raise TaskError(
            f"{where}.score = {name!r}: no such metric.{did_you_mean(name, metrics)} Metrics here: "
            f"{', '.join(metrics)}."
        )
    return name, max(found, key=len)


def _check_rows(metrics: Mapping[str, Metric], where: str) -> None:
    """Raises TaskError for a metric that is already summed over the batch."""
    for name, metric in metrics.items():
        if any(jnp.ndim(getattr(metric, field)) == 0 for field, _ in array_fields(metric)):
            raise TaskError(
                f"{where}: slices and worst examples need one entry of each metric for each example, and {name!r} is "
                "one number for the whole batch. Return Mean.of(values) with values [batch, ...]."
            )
