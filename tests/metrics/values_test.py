"""Values that a Task returns: conversion, and their description in errors."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine.base.errors import TaskError
from engine.metrics.values import describe_value, not_real, real_array


@pytest.mark.parametrize("value", [True, 1, 2.5, np.float64(1), np.ones(2, np.int8), jnp.ones(2, jnp.bfloat16), [1, 2]])
def test_real_numbers_become_float32(value):
    assert not_real(value) == ""
    assert real_array(value, "it").dtype == jnp.float32


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("high", "a str"),
        (np.ones(2, np.complex64), r"an array complex64\[2\]"),
        ([1, "high"], "a str"),
    ],
)
def test_other_values_are_named(value, text):
    with pytest.raises(TaskError, match=rf"^it that are real numbers, found {text}\.$"):
        real_array(value, "it")


def test_arrays_are_described_by_dtype_and_shape():
    assert describe_value(np.ones((2, 3), np.float32)) == "an array float32[2, 3]"
    assert describe_value(np.float32(1)) == "a single number (float32)"
