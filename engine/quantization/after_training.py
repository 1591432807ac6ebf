"""Quantizes a function of weights and inputs after training: `quantize`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from engine.base.errors import ConfigError, did_you_mean
from engine.quantization.calibration import check_method, input_ranges
from engine.quantization.layers import find_layers, tables_of
from engine.quantization.plan import BITS, Plan, scheme_of


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A function in fewer bits.

    Attributes:
        function: `function(weights, inputs)`, which can be traced, like the function in floats.
        weights: name -> array. Those of a layer NAME are `NAME`, and with integers float32 scales: `NAME_scale`, with
            size 1 in the dimensions that share a scale, and `NAME_input_scale`, a scalar, or one for each iteration of
            the loops over a stack of layers.
        plan: which layers are quantized and how; `plan.to_json()` describes it for other programs.
        input_ranges: name of each layer, also of those in floats -> range of its inputs; empty if inputs stay floats.
        out_of_reach: weights of which products may be in floats, since they are within a loop or a kernel of unknown
            content.
    """

    function: Callable[[Mapping[str, Any], Any], Any]
    weights: Mapping[str, np.ndarray]
    plan: Plan
    input_ranges: Mapping[str, np.ndarray]
    out_of_reach: Sequence[str] = ()


def quantize(
    function: Callable[[Mapping[str, Any], Any], Any],
    weights: Mapping[str, Any],
    batches: Sequence[Any],
    scheme: str = "int8",
    calibration: str = "percentile",
    keep: Sequence[str] = (),
    bits: int = BITS,
) -> Quantized:
    """Returns a function in fewer bits that computes nearly the same.

    Layers are the weights that are an operand of a matrix product or a convolution. Products of two results, such as
    those of attention, stay in floats.

    Args:
        function: `function(weights, inputs)`, a pure function that can be traced.
        weights: name -> weight.
        batches: inputs of the function, for the ranges of the inputs of the layers; one of them shows its shapes.
        scheme: "int8": weights and inputs of each layer as int8, with a scale for each output channel and for the
            inputs of a layer. "int8-weights": the weights alone. "fp16", "bf16": 16-bit floats, summed as float32;
            here other weights of two or more dimensions, such as embeddings, are stored in 16 bits, too.
        calibration: how ranges of int8 are chosen: "percentile" (99.9 % of the magnitudes of the inputs), "mse"
            (smallest squared error, also of the weights) or "max".
        keep: names of layers that stay in floats.
        bits: of a weight, 2 to 8. The codes are stored as int8 all the same, so fewer bits show what they would cost.

    Raises:
        ConfigError: a setting has a wrong value, or the function has no layer.
        DataError: inputs of a layer are not finite.
    """
    chosen = scheme_of(scheme)
    check_method(calibration)
    if not 2 <= bits <= BITS:
        raise ConfigError(f"quantize: bits = {bits}. Allowed: 2 to {BITS}.")
    if not len(batches):
        raise ConfigError("quantize: no batch is given. Give one for its shapes, or several to calibrate.")
    layers, out_of_reach = find_layers(function, weights, batches[0])
    if not layers:
        raise ConfigError(
            "quantize: no product of the function has a weight as an operand, which it would round. Export it without "
            "quantization."
        )
    names = list(layers)
    if not chosen.is_integer:
        layers |= tables_of(weights, layers)
    check_names(keep, layers)
    plan = Plan(chosen, calibration, bits, list(layers.values())).keeping(keep)
    ranges: dict[str, np.ndarray] = {}
    if chosen.is_integer and chosen.inputs:
        ranges = input_ranges(function, weights, batches, names, calibration, BITS)
    return dataclasses.replace(quantized(function, weights, plan, ranges), out_of_reach=out_of_reach)


def quantized(
    function: Callable[[Mapping[str, Any], Any], Any],
    weights: Mapping[str, Any],
    plan: Plan,
    ranges: Mapping[str, np.ndarray],
) -> Quantized:
    """Returns a function that is quantized by a plan, for ranges that are known; arguments as for `quantize`."""
    arrays = {name: np.asarray(x) for name, x in jax.device_get(plan.stored(_arrays(weights), ranges)).items()}
    return Quantized(plan.function(function, weights), arrays, plan, ranges)


def check_names(names: Sequence[str], layers: Mapping[str, Any]) -> None:
    """Raises ConfigError if a name is not that of a layer."""
    for name in names:
        if name not in layers:
            raise ConfigError(
                f"keep = {name!r}: no such layer.{did_you_mean(name, layers)} Layers: {', '.join(layers)}."
            )


def _arrays(weights: Mapping[str, Any]) -> dict[str, jax.Array]:
    return {name: jax.numpy.asarray(x) for name, x in weights.items()}
