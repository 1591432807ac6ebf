"""Groups of parameters that are frozen until a step (`optimizer.groups.<name>.frozen_until`).

Such a run is a sequence of intervals of steps. Each has its own program, in which frozen groups have no gradient and no
optimizer state. At the end of an interval the run saves. The next interval restores that checkpoint as a resume does:
state that both optimizers have is kept, and a group that is trained from there on gets a new one.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax

from engine.base.duration import RunSize
from engine.base.errors import FieldError
from engine.base.types import PyTree
from engine.config.schema import Optimizer
from engine.training.optimizer import build_optimizer
from engine.training.schedules import frozen_steps
from engine.training.state import TrainState, abstract_state

if TYPE_CHECKING:
    from engine.training.step_spec import StepSpec


@dataclasses.dataclass(frozen=True)
class Interval:
    """Steps in which the same groups are frozen."""

    first: int
    """The first step. A checkpoint of this step has the optimizer state of the interval before."""
    until: float
    """The step at which the next interval begins; math.inf for the last interval."""
    frozen: frozenset[str]
    """Names of the groups that are frozen."""
    earlier: PyTree = None
    """Abstract optimizer state of the interval before; None for the first interval."""


def intervals(config: Optimizer, size: RunSize) -> list[Interval]:
    """Returns the intervals of a run; a group that is never trained is frozen in all of them.

    Args:
        config: config section `optimizer`.
        size: sizes of the run.
    """
    ends = {name: step for name in config.groups if (step := frozen_steps(config, name, size))}
    begins = sorted({0, *(step for step in ends.values() if step < size.total_steps)})
    return [
        Interval(first, until, frozenset(name for name, step in ends.items() if step > first))
        for first, until in zip(begins, [*begins[1:], math.inf], strict=True)
    ]


def in_interval(spec: "StepSpec", config: Optimizer, size: RunSize, step: int | None, seed: int) -> "StepSpec":
    """Returns the parts of a step in the interval of that step.

    Args:
        spec: the parts, with the optimizer of all groups.
        config: config section `optimizer`.
        size: sizes of the run.
        step: a step; None for the last interval, in which most parameters are trained.
        seed: seed of the initial state.

    Raises:
        FieldError: no parameter is trained in an interval.
    """
    found = intervals(config, size)
    parts = [_frozen(spec, config, size, interval) for interval in found]
    at = max(i for i, interval in enumerate(found) if step is None or interval.first <= step)
    interval = found[at]
    if at:
        before = parts[at - 1]
        state = abstract_state(before.model, before.tx, seed=seed, ema=False, layout=spec.layout)
        interval = dataclasses.replace(interval, earlier=state.opt_state)
    details = (*spec.optimizer.details, *(_describe(part, one) for part, one in zip(parts, found, strict=True)))
    messages = (*spec.optimizer.messages, *_messages(spec, config, size, interval))
    optimizer = dataclasses.replace(parts[at].optimizer, messages=messages, details=details)
    return dataclasses.replace(parts[at], optimizer=optimizer, interval=interval)


def _frozen(spec: "StepSpec", config: Optimizer, size: RunSize, interval: Interval) -> "StepSpec":
    """Returns the parts of a step without the frozen groups of an interval."""
    if not set(spec.groups.values()) - interval.frozen:
        problem = "leaves no parameter to train before that step"
        where = f"optimizer.groups.{min(interval.frozen)}.frozen_until"
        raise FieldError(where, problem, "Leave some parameters out of such groups.")
    trained = {path: spec.model.params[path] for path in spec.model.trained}
    optimizer = build_optimizer(
        config, size, trained, spec.model.names, spec.optimizer.roles, interval.frozen, spec.optimizer.factors
    )
    model = dataclasses.replace(spec.model, trained=tuple(optimizer.labels))
    return dataclasses.replace(spec, model=model, optimizer=optimizer)


def _describe(spec: "StepSpec", interval: Interval) -> str:
    """Returns a line for `explain`."""
    trained, whole = _count(spec, spec.model.trained), _count(spec, spec.model.params)
    end = "the last one" if interval.until == math.inf else f"step {interval.until - 1}"
    groups = f"; frozen: {', '.join(sorted(interval.frozen))}" if interval.frozen else ""
    return f"step {interval.first} to {end}: {trained:,} of {whole:,} numbers are trained{groups}"


def _messages(spec: "StepSpec", config: Optimizer, size: RunSize, interval: Interval) -> list[str]:
    """Returns sentences for the user about the groups that are frozen in an interval, or until its first step."""
    found = []
    for name in sorted(config.groups):
        step, where = frozen_steps(config, name, size), f"optimizer.groups.{name}"
        text = f"{_count(spec, [p for p, label in spec.groups.items() if label == name]):,} parameters"
        if name in interval.frozen and step >= size.total_steps:
            found.append(
                f"warning: {where}: {text} are frozen in the whole run, since frozen_until = "
                f"{config.groups[name].frozen_until} is no earlier than its last step {size.total_steps}. To freeze "
                "them on purpose, leave them out of optimizer.trainable."
            )
        elif name in interval.frozen:
            found.append(f"{where}: {text} are frozen until step {step} ({config.groups[name].frozen_until})")
        elif interval.first and step == interval.first:
            found.append(f"{where}: {text} are trained from step {step} on, with a new optimizer state")
    return found


def _count(spec: "StepSpec", paths: Sequence[str] | Mapping[str, object]) -> int:
    return sum(math.prod(spec.model.params[path].shape) for path in paths)


def with_new_groups(stored: PyTree, new: PyTree) -> PyTree:
    """Returns an optimizer state with the arrays of a stored one, and those of `new` that it lacks.

    Args:
        stored: the state of the interval before.
        new: the state of new optimizers for all groups of this interval.
    """
    kept = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(stored)}
    return jax.tree.map_with_path(lambda path, x: kept.get(jax.tree_util.keystr(path), x), new)


def begin(state: TrainState, new: PyTree) -> TrainState:
    """Returns the state at the first step of an interval, from the state with the optimizer of the interval before."""
    return dataclasses.replace(state, opt_state=with_new_groups(state.opt_state, new))
