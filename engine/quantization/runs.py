"""Quantizes the model of a run, and measures what it costs: what `convoy export --quantize` calls."""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import jax

from engine.api.saved_run import LoadedRun
from engine.base import formatting
from engine.config.schema import Checkpoint
from engine.experiments.comparison import Difference
from engine.metrics.direction import higher_is_better
from engine.quantization.after_training import Quantized, quantize, quantized
from engine.quantization.evaluations import Evaluations, Measured, differences
from engine.quantization.layers import layers_of
from engine.quantization.plan import BITS, Plan, scheme_of
from engine.quantization.sensitivity import Limit, Search, Sensitivity
from engine.quantization.training import trained_bits

EXAMPLES = 512
"""Examples with which inputs are calibrated."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run is quantized.

    Attributes:
        scheme: "int8", "int8-weights", "fp16" or "bf16".
        calibration: "percentile", "mse" or "max".
        keep: names of layers that stay in floats.
        bits: of a weight in the schemes of integers; 8 means those of the training with `engine.quantization.aware`.
        evaluation: name of the evaluation whose data calibrates and measures; "" for the first one.
        examples: about how many examples of it calibrate.
        metric: the number that says what a layer costs; "" for that of the limit, `checkpoint.best`, or the loss.
        max_drop: largest drop, "METRIC:NUMBER"; "" for none.
        sensitivity: whether to measure what each layer costs.
    """

    scheme: str = "int8"
    calibration: str = "percentile"
    keep: Sequence[str] = ()
    bits: int = BITS
    evaluation: str = ""
    examples: int = EXAMPLES
    metric: str = ""
    max_drop: str = ""
    sensitivity: bool = False

    def for_run(self, found: LoadedRun, layers: Collection[str]) -> Self:
        """Returns the settings with the bits and the layers in floats of a training with rounded products.

        Args:
            found: the trained model.
            layers: names of the layers.
        """
        trained = trained_bits(found.task)
        if trained is None or not scheme_of(self.scheme).is_integer or self.bits != BITS:
            return self
        bits, keep = trained
        kept = [name for name in layers if keep and re.search(keep, name) and name not in self.keep]
        return dataclasses.replace(self, bits=bits, keep=[*self.keep, *kept])


@dataclasses.dataclass(frozen=True)
class QuantizedRun:
    """A quantized function of a run, and its quality.

    Attributes:
        quantized: the function, its arrays and its plan.
        before: the metrics in floats.
        after: the metrics of the quantized function, over the same data.
        differences: after - before with intervals over examples, as of `convoy compare`; empty where a metric has no
            entries for examples, or pyarrow is missing.
        sensitivity: what each layer costs; None if that was not measured.
    """

    quantized: Quantized
    before: Mapping[str, float]
    after: Mapping[str, float]
    differences: Sequence[Difference]
    sensitivity: Sensitivity | None

    def text(self) -> str:
        """Returns tables of the quality and of what each layer costs."""
        plan = self.quantized.plan
        intervals = {each.name: each.interval for each in self.differences}
        rows = [["metric", "float", plan.name, "difference", "95 % interval"]]
        for name, value in self.before.items():
            after = self.after.get(name, math.nan)
            found = intervals.get(name)
            limits = "-" if found is None or math.isnan(found.low) else f"{found.low:+.4g} to {found.high:+.4g}"
            rows.append([name, *map(formatting.number, (value, after)), f"{after - value:+.4g}", limits])
        kept = f"; in floats: {', '.join(plan.kept)}" if plan.kept else ""
        lines = [*formatting.aligned(rows), f"layers in {plan.name}: {len(plan.layers)}{kept}"]
        return "\n".join(lines if self.sensitivity is None else [*lines, "", self.sensitivity.text()])

    def to_json(self) -> dict[str, Any]:
        """Returns the plan and the quality as JSON, for `bundle.json`."""
        intervals = {
            each.name: [each.interval.low, each.interval.high]
            for each in self.differences
            if not math.isnan(each.interval.low)
        }
        found = {
            **self.quantized.plan.to_json(),
            "metrics": {"float": dict(self.before), "quantized": dict(self.after)},
        }
        found["intervals"] = intervals
        return found if self.sensitivity is None else {**found, "sensitivity": self.sensitivity.to_json()}


