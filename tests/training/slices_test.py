"""Functions of slices are called with one example, and wrong ones are named with their config field."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine.config.errors import ConfigError, TaskError
from engine.config.schema import Target
from engine.training.slices import build_slices, slice_masks

EXAMPLES = {"x": jnp.arange(6.0).reshape(3, 2), "y": jnp.array([0, 1, 2])}


def test_masks_have_one_entry_for_each_example():
    sections = {
        "high": Target(target="tests.measuring.is_high", arguments={"above": 1}),
        "class": Target(target="tests.measuring.by_class"),
        "empty": Target(target="tests.measuring.never"),
    }
    masks = slice_masks(build_slices(sections, "evaluations.a"), EXAMPLES, "evaluations.a")
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "high": [False, True, True],
        "class/one": [False, True, False],
        "class/two": [False, False, True],
        "empty": [False, False, False],
    }


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda example: example["x"] > 1, r"^evaluations.a.slices.s returned an array bool\[2\]. Return one True or"),
        (lambda example: {"one": example["y"]}, r"slices.s returned a single number \(int32\) for 'one'"),
        (
            lambda example: example["z"] > 1,
            r"the example has no 'z' \(.*slices_test.py.* It holds x, y. Text",
        ),
        (
            lambda example: bool(example["y"] > 1),
            r"slices.s: the function is compiled, and it uses .*_test",
        ),
        (lambda example: np.sin(np.asarray(example["x"])).max() > 1, r"Use jax.numpy, and the operators & and \|"),
    ],
)
def test_functions_that_give_no_mask_are_errors(function, text):
    with pytest.raises(TaskError, match=text):
        slice_masks({"s": function}, EXAMPLES, "evaluations.a")


def test_two_slices_of_one_name_are_an_error():
    functions = {"a": lambda example: {"b": True}, "a/b": lambda example: True}
    with pytest.raises(TaskError, match=r"evaluations.a.slices.a/b: two slices are named 'a/b'. Rename one"):
        slice_masks(functions, EXAMPLES, "evaluations.a")


def test_unknown_function_and_argument_are_config_errors():
    with pytest.raises(ConfigError, match=r"evaluations.a.slices.s.target: found 'tests.measuring.is_hig'.*is_high"):
        build_slices({"s": Target(target="tests.measuring.is_hig")}, "evaluations.a")
    with pytest.raises(ConfigError, match=r"evaluations.a.slices.s.abov: .* takes no such argument.*above"):
        build_slices({"s": Target(target="tests.measuring.is_high", arguments={"abov": 1})}, "evaluations.a")
