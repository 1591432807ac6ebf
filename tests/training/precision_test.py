"""The sentence that names the inputs which bfloat16 rounds."""

import jax
import jax.numpy as jnp
import pytest

from engine.training.precision import rounded_inputs, rounding_note
from tests import zoo

BATCH = {
    "history": jax.ShapeDtypeStruct((4, 10, 2), jnp.float32),
    "future": {"position": jax.ShapeDtypeStruct((4, 30, 2), jnp.float32), "valid": jax.ShapeDtypeStruct((4,), bool)},
    "image": jax.ShapeDtypeStruct((4, 8, 8), jnp.uint8),
    "features": jax.ShapeDtypeStruct((4, 8), jnp.bfloat16),
}


class Keeps(zoo.Classify):
    full_precision = ("position",)


@pytest.mark.parametrize(
    ("task", "dtype", "names"),
    [
        (zoo.Classify(), jnp.float32, []),
        (zoo.Classify(), jnp.bfloat16, ["future/position", "history"]),
        (Keeps(), jnp.bfloat16, ["history"]),
    ],
)
def test_inputs_of_floating_point_are_rounded_unless_the_task_names_them(task, dtype, names):
    assert rounded_inputs(task, BATCH, dtype) == names


def test_note_names_the_inputs_the_error_and_the_remedy():
    assert rounding_note(Keeps(), BATCH, jnp.bfloat16, "bfloat16") == (
        "train.precision=bfloat16 rounds the input history, also in evaluations, by up to 0.4%. Inputs that must stay "
        "float32, such as coordinates, times and boxes, belong in Keeps.full_precision."
    )
    assert rounding_note(Keeps(), BATCH, jnp.float32, "float32") == ""
    value = jnp.float32(257)  # between 256 and 258, which are neighbours in bfloat16
    assert abs(float(value.astype(jnp.bfloat16)) / float(value) - 1) == pytest.approx(0.004, rel=0.05)
