"""What a step minimises: the losses of a Task in one form, whichever form its `loss` has returned.

Each optimizer group has an objective, the sum of its terms. A term is divided by its own weight over the global batch.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from engine.base.errors import TaskError
from engine.metrics.mean import Mean, by_row, divide
from engine.metrics.metric import Metric
from engine.metrics.values import describe_value
from engine.training.loss import Loss, LossSum, TaskLoss

LOSS = "loss"
EVERY = ""  # key of an objective that trains every parameter


@dataclasses.dataclass(frozen=True)
class Objective:
    """Names of the terms of each objective, and of the metrics that are logged."""

    terms: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: {EVERY: (LOSS,)})
    """Optimizer group, or EVERY, -> names of the terms of its objective."""

    @property
    def single(self) -> bool:
        """Whether one loss with one denominator trains every parameter."""
        return self.terms == {EVERY: (LOSS,)}

    @property
    def is_sum(self) -> bool:
        """Whether an objective has several terms, so that its gradient needs their global weights."""
        return any(len(names) > 1 for names in self.terms.values())

    def complete(self, sums: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the sums of all metrics, where "loss" is the sum of the values of all terms.

        Args:
            sums: name -> (total, weight) over the global batch, with an entry for each term.
        """
        if self.single:
            return dict(sums)
        pairs = [sums[name] for names in self.terms.values() for name in names]
        value = sum((divide(pair) for pair in pairs), jnp.float32(0))
        weighted = jnp.stack([pair[1] != 0 for pair in pairs]).any()
        return {**sums, LOSS: jnp.stack([value, weighted.astype(jnp.float32)])}


def losses_of(result: object, where: str) -> dict[str, Loss | LossSum]:
    """Returns the losses by optimizer group. Raises TaskError if `result` is not what a Task's `loss` may return."""
    losses = result if isinstance(result, Mapping) else {EVERY: result}
    if not losses:
        raise TaskError(f"{where} returned an empty dict. Return a Loss for each group of optimizer.groups.")
    if isinstance(result, Mapping) and EVERY in result:
        raise TaskError(f"{where} returned a loss for {EVERY!r}. Use the names of optimizer.groups as keys.")
    for name, loss in losses.items():
        if not isinstance(loss, Loss | LossSum):
            place = f" for {name!r}" if isinstance(result, Mapping) else ""
            raise TaskError(
                f"{where} returned {describe_value(loss)}{place}. Return Loss.of(values, where=..., metrics=...)."
            )
    return dict(losses)


def objective_of(result: TaskLoss) -> Objective:
    """Returns the names in the result of a Task's `loss`."""
    return Objective({group: tuple(_named(group, loss)) for group, loss in losses_of(result, "loss").items()})


def means_of(result: TaskLoss) -> dict[str, Metric]:
    """Returns the terms and the metrics in the result of a Task's `loss`, by name."""
    means: dict[str, Metric] = {}
    for group, loss in losses_of(result, "loss").items():
        for name, term in _named(group, loss).items():
            means |= {name: Mean(term.total, term.weight), **term.metrics}
    return means


def without_refused_loss(metrics: Mapping[str, Metric | None]) -> Mapping[str, Metric]:
    """Returns the result of `Task.evaluate` without a "loss" that is None, by which it leaves out the loss."""
    found: Any = metrics  # `check_metrics` refuses other results, and other entries that are None
    is_refused = isinstance(metrics, Mapping) and metrics.get(LOSS, 0) is None
    return {name: metric for name, metric in found.items() if name != LOSS} if is_refused else found


def losses_for_evaluation(result: TaskLoss) -> dict[str, Metric]:
    """Returns "loss" and the terms of a sum, of the metrics of `evaluation_metrics`."""
    metrics, terms = evaluation_metrics(result), objective_of(result).terms.values()
    names = dict.fromkeys((LOSS, *(name for group in terms for name in group)))
    return {name: metrics[name] for name in names if name in metrics}


class SumOfMeans(Metric):
    """The value of a sum of losses: each total `[batch, terms]` divided by its own weight, and added."""

    totals: jax.Array
    weights: jax.Array

    def compute(self) -> float:
        """Returns the value; a term without weight counts as 0."""
        return float(sum(total / weight for total, weight in zip(self.totals, self.weights, strict=True) if weight))


def evaluation_metrics(result: TaskLoss) -> dict[str, Metric]:
    """Returns the metrics of an evaluation of a loss: its terms, its metrics, and "loss", the sum of all terms.

    "loss" is missing if a term of a sum is a scalar instead of `[batch]`.
    """
    metrics, objective = means_of(result), objective_of(result)
    terms = [metrics[name] for names in objective.terms.values() for name in names]
    if not objective.single and all(isinstance(term, Mean) and by_row(term) for term in terms):
        stacked = [jnp.stack([getattr(term, name) for term in terms], axis=1) for name in ("total", "weight")]
        metrics[LOSS] = SumOfMeans(*stacked)
    return metrics


def check_terms(result: object, where: str) -> dict[str, Metric]:
    """Returns the terms and the metrics of the result of a Task's `loss`, by name; their arrays are not checked.

    Raises:
        TaskError: `result` is not what a `loss` may return, or two terms or metrics have the same name.
    """
    seen: dict[str, Metric] = {}
    for group, loss in losses_of(result, where).items():
        for term_name, term in _named(group, loss).items():
            if not isinstance(term.metrics, Mapping):
                problem = f"the metrics are {describe_value(term.metrics)}, allowed is a dict of name -> metric"
                raise TaskError(f"{where}: {problem}.")
            is_plain = term is result  # a plain Loss, the only term that has the name "loss"
            for name, mean in [(term_name, Mean(term.total, term.weight)), *term.metrics.items()]:
                if name == LOSS and (not is_plain or LOSS in seen):
                    raise TaskError(f"{where}: the engine uses the metric name 'loss' itself. Rename this metric.")
                if name in seen:
                    raise TaskError(f"{where}: two losses or metrics have the name {name!r}. Rename one of them.")
                seen[name] = mean
    return seen


def check_groups(objective: Objective, groups: Iterable[str], where: str) -> None:
    """Checks that each loss trains one optimizer group, and each group has a loss.

    Args:
        objective: the names of the losses.
        groups: the groups of the trained parameters; "" for parameters without a group.
        where: name of the method, for error texts.

    Raises:
        TaskError: a loss has no group, or a group has no loss.
    """
    if EVERY in objective.terms:
        return
    groups = set(groups)
    found = ", ".join(objective.terms)
    if missing := sorted(objective.terms.keys() - groups):
        raise TaskError(
            f"{where} returned a loss {missing[0]!r}, but optimizer.groups has no such group. Add "
            f"optimizer.groups.{missing[0]}.match, the regular expression of the parameters that this loss trains."
        )
    if "" in groups:
        raise TaskError(
            f"{where} returned the losses {found}, but some trained parameters belong to no group of "
            "optimizer.groups, so no loss trains them. Change a match, or freeze them with optimizer.trainable."
        )
    if unused := sorted(groups - objective.terms.keys()):
        raise TaskError(
            f"optimizer.groups.{unused[0]}: {where} returned the losses {found}, and none of them trains this group. "
            f"Return a loss {unused[0]!r}, too."
        )


def _named(group: str, loss: Loss | LossSum) -> dict[str, Loss]:
    if isinstance(loss, Loss):
        return {group or LOSS: loss}
    return {f"{group}/{name}" if group else name: term for name, term in loss.terms.items()}
