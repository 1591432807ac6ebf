"""Functions of slices are called with one example, compiled or on the host, and wrong ones are named."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import ConfigError, TaskError
from engine.config.schema import Target
from engine.data.batch import Batch
from engine.data.text import without_text
from engine.training.slices import Slices, build_slices

FIRST = {"x": np.array([0, 1], np.float32), "y": np.int32(0), "city": "Oslo", "meta": (b"a", 2.0)}
EXAMPLES = {
    "x": np.arange(6, dtype=np.float32).reshape(3, 2),
    "y": np.array([0, 1, 2], np.int32),
    "city": np.array(["Oslo", "Bonn", "Oslo"], object),
    "meta": (np.array([b"a", b"b", b"c"]), np.ones(3)),
}


def masks(functions, weight=(1, 1, 1)):
    """Returns the slices that JAX compiles, and the mask of each one."""
    slices = Slices.of(functions, FIRST, "evaluations.a")
    members = slices.members(Batch(EXAMPLES, np.array(weight, np.float32)))
    found = jax.jit(slices.masks)(without_text(EXAMPLES), members)
    names = list(slices.masks(without_text(EXAMPLES), None))
    return functions.keys() - slices.on_host, {name: found[name].tolist() for name in names}


def test_masks_have_one_entry_for_each_example():
    sections = {
        "high": Target(target="tests.measuring.is_high", arguments={"above": 1}),
        "class": Target(target="tests.measuring.by_class"),
        "empty": Target(target="tests.measuring.never"),
    }
    compiled, found = masks(build_slices(sections, "evaluations.a"))
    assert compiled == sections.keys()
    assert found == {
        "high": [False, True, True],
        "class/one": [False, True, False],
        "class/two": [False, False, True],
        "empty": [False, False, False],
    }


OSLO = [True, False, True]


@pytest.mark.parametrize(
    ("function", "mask"),
    [
        (lambda example: example["city"] == "Oslo", OSLO),
        (lambda example: example["city"] != "Bonn", OSLO),
        (lambda example: "Oslo" == example.get("city"), OSLO),  # noqa: SIM300
        (lambda example: example["city"] in {"Oslo", "Rome"}, OSLO),
        (lambda example: example["city"] in ("Rome", "Oslo"), OSLO),
        (lambda example: example["city"].startswith("O"), OSLO),
        (lambda example: isinstance(example["city"], str) and len(example["city"]) > 0, [True] * 3),
        (lambda example: example["y"] < 1 or example["meta"][0] == b"c", OSLO),
        (lambda example: (example["x"].mean() > 1) & (f"{example['city']}" == "Oslo"), [False, False, True]),
        (lambda example: {"Oslo": False, "Bonn": True}[example["city"]], [False, True, False]),
        (lambda example: bool(example["y"] > 1), [False, False, True]),
        (lambda example: float(np.sin(np.asarray(example["x"])).max()) > 0.9, [False, True, False]),
        (lambda example: example["y"] in (0, 2) if example["y"] else True, OSLO),
    ],
)
def test_functions_that_read_text_or_cannot_be_traced_are_called_on_the_host(function, mask):
    assert masks({"s": function}) == (set(), {"s": mask})


@pytest.mark.parametrize(
    "function",
    [
        lambda example: (example["city"], example["y"])[1] > 0,
        lambda example: ("city" in example) & (example["y"] > 0),
        lambda example: len(example) == 4 and len(example["meta"]) == 2 and example["y"] > 0,
    ],
)
def test_functions_that_get_text_but_do_not_use_it_are_compiled(function):
    assert masks({"s": function}) == ({"s"}, {"s": [False, True, True]})


def test_parts_of_a_slice_by_text_are_sorted_and_leave_out_padding():
    functions = {
        "city": lambda example: {name: example["city"] == name for name in ("Oslo", "Bonn")},
        "late": lambda example: example["y"] > 0,
    }
    compiled, found = masks(functions, weight=(1, 1, 0))
    assert compiled == {"late"}
    assert list(found) == ["city/Bonn", "city/Oslo", "late"]
    assert found["city/Oslo"] == [True, False, False]


def wide(example):
    return example["x"][7] > 1 if example["city"] else False


def mixed(example):
    return example["city"] + 1 > 2


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda example: example["x"] > 1, r"^evaluations.a.slices.s returned an array bool\[2\]. Return one True or"),
        (lambda example: {"one": example["y"]}, r"slices.s returned a single number \(int32\) for 'one'"),
        (lambda example: {"one": example["city"]}, r"slices.s returned a str for 'one'"),
        (
            lambda example: example["cty"] == "Oslo",
            r"^evaluations.a.slices.s: .*<lambda>: there is no 'cty' \(.*slices_test.py.*\). Did you mean city\? It "
            r"got example: city text, meta/0 text, meta/1 float64\[\], x float32\[2\], y int32\[\]\.$",
        ),
        (wide, r"^evaluations.a.slices.s: tests.training.slices_test.wide failed: IndexError: .* in wide\). It got ex"),
        (mixed, r"slices_test.mixed failed: TypeError: .*slices_test.py:\d+ in mixed\). It got example: city text, "),
        (lambda example: example["x"] @ np.ones(3) > 1, r"failed: ValueError: .* x float32\[2\], y int32\[\]\.$"),
    ],
)
def test_functions_that_fail_or_give_no_mask_are_errors(function, text):
    with pytest.raises(TaskError, match=text):
        masks({"s": function})


def test_error_of_a_later_example_and_of_a_later_shape_is_named():
    slices = Slices.of({"s": lambda example: 1 / example["y"].item() > 0 or True}, {"y": np.int32(1)}, "evaluations.a")
    with pytest.raises(TaskError, match=r"slices.s: .*<lambda> failed: ZeroDivisionError: .* It got example: y int32"):
        slices.members(Batch({"y": np.array([1, 0], np.int32)}, np.ones(2, np.float32)))
    first = {"x": np.ones(2, np.float32)}
    slices = Slices.of({"s": lambda example: example["x"] @ jnp.ones(2) > 0}, first, "evaluations.a")
    with pytest.raises(TaskError, match=r"slices.s: .*<lambda> failed: TypeError: .* It got example: x float32\[3\]"):
        slices.masks({"x": jnp.ones((4, 3))}, {})


def test_names_that_differ_between_examples_are_an_error():
    text = r"slices.s: .*<lambda> returned 'Bonn' for an example, and 'Oslo' for the first one. Return the same names"
    with pytest.raises(TaskError, match=text):
        masks({"s": lambda example: {example["city"]: True}})


@pytest.mark.parametrize("part", ["b", "Oslo"])
def test_two_slices_of_one_name_are_an_error(part):
    functions = {"a": lambda example: {"b": True, "Oslo": example["city"] == "Oslo"}, f"a/{part}": lambda example: True}
    text = re.escape(f"evaluations.a.slices.a/{part}: two slices are named 'a/{part}'. Rename one")
    with pytest.raises(TaskError, match=text):
        masks(functions)


def test_unknown_function_and_argument_are_config_errors():
    with pytest.raises(ConfigError, match=r"evaluations.a.slices.s.target: found 'tests.measuring.is_hig'.*is_high"):
        build_slices({"s": Target(target="tests.measuring.is_hig")}, "evaluations.a")
    with pytest.raises(ConfigError, match=r"evaluations.a.slices.s.abov: .* takes no such argument.*above"):
        build_slices({"s": Target(target="tests.measuring.is_high", arguments={"abov": 1})}, "evaluations.a")
