"""Evaluations of a quantized model over whole datasets are those of the exported function."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import engine
from engine.base.errors import ConfigError
from engine.quantization import quantize
from engine.quantization.evaluations import Evaluations, differences
from tests import zoo
from tests.quantization import subjects


@functools.cache
def evaluations() -> Evaluations:
    return Evaluations(subjects.trained()[1])


@functools.cache
def batches():
    return evaluations().batches("heldout", subjects.forward(subjects.trained()[1]).inputs, 64)


def quantized(scheme, **settings):
    forward = subjects.forward(subjects.trained()[1])
    return quantize(forward.function, forward.weights, batches(), scheme, **settings)


def accuracy(logits, examples):
    return np.average(logits.argmax(-1) == examples["y"], weights=examples["valid"])


def test_batches_are_spread_over_the_data():
    """Not the first ones, which may all be of one class."""
    found = batches()
    assert [x["x"].shape for x in found] == [(16, 16)] * 4
    np.testing.assert_array_equal(found[2]["x"], zoo.examples(403, 9)["x"][13 * 16 : 14 * 16])


def test_inputs_that_are_no_entries_are_zeros():
    """Such as the memory of a model, which begins with a drive."""
    inputs = {"y": jax.ShapeDtypeStruct((), np.int32), "state/memory": jax.ShapeDtypeStruct((3,), np.float32)}
    [found] = evaluations().batches("heldout", inputs, 16)
    assert found["y"].shape == (16,) and found["state/memory"].shape == (16, 3) and not found["state/memory"].any()


def test_results_in_floats_are_those_of_the_engine():
    path, _ = subjects.trained()
    wanted = engine.evaluate(path)
    found = evaluations().measure().metrics
    assert found == pytest.approx({name: x for name, x in wanted.items() if name != "step"}, rel=1e-6)  # other devices


@pytest.mark.parametrize(("scheme", "bits"), [("int8", 2), ("int8-weights", 3), ("bf16", 8)])
def test_results_are_those_of_the_quantized_function(scheme, bits):
    found, examples = quantized(scheme, bits=bits), zoo.examples(403, 9)
    measured = evaluations().measure(found.plan, found.weights).metrics
    logits = jax.jit(found.function)(found.weights, {"x": examples["x"]})["logits"]
    assert measured["heldout/accuracy"] == pytest.approx(accuracy(logits, examples), abs=1e-6)


def test_convolution_is_measured_as_it_is_exported():
    _, found = subjects.trained()
    task = subjects.Classify("cnn", width=4)
    model: Any = task.build(nnx.Rngs(0))
    model.eval()
    found = dataclasses.replace(found, task=task, model=model)
    forward, own, examples = subjects.forward(found), Evaluations(found), zoo.examples(403, 9)
    result = quantize(forward.function, forward.weights, [{"x": examples["x"][:64]}])
    assert [layer.name for layer in result.plan.layers] == ["conv/kernel", "head/kernel"]
    logits = jax.jit(result.function)(result.weights, {"x": examples["x"]})["logits"]
    measured = own.measure(result.plan, result.weights).metrics
    assert measured["heldout/accuracy"] == pytest.approx(accuracy(logits, examples), abs=1e-6)


def test_differences_have_intervals_over_examples():
    pytest.importorskip("pyarrow")
    before, found = evaluations().measure(), quantized("int8", bits=2)
    after = evaluations().measure(found.plan, found.weights)
    [each] = [x for x in differences(before, after) if x.name == "heldout/accuracy"]
    assert (each.first, each.second) == pytest.approx([x.metrics[each.name] for x in (before, after)], abs=1e-6)
    assert each.interval.low < each.interval.estimate < each.interval.high < 0 and each.verdict == "worse"


def test_unknown_evaluation_is_refused():
    with pytest.raises(ConfigError, match=r"evaluation = 'heldot': the run has none\. Did you mean heldout"):
        Evaluations(subjects.trained()[1], ["heldot"])
