"""Methods of Tasks as functions of weights and inputs by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine.base.errors import TaskError
from engine.bundles.forward import forward_of
from tests import zoo
from tests.bundles import subjects

EXAMPLE = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in zoo.examples(1).items()}


def forward(task, method="predict", dtype=jnp.float32, example=EXAMPLE, **settings):
    """Returns the function of a method with a new model in evaluation mode."""
    model = task.build(nnx.Rngs(0))
    model.eval()
    return forward_of(task, model, dtype, example, method, **settings), model


@pytest.mark.parametrize("kind", ["mlp", "cnn", "linear"])
def test_function_computes_what_the_method_does_with_any_number_of_rows(kind):
    task = subjects.Reader(model=kind, dropout=0.5)
    found, model = forward(task)
    batch = zoo.examples(5)
    want = task.predict(model, batch)
    have = jax.jit(found.function)(found.weights, {"x": batch["x"]})
    np.testing.assert_allclose(have["scores/all"], want["scores"]["all"], rtol=1e-6)
    assert sorted(found.inputs) == ["x"] and found.inputs["x"].shape == (16,)
    names = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))}
    assert set(found.weights) == names


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_only_what_the_method_reads_is_an_input(dtype):
    assert sorted(forward(subjects.Reader(), dtype=dtype)[0].inputs) == ["x"]
    assert sorted(forward(subjects.Reader(), "certain", dtype)[0].inputs) == ["valid", "x"]


def test_only_what_the_method_reads_is_a_weight():
    example = {"frames": jax.ShapeDtypeStruct((3, 16), jnp.float32)}
    found, model = forward(subjects.Reader(), "embed", example=example)
    assert sorted(found.weights) == ["hidden/0/bias", "hidden/0/kernel"]
    frames = zoo.examples(6)["x"].reshape(2, 3, -1)
    have = jax.jit(found.function)(found.weights, {"frames": frames})["prediction"]
    np.testing.assert_allclose(have, subjects.Reader().embed(model, {"frames": frames}), rtol=1e-6)


def test_parameters_have_the_precision_of_the_step_and_statistics_their_own():
    found, _ = forward(subjects.Reader(model="cnn"), dtype=jnp.bfloat16)
    dtypes = {name.split("/")[-1]: x.dtype.name for name, x in found.weights.items()}
    assert dtypes["kernel"] == "bfloat16" and dtypes["mean"] == dtypes["var"] == "float32"


def test_memory_is_an_input_and_an_output():
    task = subjects.Track(rows=4)
    sequence = {"starts": jax.ShapeDtypeStruct((), bool), "valid": jax.ShapeDtypeStruct((5,), bool)}
    example = {"seen": jax.ShapeDtypeStruct((5,), jnp.float32), "sequence": sequence}
    found, _ = forward(task, example=example, rows=4)
    assert found.state == ("state/memory",) and found.inputs["state/memory"].shape == (8,)
    assert "memory" not in found.weights and found.batched(3)["state/memory"].shape == (3, 8)


class Constant(subjects.Reader):
    """A Task that predicts the same for every batch, or reads an entry that does not exist."""

    def predict(self, model, batch):
        return {"one": jnp.ones(3)}

    def embed(self, model, batch):
        return batch["xx"]


def test_methods_that_read_nothing_or_an_unknown_entry_are_refused():
    with pytest.raises(TaskError, match=r"Constant.predict: reads nothing of a batch"):
        forward(Constant())
    with pytest.raises(TaskError, match=r"Constant.embed: there is no 'xx' .*forward_test.py:\d+.* Did you mean x\?"):
        forward(Constant(), "embed")


@dataclasses.dataclass
class Returns(subjects.Reader):
    """A Task that returns what its function does."""

    function: Callable[[jax.Array], Any] = lambda x: x

    def predict(self, model, batch):
        return self.function(batch["x"])


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda x: {"x": x, "names": "ab"}, "returns names of type str, .* Return arrays of bool"),
        (lambda x: {"x": x + 1j}, "returns x of type complex64"),
        (lambda x: {"x": x, "key": jax.random.key(0)}, "returns key of type key<fry>"),
        (lambda x: {"a/b": x, "a": {"b": x}}, "returns two arrays with the name a/b"),
        (np.asarray, r"needs the values of a batch in Python \(.*forward_test.py:\d+ in predict\)"),
        (lambda x: x * float(x.sum()), r"needs the values of a batch in Python \(.*forward_test.py:\d+ in <lambda>\)"),
    ],
)
def test_results_that_no_program_can_return_are_named(function, problem):
    with pytest.raises(TaskError, match=f"Returns.predict: .*{problem}"):
        forward(Returns(function=function))


def test_numbers_and_arrays_of_all_kinds_are_outputs():
    found, _ = forward(Returns(function=lambda x: {"x": x, "n": 3, "rate": 0.5, "anchors": np.arange(3), "ok": x > 0}))
    outputs = jax.eval_shape(found.function, found.weights, found.batched(2))
    assert {name: (x.shape, str(x.dtype)) for name, x in outputs.items()} == {
        "x": ((2, 16), "float32"),
        "n": ((), "int32"),
        "rate": ((), "float32"),
        "anchors": ((3,), "int32"),
        "ok": ((2, 16), "bool"),
    }
