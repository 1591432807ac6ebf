"""Builds the optimizer of a run: optax transformations with schedules, clipping, weight-decay masks and groups.

`optimizer.target` names the optimizer itself, any function `(learning_rate, **arguments) ->
optax.GradientTransformation`. Gradients are clipped first; then each group has its own optimizer
(`optimizer_parts.py`).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
import optax

from engine.base.duration import RunSize
from engine.base.errors import ConfigError, FieldError
from engine.base.types import PyTree
from engine.config.schema import Group, Optimizer
from engine.config.setting import KINDS, listed_roles
from engine.parallel.rules import STACKED
from engine.training import optimizer_parts
from engine.training.optimizer_parts import ADAM, ADAM_RATE, RATE, REST, WHERE, clip, clip_limits, scale
from engine.training.roles import Names, Roles, earlier_roles
from engine.training.schedules import Count, Number, Schedule, build_schedule, constant, frozen_steps, message

type Leaf = jax.Array | jax.ShapeDtypeStruct
type Transformation = optax.GradientTransformationExtraArgs


@dataclasses.dataclass(frozen=True)
class RunOptimizer:
    """The optimizer of a run, whose learning rates may be arguments of a compiled program."""

    schedules: Mapping[str, Schedule]
    """Label -> learning rate of each group that has parameters, and of `REST`; with `ADAM`, that of its Adam."""
    labels: Mapping[str, str]
    """Path of a trained parameter -> label of its group."""
    make: Callable[[Mapping[str, Schedule]], Transformation]
    messages: tuple[str, ...] = ()
    """Sentences for the user about functions as schedules, and about Muon."""
    periods: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Label -> n of a group that is updated in each n-th step only."""
    roles: Roles = dataclasses.field(default_factory=lambda: Roles({}, {}))
    """The roles of the parameters."""
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Path -> factor on the learning rate, of muP."""
    roles_text: str = ""
    """The roles as text for the run directory; empty if a resume decides as well without them."""
    details: tuple[str, ...] = ()
    """Lines about each parameter, for `explain`."""
    frozen: frozenset[str] = frozenset()
    """Labels of the groups that are frozen until a later step (`unfreezing.py`)."""
    partitioned: bool = False
    """Whether the state has a part for each label."""

    @functools.cached_property
    def tx(self) -> Transformation:
        """The transformation of the trained parameters.

        Its `update` takes `grad_norm`, the global norm of the gradient, so that clipping need not read it again.
        """
        return self.make(self.schedules)

    @property
    def rate_names(self) -> tuple[str, ...]:
        """Names of the metrics of `rates`: "learning_rate", and "learning_rate/<group>" for each group.

        With Muon's `adam_learning_rate`, also "adam_learning_rate" and "adam_learning_rate/<group>".
        """
        return tuple(map(_rate_name, self.schedules))

    def rates(self, opt_state: PyTree, step: Count) -> dict[str, Number]:
        """Returns the learning rates of the next update, by the names of their metrics.

        A schedule counts the updates of its optimizer, which a skipped update does not change.

        Args:
            opt_state: state of `tx`.
            step: used where the state has no such count, as for the optimizer of an author.
        """
        several = self.partitioned
        rates: dict[str, Number] = {}
        for key, schedule in self.schedules.items():
            part, label = opt_state, key.removesuffix(ADAM)
            if label in self.frozen:
                rates[_rate_name(key)] = 0.0
                continue
            if several:
                [partition, *_] = _find(opt_state, optax.transforms.PartitionState)
                part = partition.inner_states.get(label, ())
            counts = _find(part, optax.ScaleByScheduleState) if several or label in self.labels.values() else []
            if counts:
                rates[_rate_name(key)] = schedule.every(self.periods.get(label, 1))(counts[0].count)
            else:
                rates[_rate_name(key)] = schedule(step)
        return rates

    @property
    def numbers(self) -> np.ndarray:
        """float32 `[n]`: the numbers of all schedules."""
        numbers = [number for schedule in self.schedules.values() for number in schedule.numbers]
        return np.array(numbers, np.float32)

    def with_numbers(self, numbers: jax.Array) -> "RunOptimizer":
        """Returns the same optimizer with numbers `[n]` that are traced."""
        found, first = {}, 0
        for label, schedule in self.schedules.items():
            last = first + len(schedule.numbers)
            found[label] = schedule.with_numbers([numbers[i] for i in range(first, last)])
            first = last
        return dataclasses.replace(self, schedules=found)


def build_optimizer(
    config: Optimizer,
    size: RunSize,
    params: Mapping[str, Leaf],
    names: Names | None = None,
    roles: Roles | None = None,
    frozen: Collection[str] = (),
    factors: Mapping[str, float] | None = None,
) -> RunOptimizer:
    """Returns the optimizer of the trained parameters.

    Args:
        config: config section `optimizer`.
        size: sizes of the run.
        params: path -> array or shape of each trained parameter.
        names: path -> logical axes; the dimensions of a stack of layers do not count in deciding what is a matrix.
        roles: the roles of the parameters; None: by the rules of earlier versions.
        frozen: groups whose parameters are frozen until a later step; they have rates, and no state.
        factors: path -> factor on the learning rate (`mup.py`); None: no factor.

    Raises:
        ConfigError: a group matches no parameter, or a target does not take a setting.
    """
    names = names or {}
    earlier = earlier_roles(params, names)
    roles = roles or earlier
    all_labels = group_labels(config, params, roles)
    labels = {path: label for path, label in all_labels.items() if label not in frozen}
    schedules, messages = _schedules(config, roles, all_labels, size)
    stacked = {path: count for path in params if (count := sum(name in STACKED for name in names.get(path, ())))}
    messages += optimizer_parts.stack_warnings(config, all_labels, stacked)
    scales, details = _layer_scales(config, all_labels, params, names, roles)
    for path, factor in (factors or {}).items():
        scales[path] = np.asarray(scales.get(path, 1.0) * factor, np.float32)
    # In the same form before and after a group is unfrozen.
    is_partitioned = len(set(labels.values())) > 1 or any(group.frozen_until for group in config.groups.values())

    def make(schedules: Mapping[str, Schedule]) -> Transformation:
        return _transformation(config, labels, schedules, roles, scales, stacked, is_partitioned=is_partitioned)

    optimizer = RunOptimizer(
        schedules=schedules,
        labels=labels,
        make=make,
        messages=tuple(messages),
        periods={label: config.groups[label].every for label in schedules if label and not label.endswith(ADAM)},
        roles=roles,
        factors=factors or {},
        roles_text=roles.to_text() if roles.must_be_stored(earlier) else "",
        details=tuple(details),
        frozen=frozenset(frozen),
        partitioned=is_partitioned,
    )
    scaled_by = "mup" if factors else "layer_decay" if scales else ""
    _check_targets(optimizer, {path: params[path] for path in labels}, scaled_by)
    return optimizer


def _transformation(
    config: Optimizer,
    labels: Mapping[str, str],
    schedules: Mapping[str, Schedule],
    roles: Roles,
    scales: Mapping[str, np.ndarray],
    stacked: Mapping[str, int],
    *,
    is_partitioned: bool,
) -> Transformation:
    """Returns the transformation of all trained parameters: clipping, the groups, and the factors on their updates."""
    parts = {}
    for label in sorted(set(labels.values())):
        parts[label] = optimizer_parts.of_label(config, label, schedules, roles, stacked)
    tx = optax.partition(parts, labels) if is_partitioned else next(iter(parts.values()))
    limits = clip_limits(config, labels)
    before, after = ([clip(limits)] if limits else []), ([scale(scales)] if scales else [])
    return optax.with_extra_args_support(optax.chain(*before, tx, *after) if before or after else tx)


def _schedules(
    config: Optimizer, roles: Roles, labels: Mapping[str, str], size: RunSize
) -> tuple[dict[str, Schedule], list[str]]:
    """Returns the schedules by label, and sentences for the user."""
    schedules, messages = {REST: build_schedule(config, size)}, []
    of_adam: dict[str, Schedule] = {}
    if optimizer_parts.uses_matrices(config):
        of_adam, messages = _describe_matrices(config, roles, labels, size)
    for label in sorted({*labels.values(), REST}):
        section, where = _section(config, label)
        found = build_schedule(section, of_group := _size_of(config, label, size), where)
        if text := message(section, found, of_group, where):
            messages.append(text)
        if label:
            schedules[label] = found.scaled(config.groups[label].learning_rate_scale)
    return schedules | of_adam, messages


def needs_trace(config: Optimizer, *, is_resumed: bool) -> bool:
    """Returns whether the roles of parameters matter in a way that only a trace of the loss decides.

    Args:
        config: config section `optimizer`.
        is_resumed: whether a run that has stored no roles is resumed, whose matrices and depths follow names.
    """
    if config.decay not in KINDS or any(group.roles for group in config.groups.values()):
        return True
    by_depth = any(_section(config, label)[0].layer_decay is not None for label in (REST, *config.groups))
    return bool(config.mup) or (not is_resumed and (by_depth or optimizer_parts.uses_matrices(config)))


def _check_targets(optimizer: RunOptimizer, trained: Mapping[str, Leaf], scaled_by: str) -> None:
    """Traces the optimizer, which raises the errors of its targets."""
    state = jax.eval_shape(optimizer.tx.init, dict(trained))
    if scaled_by and _find(state, optax.contrib.ScheduleFreeState):
        problem = "is set, but a schedule-free optimizer averages the weights by one learning rate"
        raise FieldError(f"{WHERE}.{scaled_by}", problem, "Use another optimizer, or groups with learning_rate_scale.")
    jax.eval_shape(lambda numbers: (optimizer.with_numbers(numbers).tx, numbers)[1], optimizer.numbers)


def _section(config: Optimizer, label: str) -> tuple[Optimizer, str]:
    """Returns the settings of a group, or of no group, and their path in the config."""
    return (config.of_group(label), f"{WHERE}.groups.{label}") if label else (config, WHERE)


def _layer_scales(
    config: Optimizer, labels: Mapping[str, str], params: Mapping[str, Leaf], names: Names, roles: Roles
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns path -> factor on the learning rate, by depth, and tables; both are empty without `layer_decay`."""
    decays = {path: _section(config, label)[0].layer_decay for path, label in labels.items()}
    if all(decay is None for decay in decays.values()):
        return {}, []
    from engine.training.layer_decay import layer_scales

    scales, table = layer_scales(decays, params, names, {} if roles.is_earlier else roles.of)
    return scales, [table]


