"""What each layer costs in fewer bits, and which layers stay in floats so that a metric keeps its value."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.base import formatting
from engine.base.errors import ConfigError, did_you_mean
from engine.metrics.direction import higher_is_better
from engine.quantization.after_training import Quantized
from engine.quantization.layers import Layer
from engine.quantization.plan import Plan

MOST_COSTLY = 3

type Measure = Callable[[Plan | None, Mapping[str, Any]], Mapping[str, float]]
"""Returns the metrics of a model for a plan, or of the model in floats, and the arrays of the quantized function."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """The largest drop of a metric: `--max-drop=heldout/accuracy:0.2`.

    Attributes:
        metric: full name.
        value: in the unit of the metric, or in percent of its value in floats.
        percent: whether it is in percent.
    """

    metric: str
    value: float
    percent: bool = False

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Returns the limit of a text "METRIC:NUMBER" or "METRIC:NUMBER%". Raises ConfigError."""
        metric, _, number = text.rpartition(":")
        try:
            value = float(number.removesuffix("%"))
        except ValueError:
            value = math.nan
        if not metric or not 0 <= value < math.inf:
            raise ConfigError(
                f"max-drop = {text!r}: not understood. Write METRIC:NUMBER, such as heldout/accuracy:0.002 in the unit "
                "of the metric, or heldout/accuracy:0.2% of its value."
            )
        return cls(metric, value, number.endswith("%"))

    def allows(self, drop: float, before: float) -> bool:
        """Returns whether a drop is within the limit."""
        return drop <= (self.value * abs(before) / 100 if self.percent else self.value)

    def __str__(self) -> str:
        return f"{self.metric}:{formatting.number(self.value)}{'%' * self.percent}"


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one layer costs.

    Attributes:
        layer: the layer.
        value: the metric with this layer alone in fewer bits.
        drop: by how much it is worse than in floats.
    """

    layer: Layer
    value: float
    drop: float


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What each layer costs, the most costly first.

    Attributes:
        metric: full name of the metric.
        before: the metric in floats.
        costs: one for each layer.
    """

    metric: str
    before: float
    costs: Sequence[Cost]

    def text(self) -> str:
        """Returns a table, and which layers cost the most."""
        head = ["layer", "shape", "numbers", f"{self.metric} with it alone", "drop"]
        rows = [
            [
                cost.layer.name,
                "x".join(map(str, cost.layer.shape)),
                f"{cost.layer.size:,}",
                formatting.number(cost.value),
                f"{cost.drop:+.4g}",
            ]
            for cost in self.costs
        ]
        names = ", ".join(f"{cost.layer.name} ({cost.drop:+.4g})" for cost in self.costs[:MOST_COSTLY])
        return "\n".join([*formatting.aligned([head, *rows]), f"most costly: {names}"])

    def to_json(self) -> dict[str, Any]:
        """Returns the numbers as JSON."""
        layers = [{"weight": x.layer.name, "value": x.value, "drop": x.drop} for x in self.costs]
        return {"metric": self.metric, "float": self.before, "layers": layers}


class Search:
    """Measures a quantized function with different layers in floats.

    Args:
        quantized: the function with all chosen layers in fewer bits.
        measure: measures a plan.
        metric: full name of the number that counts.
        better: whether a larger value is better; None: as its name says.
        on_message: called with a sentence after each measurement.

    Raises:
        ConfigError: there is no such metric, or it is not known whether a larger value is better.
    """

    def __init__(
        self,
        quantized: Quantized,
        measure: Measure,
        metric: str,
        better: bool | None = None,
        on_message: Callable[[str], None] = lambda text: None,
    ):
        self.quantized, self.plan = quantized, quantized.plan
        self._measure, self._metric, self._say = measure, metric, on_message
        self.before = measure(None, {})
        """The metrics in floats."""
        if metric not in self.before:
            near = did_you_mean(metric, self.before)
            raise ConfigError(f"metric = {metric!r}: not measured.{near} Metrics: {', '.join(self.before)}.")
        found = higher_is_better(metric.partition("/")[2] or metric) if better is None else better
        if found is None:
            raise ConfigError(
                f"metric = {metric!r}: its name does not say whether a larger value is better. Choose another one, or "
                "set checkpoint.best and checkpoint.best_mode in the config of the run."
            )
        self._sign = 1 if found else -1
        self._after: dict[tuple[str, ...], Mapping[str, float]] = {}

    def after(self, plan: Plan) -> Mapping[str, float]:
        """Returns the metrics of a plan."""
        key = tuple(layer.name for layer in plan.layers)
        if key not in self._after:
            self._after[key] = self._measure(plan, self.quantized.weights) if key else self.before
        return self._after[key]

    def drop(self, plan: Plan) -> float:
        """Returns by how much the metric of a plan is worse than in floats; infinite if it has no value."""
        drop = self._sign * (self.before[self._metric] - self.after(plan)[self._metric])
        return math.inf if math.isnan(drop) else drop

    def sensitivity(self) -> Sensitivity:
        """Returns what each layer costs alone."""
        costs, layers = [], self.plan.layers
        for number, layer in enumerate(layers, 1):
            plan = self.plan.only(layer.name)
            costs.append(Cost(layer, self.after(plan)[self._metric], self.drop(plan)))
            self._say(f"{formatting.progress(number, len(layers))}: {layer.name} costs {costs[-1].drop:+.4g}")
        costs.sort(key=lambda cost: (-cost.drop, cost.layer.size))
        return Sensitivity(self._metric, self.before[self._metric], costs)

    def within(self, limit: Limit) -> tuple[Plan, Sensitivity | None]:
        """Returns the plan that keeps as few layers in floats as the limit needs, the most costly first.

        Also returns what each layer costs, if that had to be measured.

        Raises:
            ConfigError: the limit is kept only with all layers in floats.
        """
        plan, before = self.plan, self.before[self._metric]
        if limit.allows(self.drop(plan), before):
            return plan, None
        found = self.sensitivity()
        for cost in found.costs[:-1]:
            plan = plan.keeping([cost.layer.name])
            drop = self.drop(plan)
            self._say(f"{self._metric} drops by {drop:+.4g} with floats in {', '.join(plan.kept)}")
            if limit.allows(drop, before):
                return plan, found
        last = found.costs[-1]
        raise ConfigError(
            f"max-drop = {limit}: no choice of layers reaches it. {self._metric} drops by {self.drop(plan):.4g} from "
            f"{formatting.number(before)} even if {last.layer.name} alone is quantized. Allow more, choose another "
            "scheme such as int8-weights, or train with engine.quantization.aware."
        )
