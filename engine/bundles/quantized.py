"""Entry points of bundles in fewer bits."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from engine.api.saved_run import LoadedRun
from engine.bundles.forward import Forward
from engine.quantization.after_training import Quantized, quantize
from engine.quantization.evaluations import Evaluations
from engine.quantization.layers import layers_of, tables_of
from engine.quantization.plan import Plan
from engine.quantization.runs import Settings, quantize_run

TOLERANCE = {"int8": 2e-2, "int8-weights": 1e-4, "fp16": 4e-3, "bf16": 2e-2}
"""Scheme -> largest accepted difference of an output from the same function on another machine.

A sum that is rounded differently may change a code of int8 by one.
"""

type Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class QuantizedForward:
    """An entry point in fewer bits.

    Attributes:
        forward: the function, with its weights.
        plan: which layers are quantized.
        description: what `bundle.json` says about it: the plan, and the quality before and after if it was measured.
        text: tables of the quality and of what each layer costs; "" if it was not measured.
    """

    forward: Forward
    plan: Plan
    description: Mapping[str, Any]
    text: str

    def call(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Returns what the engine computes with the quantized function."""
        return jax.device_get(jax.jit(self.forward.function)(dict(self.forward.weights), dict(inputs)))


def quantized_forward(
    found: LoadedRun,
    forward: Forward,
    examples: Sequence[Arrays] | None,
    settings: Settings,
    say: Callable[[str], None],
    like: Plan | None = None,
) -> QuantizedForward:
    """Returns an entry point in fewer bits.

    Args:
        found: the trained model.
        forward: the entry point in floats.
        examples: inputs that calibrate it, of an entry point whose inputs are not those of a dataset.
        settings: how it is quantized.
        say: called with sentences for the user.
        like: plan of another entry point, whose quality was measured; None: the quality of this one is measured.

    Raises:
        ConfigError: a setting does not fit, or no choice of layers keeps `settings.max_drop`.
    """
    if like is None:
        run = quantize_run(found, forward.function, forward.weights, forward.inputs, settings, say, examples)
        return _changed(forward, run.quantized, run.to_json(), run.text())
    if examples is None:
        name = settings.evaluation or next(iter(found.config.evaluations))
        examples = Evaluations(found, [name]).batches(name, forward.inputs, settings.examples)
    layers = layers_of(forward.function, forward.weights, examples[0])
    layers |= {} if like.scheme.is_integer else tables_of(forward.weights, layers)
    keep = [name for name in like.kept if name in layers]
    result = quantize(
        forward.function, forward.weights, examples, settings.scheme, settings.calibration, keep, like.bits
    )
    return _changed(forward, result, result.plan.to_json(), "")


def _changed(forward: Forward, result: Quantized, description: Mapping[str, Any], text: str) -> QuantizedForward:
    changed = dataclasses.replace(forward, function=result.function, weights=result.weights)
    return QuantizedForward(changed, result.plan, description, text)
