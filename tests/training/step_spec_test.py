"""The settings of a step name the engine's metrics and give the context of a step."""

import dataclasses

import jax
import numpy as np

from engine.config.schema import MeshSpec
from tests import zoo


def test_engine_metrics_name_bad_examples_only_if_they_are_skipped():
    spec = zoo.program(zoo.Classify()).spec
    assert spec.engine_metrics == ("grad_norm", "learning_rate", "skipped")
    assert dataclasses.replace(spec, skip_bad=True).engine_metrics == (*spec.engine_metrics, "bad_examples")


def test_context_has_the_step_the_epoch_and_the_total():
    context = zoo.program(zoo.Classify()).spec.context(6, jax.random.key(0))
    assert np.array_equal([context.step, context.epoch, context.total_steps], [6, 1.5, 10])


def test_parameters_are_split_with_zero1_in_half_precision():
    for precision, splits in (("bfloat16", True), ("float32", False)):
        spec = zoo.program(zoo.Classify(), mesh=MeshSpec(data=8), precision=precision, layout={"zero1": True}).spec
        assert spec.splits_params == splits
