"""The parts of the optimizer of a run: the target of each section of the config, clipping, and scaling of updates."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engine.base.errors import ConfigError, FieldError
from engine.base.types import PyTree
from engine.base.user_errors import location
from engine.config.schedules import sections
from engine.config.schema import Optimizer
from engine.config.target import build, parameters_of, resolve
from engine.metrics.values import describe_value
from engine.training.roles import Roles
from engine.training.schedules import Schedule

type Transformation = optax.GradientTransformationExtraArgs

WHERE = "optimizer"
RATE = "learning_rate"
"""Name of the metric, and first part of those of the groups."""
MATRICES = ("muon_weight_dimension_numbers", "matrices")
"""Arguments of a target that take the matrices of a model: that of `optax.contrib.muon`, and that of the engine."""
STACKED = "stacked"
"""Argument of a target that takes the leading dimensions of each parameter that index layers."""
MASKS = ("mask", "weight_decay_mask")
"""Arguments of a target that take the parameters to which weight decay applies."""
ADAM_RATE = "adam_learning_rate"
"""Argument that gives the optimizer of the other parameters a peak of its own, and the name of the metric."""
ADAM = ":adam"
"""Follows the label of a group in the key of the schedule of `ADAM_RATE`."""
REST = ""
"""Label of the parameters of no group."""
REFUSED = {
    "optax.lbfgs": "needs the loss of further points: it searches along a line",
    "optax.polyak_sgd": "needs the value of the loss in its update",
    "optax.contrib.sam": "needs a second gradient",
    "optax.contrib.sophia": "needs an estimate of the diagonal of the Hessian",
    "optax.contrib.hutchinson_estimator_diag_hessian": "needs the loss as a function",
    "optax.contrib.dpsgd": "needs a gradient for each example",
    "optax.contrib.momo": "needs the value of the loss in its update",
    "optax.contrib.momo_adam": "needs the value of the loss in its update",
}
"""Targets whose update takes more than gradients and parameters, and what."""
NORMS_OF_ARRAYS = ("optax.lamb", "optax.lars", "optax.adafactor", "optax.novograd", "optax.fromage")
"""Targets that compute norms or factors of each array, also of one that holds several matrices."""


def of_label(
    config: Optimizer, label: str, schedules: Mapping[str, Schedule], roles: Roles, stacked: Mapping[str, int]
) -> optax.GradientTransformation:
    """Returns the transformation of one group, or of the parameters of no group.

    Args:
        config: config section `optimizer`.
        label: name of the group, or `REST`.
        schedules: label -> learning rate, and label with `ADAM` -> that of the other parameters.
        roles: the roles of the parameters.
        stacked: path of a parameter of stacked layers -> number of leading dimensions that index the layers.

    Raises:
        ConfigError: the target does not take a setting, or is no optimizer.
    """
    rates = {RATE: schedules[label]}
    if label + ADAM in schedules and not roles.is_earlier:
        rates[ADAM_RATE] = schedules[label + ADAM]
    if label == REST:
        return _of_section(config, rates, WHERE, roles, stacked)
    group, section, where = config.groups[label], config.of_group(label), f"{WHERE}.groups.{label}"
    if group.weight_decay is not None:
        if "weight_decay" not in _parameters(section, where):
            raise ConfigError(f"{where}: {section.target} takes no weight_decay. Leave it None in the group.")
        section = dataclasses.replace(section, arguments={**section.arguments, "weight_decay": group.weight_decay})
    from engine.training.every import every

    rates = {name: rate.every(group.every) for name, rate in rates.items()}
    return every(group.every, _of_section(section, rates, where, roles, stacked))


def _of_section(
    config: Optimizer, rates: Mapping[str, Schedule], where: str, roles: Roles, stacked: Mapping[str, int]
) -> optax.GradientTransformation:
    """Returns the transformation of the target of one section; `rates` are its arguments that are schedules."""
    if (reason := REFUSED.get(config.target)) is not None:
        advice = "Use another optimizer, or a Task with its own `update`; engine.optimizers.sam_update is one."
        raise FieldError(f"{where}.target", f"{config.target} {reason}, which a train step does not pass", advice)
    free = _parameters(config, where).keys() - config.arguments.keys()
    given: dict[str, object] = dict(rates)
    for name in free.intersection(MASKS):
        given[name] = lambda params: {path: roles.decays(config.decay, path) for path in params}
    for name in free.intersection(MATRICES):
        # `optax.tree.map_params` passes an empty pytree in place of the parameters.
        given[name] = lambda params: roles.numbers(params) if isinstance(params, Mapping) else params
    if STACKED in free:
        given[STACKED] = lambda params: stacked
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


def _parameters(config: Optimizer, where: str) -> Mapping[str, object]:
    return parameters_of(resolve(config, where)) or {}


def stack_warnings(config: Optimizer, labels: Mapping[str, str], stacked: Collection[str]) -> list[str]:
    """Returns warnings about optimizers that treat a stack of layers as one array.

    Args:
        config: config section `optimizer`.
        labels: path -> group of each trained parameter.
        stacked: paths of the parameters of stacked layers.
    """
    found: dict[str, list[str]] = {}
    for path in stacked:
        section = config.of_group(labels[path]) if labels[path] != REST else config
        if section.target in NORMS_OF_ARRAYS:
            found.setdefault(section.target, []).append(path)
    messages = []
    for target, paths in found.items():
        more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
        messages.append(
            f"warning: {target} computes norms of whole arrays: the layers of {', '.join(paths[:2])}{more} have one "
            "norm together. engine.optimizers.{lamb,adafactor} have one for each layer."
        )
    return messages


def uses_matrices(config: Optimizer) -> bool:
    """Returns whether the optimizer, or that of a group, takes the matrices of the model. Raises ConfigError."""
    return any(_parameters(section, where).keys() & set(MATRICES) for where, section in sections(config).items())


def takes_matrices(config: Optimizer, where: str = WHERE) -> bool:
    """Returns whether the engine decides which parameters are the matrices of an optimizer, and AdamW has the others.

    Args:
        config: the section, or `Optimizer.of_group`.
        where: path of the section in the config.

    Raises:
        ConfigError: the target cannot be imported.
    """
    found = _parameters(config, where).keys()
    return STACKED not in found and bool(found & set(MATRICES) - config.arguments.keys())


def name_of(config: Optimizer) -> str:
    """Returns what a sentence calls an optimizer for matrices."""
    name = config.target.rpartition(".")[2]
    return {"muon": "Muon", "soap": "SOAP"}.get(name, config.target)


def adam_peak(config: Optimizer, where: str) -> float | None:
    """Returns the peak of the learning rate of the parameters that are no matrices; None if they have no own one."""
    is_here = _parameters(config, where).keys() & set(MATRICES)
    peak = config.arguments.get(ADAM_RATE) if is_here else None
    return float(peak) if isinstance(peak, int | float) else None


def other_optimizer(config: Optimizer, where: str) -> str:
    """Returns what updates the parameters that are no matrices."""
    if config.target.startswith("engine."):
        return "AdamW"
    if not config.target.startswith("optax."):
        return config.target
    nesterov = (parameters_of(resolve(config, where)) or {})["nesterov"].default
    return "Adam" + " with Nesterov momentum" * bool(config.arguments.get("nesterov", nesterov))


def clip_limits(config: Optimizer, labels: Mapping[str, str]) -> list[tuple[float, frozenset[str]]]:
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


def clip(limits: Sequence[tuple[float, frozenset[str]]]) -> Transformation:
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


def scale(scales: Mapping[str, np.ndarray]) -> Transformation:
    """Returns a transformation that multiplies updates by their scales (`layer_decay.py`)."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **known: jax.Array) -> tuple[PyTree, PyTree]:
        return {path: g * scales[path].astype(g.dtype) for path, g in updates.items()}, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
