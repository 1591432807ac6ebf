"""Builds the optimizer of a run: optax transformations with schedules, clipping, weight-decay masks and groups.

`optimizer.target` names the optimizer itself, any function `(learning_rate, **arguments) ->
optax.GradientTransformation`. Gradients are clipped first; then each group has its own optimizer.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engine.base.duration import RunSize
from engine.base.errors import ConfigError, FieldError
from engine.base.types import PyTree
from engine.base.user_errors import location
from engine.config.schema import Optimizer
from engine.config.target import build, parameters_of, resolve
from engine.metrics.values import describe_value
from engine.parallel.rules import STACKED
from engine.training.schedules import Count, Number, Schedule, build_schedule, constant, frozen_steps, message

if TYPE_CHECKING:
    from engine.training.muon import MuonChoice

Names = Mapping[str, Sequence[str | None]]
type Leaf = jax.Array | jax.ShapeDtypeStruct
type Transformation = optax.GradientTransformationExtraArgs

WHERE = "optimizer"
RATE = "learning_rate"
"""Name of the metric, and first part of those of the groups."""
MUON_ARGUMENT = "muon_weight_dimension_numbers"
"""Argument of `optax.contrib.muon`: which parameters it orthogonalises."""
ADAM_RATE = "adam_learning_rate"
"""Its argument that gives Adam a peak of its own, and the name of the metric."""
ADAM = ":adam"
"""Follows the label of a group in the key of the schedule of its Adam."""
REST = ""
"""Label of the parameters of no group."""


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
    muon: "MuonChoice | None" = None
    """Which parameters Muon orthogonalises; None without Muon."""
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
    choice: "MuonChoice | None" = None,
    frozen: Collection[str] = (),
) -> RunOptimizer:
    """Returns the optimizer of the trained parameters.

    Args:
        config: config section `optimizer`.
        size: sizes of the run, which schedules need.
        params: path -> array or shape of each trained parameter.
        names: path -> logical axes; the dimensions of a stack of layers do not count in deciding what is a matrix.
        choice: which parameters Muon orthogonalises; None: the choice of earlier versions, by names.
        frozen: groups whose parameters are frozen until a later step; they have rates, and no state.

    Raises:
        ConfigError: a group matches no parameter, or a target does not take a setting.
    """
    all_labels = group_labels(config, params)
    labels = {path: label for path, label in all_labels.items() if label not in frozen}
    schedules, messages, details = {REST: build_schedule(config, size)}, [], []
    of_adam: dict[str, Schedule] = {}
    if uses_muon(config):
        from engine.training import muon

        choice = choice or muon.earlier_choice(params, names or {})
        of_adam, messages, details = _describe_muon(config, choice, all_labels, params, size)
    else:
        choice = None
    for label in sorted({*all_labels.values(), REST}):
        section, where = _section(config, label)
        found = build_schedule(section, of_group := _size_of(config, label, size), where)
        if text := message(section, found, of_group, where):
            messages.append(text)
        if label:
            schedules[label] = found.scaled(config.groups[label].learning_rate_scale)
    schedules |= of_adam
    scales, tables = _layer_scales(config, all_labels, params, names or {})
    details += tables
    # In the same form before and after a group is unfrozen.
    is_partitioned = len(set(labels.values())) > 1 or any(group.frozen_until for group in config.groups.values())

    def make(schedules: Mapping[str, Schedule]) -> Transformation:
        parts = {}
        for label in sorted(set(labels.values())):
            parts[label] = _group(config, label, schedules, names or {}, choice)
        tx = optax.partition(parts, labels) if is_partitioned else next(iter(parts.values()))
        limits = _clip_limits(config, labels)
        before, after = ([_clip(limits)] if limits else []), ([_scale(scales)] if scales else [])
        return optax.with_extra_args_support(optax.chain(*before, tx, *after) if before or after else tx)

    periods = {label: config.groups[label].every for label in schedules if label and not label.endswith(ADAM)}
    optimizer = RunOptimizer(
        schedules, labels, make, tuple(messages), periods, choice, tuple(details), frozenset(frozen), is_partitioned
    )
    _check_targets(optimizer, {path: params[path] for path in labels}, is_scaled=bool(scales))
    return optimizer


def _check_targets(optimizer: RunOptimizer, trained: Mapping[str, Leaf], is_scaled: bool) -> None:
    """Traces the optimizer, which raises the errors of its targets."""
    state = jax.eval_shape(optimizer.tx.init, dict(trained))
    if is_scaled and _find(state, optax.contrib.ScheduleFreeState):
        problem = "is set, but a schedule-free optimizer averages the weights by one learning rate"
        raise FieldError(f"{WHERE}.layer_decay", problem, "Use another optimizer, or groups with learning_rate_scale.")
    jax.eval_shape(lambda numbers: (optimizer.with_numbers(numbers).tx, numbers)[1], optimizer.numbers)


def _section(config: Optimizer, label: str) -> tuple[Optimizer, str]:
    """Returns the settings of a group, or of no group, and their path in the config."""
    return (config.of_group(label), f"{WHERE}.groups.{label}") if label else (config, WHERE)


def _layer_scales(
    config: Optimizer, labels: Mapping[str, str], params: Mapping[str, Leaf], names: Names
) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """Returns path -> factor on the learning rate, by depth, and tables; both are empty without `layer_decay`."""
    decays = {path: _section(config, label)[0].layer_decay for path, label in labels.items()}
    if all(decay is None for decay in decays.values()):
        return {}, []
    from engine.training.layer_decay import layer_scales

    scales, table = layer_scales(decays, params, names)
    return scales, [table]


def _size_of(config: Optimizer, label: str, size: RunSize) -> RunSize:
    """Returns the sizes of the run for the schedule of a group, which begins at the step at which it is unfrozen."""
    frozen = frozen_steps(config, label, size) if label else 0
    return dataclasses.replace(size, total_steps=max(size.total_steps - frozen, 1)) if frozen else size


def _describe_muon(
    config: Optimizer, choice: "MuonChoice", labels: Mapping[str, str], params: Mapping[str, Leaf], size: RunSize
) -> tuple[dict[str, Schedule], list[str], list[str]]:
    """Returns the schedules of the `adam_learning_rate` of each group, sentences for the user, and tables."""
    schedules, messages, details = {}, [], []
    for label in sorted(set(labels.values())):
        section, where = _section(config, label)
        if is_muon(section, where):
            paths, others = [path for path in params if labels[path] == label], _other_optimizer(section, where)
            messages.append(choice.message(paths, others))
            details.append(choice.table({path: params[path] for path in paths}, others))
        if (peak := _adam_peak(section, where)) is None:
            continue
        if choice.is_earlier:
            schedules[label + ADAM] = constant(peak)
            messages.append(
                f"{where}.{ADAM_RATE} = {peak:g} follows no warm-up and no schedule, as in the version of Convoy that "
                "started this run. In a new run it does."
            )
            continue
        of_group = _size_of(config, label, size)
        schedule = build_schedule(dataclasses.replace(section, learning_rate=peak), of_group, where)
        schedules[label + ADAM] = schedule.scaled(config.groups[label].learning_rate_scale if label else 1.0)
    return schedules, messages, details


def _rate_name(key: str) -> str:
    name, label = (ADAM_RATE if key.endswith(ADAM) else RATE), key.removesuffix(ADAM)
    return f"{name}/{label}" if label else name


def _find(tree: PyTree, kind: type) -> list[Any]:
    """Returns the nodes of a class in a pytree, in order."""
    return [node for node in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)) if isinstance(node, kind)]


def _clip_limits(config: Optimizer, labels: Mapping[str, str]) -> list[tuple[float, frozenset[str]]]:
    """Returns the largest norm of each set of parameters that is clipped by its norm."""
    own = {label for label in labels.values() if label and config.groups[label].clip_norm is not None}
    limits = []
    if config.clip_norm is not None:
        limits.append((config.clip_norm, frozenset(path for path in labels if labels[path] not in own)))
    for label in sorted(own):
        limit = config.groups[label].clip_norm
        assert limit is not None
        limits.append((limit, frozenset(path for path in labels if labels[path] == label)))
    return limits


def _clip(limits: Sequence[tuple[float, frozenset[str]]]) -> Transformation:
    """Returns `optax.clip_by_global_norm` (Pascanu et al. 2012, arXiv:1211.5063) of each set of parameters.

    It takes the norm of the whole gradient as `grad_norm`.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **known: jax.Array) -> tuple[PyTree, PyTree]:
        updates = dict(updates)
        for most, paths in limits:
            part = {path: g for path, g in updates.items() if path in paths}
            norm = known["grad_norm"] if len(part) == len(updates) else optax.tree.norm(part)
            scale = jnp.where(norm < most, 1.0, most / norm)
            updates |= {path: g * scale.astype(g.dtype) for path, g in part.items()}
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _scale(scales: Mapping[str, np.ndarray]) -> Transformation:
    """Returns a transformation that multiplies updates by their scales (`layer_decay.py`)."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **known: jax.Array) -> tuple[PyTree, PyTree]:
        return {path: g * scales[path].astype(g.dtype) for path, g in updates.items()}, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def group_labels(config: Optimizer, params: Mapping[str, Leaf]) -> dict[str, str]:
    """Returns path -> name of the first group that matches, "" if none does. Raises ConfigError for unused groups."""
    labels = {}
    for path in params:
        labels[path] = next((name for name, group in config.groups.items() if re.search(group.match, path)), REST)
    for name, group in config.groups.items():
        if name not in labels.values():
            raise ConfigError(
                f"optimizer.groups.{name}.match = {group.match!r} matches no trained parameter, or only parameters of "
                f"earlier groups. Parameters: {', '.join(params)}."
            )
    return labels


def _group(
    config: Optimizer, label: str, schedules: Mapping[str, Schedule], names: Names, choice: "MuonChoice | None"
) -> optax.GradientTransformation:
    """Returns the transformation of one group, or of the parameters of no group."""
    rates = {RATE: schedules[label]}
    if label + ADAM in schedules and choice is not None and not choice.is_earlier:
        rates[ADAM_RATE] = schedules[label + ADAM]
    if label == REST:
        return _one(config, rates, names, WHERE, choice)
    group, section, where = config.groups[label], config.of_group(label), f"{WHERE}.groups.{label}"
    if group.weight_decay is not None:
        if "weight_decay" not in (parameters_of(resolve(section, where)) or {}):
            raise ConfigError(f"{where}: {section.target} takes no weight_decay. Leave it None in the group.")
        section = dataclasses.replace(section, arguments={**section.arguments, "weight_decay": group.weight_decay})
    from engine.training.every import every

    rates = {name: rate.every(group.every) for name, rate in rates.items()}
    return every(group.every, _one(section, rates, names, where, choice))


def _one(
    config: Optimizer, rates: Mapping[str, Schedule], names: Names, where: str, choice: "MuonChoice | None"
) -> optax.GradientTransformation:
    """Returns the transformation of the target of one section; `rates` are its arguments that are schedules."""
    parameters = parameters_of(resolve(config, where)) or {}
    given: dict[str, object] = dict(rates)
    for mask in {"mask", "weight_decay_mask"} & parameters.keys() - config.arguments.keys():
        given[mask] = lambda params: {path: _decays(config.decay, x, names.get(path)) for path, x in params.items()}
    if choice is not None and is_muon(config, where):
        # `optax.tree.map_params` passes an empty pytree in place of the parameters.
        given[MUON_ARGUMENT] = lambda params: choice.numbers(params) if isinstance(params, Mapping) else params
    config = dataclasses.replace(config, arguments={k: x for k, x in config.arguments.items() if k not in rates})
    try:
        found = build(config, where, **given)
    except jax.errors.JAXTypeError as error:
        problem = f"{config.target} uses the learning rate as a number of Python ({location(error)})"
        advice = (
            "It is an argument of the compiled program: pass it on to optax, or call it in `update`, with jax.numpy."
        )
        raise FieldError(f"{where}.target", problem, advice) from error
    if not (hasattr(found, "init") and hasattr(found, "update")):
        problem = f"{config.target} returned {describe_value(found)}, which is not an optax.GradientTransformation"
        raise FieldError(f"{where}.target", problem, "Name an optimizer of optax, or a function that returns one.")
    return found


def uses_muon(config: Optimizer) -> bool:
    """Returns whether the optimizer, or that of a group, takes the choice of matrices. Raises ConfigError."""
    sections = {WHERE: config, **{f"{WHERE}.groups.{name}": config.of_group(name) for name in config.groups}}
    return any(MUON_ARGUMENT in (parameters_of(resolve(each, where)) or {}) for where, each in sections.items())


def _adam_peak(config: Optimizer, where: str) -> float | None:
    """Returns the peak of the learning rate of Muon's Adam; None if it is that of Muon."""
    is_here = MUON_ARGUMENT in (parameters_of(resolve(config, where)) or {})
    peak = config.arguments.get(ADAM_RATE) if is_here else None
    return float(peak) if isinstance(peak, int | float) else None


def _other_optimizer(config: Optimizer, where: str) -> str:
    """Returns what updates the parameters that Muon does not orthogonalise."""
    if not config.target.startswith("optax."):
        return config.target
    nesterov = (parameters_of(resolve(config, where)) or {})["nesterov"].default
    return "Adam" + " with Nesterov momentum" * bool(config.arguments.get("nesterov", nesterov))


def is_muon(config: Optimizer, where: str = WHERE) -> bool:
    """Returns whether the optimizer is Muon, and the engine decides which parameters it orthogonalises.

    Args:
        config: the section, or `Optimizer.of_group`.
        where: path of the section in the config.

    Raises:
        ConfigError: the target cannot be imported.
    """
    parameters = parameters_of(resolve(config, where)) or {}
    return MUON_ARGUMENT in parameters and MUON_ARGUMENT not in config.arguments


def _decays(kind: str, x: jax.Array, names: Sequence[str | None] | None) -> bool:
    """Returns whether weight decay acts on a parameter; optax passes a masked parameter as an object without shape."""
    dimensions = len(getattr(x, "shape", ())) - sum(name in STACKED for name in names or ())
    return kind == "all" or (kind == "matrices" and dimensions >= 2)