def _size_of(config: Optimizer, label: str, size: RunSize) -> RunSize:
    """Returns the sizes of the run for the schedule of a group, which begins at the step at which it is unfrozen."""
    frozen = frozen_steps(config, label, size) if label else 0
    return dataclasses.replace(size, total_steps=max(size.total_steps - frozen, 1)) if frozen else size


def _describe_matrices(
    config: Optimizer, roles: Roles, labels: Mapping[str, str], size: RunSize
) -> tuple[dict[str, Schedule], list[str]]:
    """Returns the schedules of the `adam_learning_rate` of each group, and sentences for the user."""
    schedules, messages = {}, []
    for label in sorted(set(labels.values())):
        section, where = _section(config, label)
        if optimizer_parts.takes_matrices(section, where):
            paths, others = (
                [path for path in labels if labels[path] == label],
                optimizer_parts.other_optimizer(section, where),
            )
            messages.append(roles.message(paths, optimizer_parts.name_of(section), others))
        if (peak := optimizer_parts.adam_peak(section, where)) is None:
            continue
        if roles.is_earlier:
            schedules[label + ADAM] = constant(peak)
            messages.append(
                f"{where}.{ADAM_RATE} = {peak:g} follows no warm-up and no schedule, as in the version of Convoy that "
                "started this run. In a new run it does."
            )
            continue
        of_group = _size_of(config, label, size)
        schedule = build_schedule(dataclasses.replace(section, learning_rate=peak), of_group, where)
        schedules[label + ADAM] = schedule.scaled(config.groups[label].learning_rate_scale if label else 1.0)
    return schedules, messages


