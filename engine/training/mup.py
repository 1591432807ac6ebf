"""Learning rates and initial weights that transfer from a narrow model to a wide one: the maximal update
parametrization, muP (Yang et al. 2022, arXiv:2203.03466, table 3).

`optimizer.mup` has arguments of the Task for the base model, whose learning rate is known. The shapes of both models
say by which factor each dimension is wider; the roles, and the product of each matrix, say which dimension it sums.

Depth is not a matter of the optimizer: a model multiplies its residual branches by base depth / depth (Dey et al. 2025,
arXiv:2505.01618, with alpha = 1), as `LanguageModel.base_depth` does.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from engine.base.errors import FieldError
from engine.config.schema import Optimizer
from engine.config.setting import CONVOLUTION
from engine.training.model import Model
from engine.training.optimizer_parts import REST
from engine.training.parameter_uses import TIED
from engine.training.roles import Roles

WHERE = "optimizer.mup"
ADAM = "optax.{adam,adamw,nadam,nadamw,lion,contrib.ademamix} engine.optimizers.{soap,mars,adam_mini}"
SGD = "optax.sgd"
ORTHOGONAL = "optax.contrib.muon engine.optimizers.muon"
"""Optimizers whose update of a matrix has a norm that fits its shape, so that its rate needs no factor."""


class Factors(NamedTuple):
    """Factors by path of a trained parameter; those of parameters that keep theirs are 1."""

    rates: Mapping[str, float]
    inits: Mapping[str, float]


class Ratios(NamedTuple):
    """How many times wider the sums of a product are, and its results."""

    summed: float
    result: float


def factors(config: Optimizer, model: Model, base: Model, roles: Roles, labels: Mapping[str, str]) -> Factors:
    """Returns the factors on the learning rates, and on the initial weights.

    Args:
        config: config section `optimizer`.
        model: the model.
        base: the base model, with the same parameters in other shapes.
        roles: the roles of the trained parameters, from a trace.
        labels: path -> group of each trained parameter.

    Raises:
        FieldError: the models do not fit together, or the rule of an optimizer is not known.
    """
    _check(model, base, roles)
    rates, inits = {}, {}
    for path in roles.of:
        section = config.of_group(labels[path]) if labels[path] != REST else config
        ratios = _ratios(path, model, base, roles)
        rates[path], inits[path] = _rule(section.target, ratios, is_matrix=path in roles.matrices)
    return Factors(rates, inits)


def _check(model: Model, base: Model, roles: Roles) -> None:
    """Raises FieldError unless both models have the same parameters, some of them wider, and no tied embedding."""
    if different := sorted(model.params.keys() ^ base.params.keys()):
        problem = f"the base model and the model do not have the same parameters: {', '.join(different[:4])}"
        raise FieldError(WHERE, problem, "Change widths only.")
    for path, x in model.params.items():
        if len(x.shape) != len(base.params[path].shape):
            problem = f"{path} has {len(x.shape)} dimensions, and {len(base.params[path].shape)} in the base model"
            raise FieldError(WHERE, problem, "Change widths only.")
    for path, reason in roles.reasons.items():
        if reason == TIED and model.params[path].shape != base.params[path].shape:
            problem = f"{path} is an embedding and the output layer, whose rules differ"
            raise FieldError(WHERE, problem, "Use a head of its own.")


def _ratios(path: str, model: Model, base: Model, roles: Roles) -> Ratios:
    wide, narrow = (np.array(each.params[path].shape, np.float64) for each in (model, base))
    each = wide / narrow
    stacked = model.stacked.get(path, 0)
    if path in roles.dimensions:
        summed, result = ([each[i] for i in found] for found in roles.dimensions[path])
    elif roles.of[path] == CONVOLUTION:
        summed, result = each[stacked:-1], each[-1:]
    else:
        summed, result = [], each[stacked:]
    return Ratios(math.prod(summed), math.prod(result))


def _rule(target: str, ratios: Ratios, *, is_matrix: bool) -> tuple[float, float]:
    """Returns the factors on the learning rate and on the initial weights of a parameter, by table 3 of the paper."""
    is_output = ratios.summed != 1 and ratios.result == 1
    init = ratios.summed**-0.5 if is_output else 1.0
    if target in _named(ORTHOGONAL):
        return (1.0 if is_matrix and not is_output else 1 / ratios.summed), init
    if target in _named(ADAM):
        return 1 / ratios.summed, init
    if target in _named(SGD):
        return (1 / ratios.summed if is_output else ratios.result if ratios.summed == 1 else 1.0), init
    known = ", ".join(_named(f"{ADAM} {SGD} {ORTHOGONAL}"))
    raise FieldError(WHERE, f"no rule is known for {target}", f"Optimizers with a rule: {known}.")


def _named(text: str) -> Sequence[str]:
    """Returns the dotted paths of a text such as "optax.{adam,sgd} a.b"."""
    found = []
    for word in text.split():
        start, _, rest = word.partition("{")
        found += [start + end for end in rest.removesuffix("}").split(",")] if rest else [word]
    return found


def table(model: Model, base: Model, found: Factors) -> str:
    """Returns a line about each parameter with a factor, for `explain`."""
    lines = ["muP: shape in the base model, shape, factor on the learning rate, factor on the initial weights"]
    width = max(map(len, found.rates))
    for path, rate in found.rates.items():
        shapes = [str(list(each.params[path].shape)) for each in (base, model)]
        lines.append(f"  {path:{width}}  {shapes[0]:16}  {shapes[1]:16}  {rate:<8.4g}  {found.inits[path]:.4g}")
    return "\n".join(lines)


def with_inits(model: Model, found: Factors) -> Model:
    """Returns the model with the factors on its initial weights."""
    return dataclasses.replace(model, init_scales={path: x for path, x in found.inits.items() if x != 1})
