"""A run is quantized and measured as the command line does it."""

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import pytest

from engine.base.errors import ConfigError
from engine.quantization import aware
from engine.quantization.runs import QuantizedRun, Settings, quantize_run
from tests.quantization import subjects


@functools.cache
def result(**settings) -> tuple[QuantizedRun, list[str]]:
    messages: list[str] = []
    _, found = subjects.trained()
    forward = subjects.forward(found)
    changes: Any = dict(bits=subjects.BITS, examples=64) | settings
    arguments = (found, forward.function, forward.weights, forward.inputs)
    return quantize_run(*arguments, Settings(**changes), messages.append), messages


def test_quality_before_and_after_has_intervals():
    pytest.importorskip("pyarrow")
    found, messages = result()
    assert messages == ["calibrating with about 64 examples of evaluations.heldout.data"]
    head, *lines, last = found.text().splitlines()
    assert head.split() == ["metric", "float", "int8", "(2", "bits)", "difference", "95", "%", "interval"]
    assert sorted(line.split()[0] for line in lines) == ["heldout/accuracy", "heldout/loss"]
    assert all(" to " in line for line in lines) and last == "layers in int8 (2 bits): 3"
    assert found.after["heldout/accuracy"] < found.before["heldout/accuracy"] - 0.1


def test_max_drop_keeps_layers_in_floats_and_is_measured():
    found, messages = result(max_drop="heldout/accuracy:3%", sensitivity=True)
    kept = found.quantized.plan.kept
    before, after = (x["heldout/accuracy"] for x in (found.before, found.after))
    assert 0 < len(kept) < 3 and before - after <= 0.03 * before and found.sensitivity is not None
    assert kept == tuple(cost.layer.name for cost in found.sensitivity.costs[: len(kept)])
    assert all(found.quantized.weights[name].dtype == "float32" for name in kept)
    assert sum("floats in" in text for text in messages) == len(kept)
    written = json.loads(json.dumps(found.to_json()))
    assert written["kept"] == list(kept) and written["metrics"]["quantized"] == found.after
    assert "most costly: " in found.text() and f"in floats: {', '.join(kept)}" in found.text()


def test_metric_of_the_sensitivity_is_the_loss_unless_the_run_has_a_best():
    found, _ = result(sensitivity=True)
    assert found.sensitivity is not None and found.sensitivity.metric == "heldout/loss"


def test_run_that_was_trained_with_fewer_bits_is_quantized_to_them():
    """Its weights are made for these bits, and may be worse in more."""
    _, found = subjects.trained()
    found = dataclasses.replace(found, task=aware(found.task, bits=3, keep="^head/"))
    layers = ["hidden/0/kernel", "head/kernel"]
    used = Settings(keep=["hidden/0/kernel"]).for_run(found, layers)
    assert used.bits == 3 and used.keep == ["hidden/0/kernel", "head/kernel"]
    for settings in (Settings(bits=4), Settings("bf16")):
        assert settings.for_run(found, layers) is settings
    messages: list[str] = []
    forward = subjects.forward(found)
    arguments = (found, forward.function, forward.weights, forward.inputs)
    result = quantize_run(*arguments, Settings(examples=16), messages.append)
    assert messages[-1] == "weights have 3 bits, as in the training; in floats: head/kernel"
    assert result.quantized.plan.bits == 3 and result.quantized.plan.kept == ("head/kernel",)
    assert np.abs(result.quantized.weights["hidden/0/kernel"]).max() == 3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(max_drop="heldout/accuracy"), "max-drop = 'heldout/accuracy': not understood"),
        (dict(max_drop="heldout/acc:0.1"), "metric = 'heldout/acc': not measured. Did you mean heldout/accuracy"),
        (dict(max_drop="test/loss:1"), "evaluation = 'test': the run has none"),
        (dict(scheme="int9"), "quantize = 'int9': unknown"),
        (dict(evaluation="x"), "evaluation = 'x': the run has none"),
    ],
)
def test_wrong_settings_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        result(**settings)