def _rate_name(key: str) -> str:
    name, label = (ADAM_RATE if key.endswith(ADAM) else RATE), key.removesuffix(ADAM)
    return f"{name}/{label}" if label else name


def _find(tree: PyTree, kind: type) -> list[Any]:
    """Returns the nodes of a class in a pytree, in order."""
    return [node for node in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)) if isinstance(node, kind)]


def group_labels(config: Optimizer, params: Mapping[str, Leaf], roles: Roles) -> dict[str, str]:
    """Returns path -> name of the first group that matches, "" if none does.

    Raises:
        ConfigError: a group matches nothing. With roles that are not traced yet, one that selects roles may.
    """
    labels = {}
    for path in params:
        labels[path] = next((name for name, group in config.groups.items() if _is_in(group, path, roles)), REST)
    for name, group in config.groups.items():
        if name not in labels.values() and (roles.is_traced or not group.roles):
            found = ", ".join(f"{path} ({roles.of.get(path)})" if group.roles else path for path in params)
            wanted = f".match = {group.match!r}" + f" with roles = {group.roles!r}" * bool(group.roles)
            raise ConfigError(
                f"optimizer.groups.{name}{wanted} matches no trained parameter, or only parameters of "
                f"earlier groups. Parameters: {found}."
            )
    return labels


def _is_in(group: Group, path: str, roles: Roles) -> bool:
    """Returns whether a group matches a parameter."""
    is_named = re.search(group.match, path) is not None
    return is_named and (not group.roles or roles.of.get(path) in listed_roles(group.roles))