def quantize_run(
    found: LoadedRun,
    function: Callable[[Mapping[str, Any], Any], Any],
    weights: Mapping[str, Any],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    settings: Settings,
    on_message: Callable[[str], None] = lambda text: None,
    batches: Sequence[Mapping[str, Any]] | None = None,
) -> QuantizedRun:
    """Returns a quantized method of a trained model, and its quality by an evaluation of the run.

    Args:
        found: the trained model.
        function: `function(weights, inputs)`, the method in floats.
        weights: name -> weight.
        inputs: name -> shape and dtype of one row of what it reads.
        settings: how it is quantized.
        on_message: called with sentences for the user.
        batches: inputs that calibrate a method whose inputs are not those of a dataset; None: data of the evaluation.

    Raises:
        ConfigError: a setting does not fit the run, or no choice of layers keeps `max_drop`.
        DataError: inputs of a layer are not finite.
    """
    limit = Limit.parse(settings.max_drop) if settings.max_drop else None
    name = settings.evaluation or (
        limit.metric.partition("/")[0] if limit else next(iter(found.config.evaluations), "")
    )
    evaluations = Evaluations(found, [name] if name else (), on_message)
    if batches is None:
        on_message(f"calibrating with about {settings.examples} examples of evaluations.{name}.data")
        batches = evaluations.batches(name, inputs, settings.examples)
    if unread := [key for key in inputs if key.startswith("state/")]:
        on_message(f"warning: {', '.join(unread)} are zeros for the calibration, as in the first frame of a drive")
    used = settings.for_run(found, layers_of(function, weights, batches[0]))
    if used != settings:
        on_message(f"weights have {used.bits} bits, as in the training; in floats: {', '.join(used.keep) or 'none'}")
    whole = quantize(function, weights, batches, used.scheme, used.calibration, used.keep, used.bits)
    if whole.out_of_reach:
        names = ", ".join(whole.out_of_reach)
        on_message(f"warning: products with {names} may stay in floats: they are within a loop, a branch or a kernel")
    measured: dict[tuple[str, ...], Measured] = {}

    def measure(plan: Plan | None, arrays: Mapping[str, Any]) -> Mapping[str, float]:
        key = () if plan is None else tuple(layer.name for layer in plan.layers)
        measured[key] = evaluations.measure(plan, arrays)
        return measured[key].metrics

    checkpoint = found.config.checkpoint
    metric = limit.metric if limit else settings.metric or _metric(checkpoint, name)
    search = Search(whole, measure, metric, _is_better(checkpoint, metric), on_message)
    plan, costs = search.within(limit) if limit else (whole.plan, None)
    if settings.sensitivity and costs is None:
        costs = search.sensitivity()
    after = search.after(plan)
    result = whole if plan is whole.plan else quantized(function, weights, plan, whole.input_ranges)
    key = tuple(layer.name for layer in plan.layers)
    pairs = differences(measured[()], measured[key])
    return QuantizedRun(result, search.before, after, pairs, costs)


def _metric(checkpoint: Checkpoint, evaluation: str) -> str:
    """Returns the number that chooses the best checkpoint of a run, if the evaluation has it; else its loss."""
    best = checkpoint.best or ""
    return best if best.partition("/")[0] == evaluation else f"{evaluation}/loss"


def _is_better(checkpoint: Checkpoint, metric: str) -> bool | None:
    """Returns whether a larger value is better; None if only the name may say it."""
    if metric == checkpoint.best and checkpoint.best_mode in ("max", "min"):
        return checkpoint.best_mode == "max"
    return higher_is_better(metric.partition("/")[2] or metric)
