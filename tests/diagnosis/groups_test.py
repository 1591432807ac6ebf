"""Names of layers, and sums over their parameters."""

import numpy as np

from engine.diagnosis.groups import Groups
from tests import zoo
from tests.diagnosis import stacked


def test_layers_of_a_stack_have_an_index_and_modules_their_paths():
    groups = Groups.of(zoo.program(stacked.Classify()).spec.model)
    assert groups.paths["decoder/layers/up/kernel"] == "decoder/*"
    assert groups.leading["decoder/layers/up/kernel"] == 1
    assert groups.paths["head/kernel"] == "head"
    assert Groups.of(zoo.program(zoo.Classify()).spec.model).paths["hidden/1/bias"] == "hidden/1"


def test_values_are_summed_over_the_parameters_of_a_layer():
    groups = Groups({"a/layers/x": "a/*", "a/layers/y": "a/*", "b/w": "b"}, {"a/layers/x": 1, "a/layers/y": 1})
    values = {"a/layers/x": np.array([1.0, 2.0]), "a/layers/y": np.array([10.0, 20.0]), "b/w": np.array(5.0)}
    assert groups.sums(values) == {"a/0": 11.0, "a/1": 22.0, "b": 5.0}
