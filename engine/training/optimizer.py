"""Builds the optimizer of a run: an optax transformation with schedule, clipping, weight-decay mask and groups.

`optimizer.target` names the optimizer itself, any function `(learning_rate, **arguments) ->
optax.GradientTransformation`. The whole gradient is clipped first; then each group has its own optimizer.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from engine.config.errors import ConfigError, FieldError
from engine.config.schema import Optimizer
from engine.config.target import build, parameters_of, resolve
from engine.metrics.values import describe_value
from engine.parallel.rules import STACKED
from engine.training import muon
from engine.types import PyTree

Names = Mapping[str, Sequence[str | None]]
type Leaf = jax.Array | jax.ShapeDtypeStruct

WHERE = "optimizer"


def schedule(config: Optimizer, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Returns step -> learning rate: a linear warm-up from 0, then constant, or linear or cosine decay to the end."""
    peak, end = config.learning_rate, config.learning_rate * config.final_scale
    rest = max(total_steps - warmup_steps, 1)
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, end, rest)
    else:
        after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_scale)
    if warmup_steps == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def build_optimizer(
    config: Optimizer,
    learning_rate: optax.Schedule,
    params: Mapping[str, Leaf],
    names: Names | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation for the trained parameters.

    Its `update` takes `grad_norm`, the global norm of the gradient, so that clipping need not read the gradient again.

    Args:
        config: config section `optimizer`.
        learning_rate: step -> learning rate.
        params: path -> array or shape of each trained parameter.
        names: path -> logical axes; the dimensions of a stack of layers do not count in deciding what is a matrix.

    Raises:
        ConfigError: a group matches no parameter, or the target does not take a setting.
    """
    labels = group_labels(config, params)
    parts = {}
    for label in sorted(set(labels.values())):
        group = config.groups.get(label)
        scale = group.learning_rate_scale if group else 1.0
        decay = group.weight_decay if group else None
        parts[label] = _one(config, _scaled(learning_rate, scale), decay, names or {})
    tx = next(iter(parts.values())) if len(parts) == 1 else optax.partition(parts, labels)
    return optax.with_extra_args_support(tx if config.clip_norm is None else optax.chain(_clip(config.clip_norm), tx))


def _clip(most: float) -> optax.GradientTransformationExtraArgs:
    """Returns `optax.clip_by_global_norm` (Pascanu et al. 2012, arXiv:1211.5063) that takes the norm as `grad_norm`."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **known: jax.Array) -> tuple[PyTree, PyTree]:
        norm = known["grad_norm"]
        scale = jnp.where(norm < most, 1.0, most / norm)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def group_labels(config: Optimizer, params: Mapping[str, Leaf]) -> dict[str, str]:
    """Returns path -> name of the first group that matches, "" if none does. Raises ConfigError for unused groups."""
    labels = {}
    for path in params:
        labels[path] = next((name for name, group in config.groups.items() if re.search(group.match, path)), "")
    for name, group in config.groups.items():
        if name not in labels.values():
            raise ConfigError(
                f"optimizer.groups.{name}.match = {group.match!r} matches no trained parameter, or only parameters of "
                f"earlier groups. Parameters: {', '.join(params)}."
            )
    return labels


def _scaled(learning_rate: optax.Schedule, scale: float) -> optax.Schedule:
    return learning_rate if scale == 1.0 else lambda step: learning_rate(step) * scale


def _one(
    config: Optimizer, learning_rate: optax.Schedule, weight_decay: float | None, names: Names
) -> optax.GradientTransformation:
    """Returns the transformation of `optimizer.target` for one group."""
    parameters = parameters_of(resolve(config, WHERE)) or {}
    given: dict[str, object] = {"learning_rate": learning_rate}
    for mask in {"mask", "weight_decay_mask"} & parameters.keys() - config.arguments.keys():
        given[mask] = lambda params: {path: _decays(config.decay, x, names.get(path)) for path, x in params.items()}
    if is_muon(config):
        # `optax.tree.map_params` passes an empty pytree in place of the parameters.
        given[muon.ARGUMENT] = lambda params: (
            muon.dimension_numbers(params, names) if isinstance(params, Mapping) else params
        )
    if weight_decay is not None:
        if "weight_decay" not in parameters:
            raise ConfigError(f"optimizer.groups: {config.target} takes no weight_decay. Leave it None in the groups.")
        config = dataclasses.replace(config, arguments={**config.arguments, "weight_decay": weight_decay})
    found = build(config, WHERE, **given)
    if not (hasattr(found, "init") and hasattr(found, "update")):
        problem = f"{config.target} returned {describe_value(found)}, which is not an optax.GradientTransformation"
        raise FieldError(f"{WHERE}.target", problem, "Name an optimizer of optax, or a function that returns one.")
    return found


def is_muon(config: Optimizer) -> bool:
    """Returns whether the optimizer is Muon, and the engine decides which parameters it orthogonalises."""
    parameters = parameters_of(resolve(config, WHERE)) or {}
    return muon.ARGUMENT in parameters and muon.ARGUMENT not in config.arguments


def _decays(kind: str, x: jax.Array, names: Sequence[str | None] | None) -> bool:
    """Returns whether weight decay acts on a parameter; optax passes a masked parameter as an object without shape."""
    dimensions = len(getattr(x, "shape", ())) - sum(name in STACKED for name in names or ())
    return kind == "all" or (kind == "matrices" and dimensions >= 2)
