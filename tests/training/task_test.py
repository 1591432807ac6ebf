"""Errors of the checks of a Task, and its default evaluation."""

import functools

import jax
import jax.numpy as jnp
import pytest

from engine import Loss, Mean, Task
from engine.base.errors import TaskError
from engine.compile.evaluation_step import evaluation_step
from engine.training.task import check_examples, check_methods, rounded_inputs, rounding_note
from tests import zoo


def spec_of(**shapes):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def test_error_lists_entries_that_differ_from_the_batch_spec():
    class Spec(Task):
        def batch_spec(self):
            return spec_of(history=(8, 2), future=(12, 2))

    check_examples(Spec(), spec_of(history=(8, 2), future=(12, 2)), "data")
    with pytest.raises(TaskError) as error:
        check_examples(Spec(), spec_of(history=(8, 3), more=(1,)), "data")
    assert "data: future: Spec.batch_spec says float32[12, 2], the dataset gives nothing" in str(error.value)
    assert "history: Spec.batch_spec says float32[8, 2], the dataset gives float32[8, 3]" in str(error.value)
    assert "more: Spec.batch_spec says nothing, the dataset gives float32[1]" in str(error.value)


def test_task_without_batch_spec_accepts_any_example():
    check_examples(Task(), spec_of(anything=(3,)), "data")


def test_decorator_may_take_other_arguments_than_its_method():
    def scaled(method):
        @functools.wraps(method)
        def wrapper(self, model, batch, rng):
            return method(self, model, batch, rng, 2.0)

        return wrapper

    class Scaled(Task):
        @scaled
        def loss(self, model, batch, rng, scale):
            return Loss.of(scale * model(batch))

    check_methods(Scaled())


def test_method_with_other_arguments_is_reported_with_what_the_engine_passes():
    no_rng = type("NoRng", (Task,), {"loss": lambda self, model, batch: None})
    no_rngs = type("NoRngs", (Task,), {"build": lambda self: None})

    class Extra(Task):
        def loss(self, model, batch, rng, *, context, scale=1.0):
            return Loss.of(scale * model(batch))

        def evaluate(self, model, batch, **settings):
            return {}

    check_methods(Task())
    check_methods(Extra())
    with pytest.raises(TaskError, match=r"^NoRng.loss: found loss\(model, batch\), but .* Define loss\(self, mod"):
        check_methods(no_rng())
    with pytest.raises(TaskError, match=r"^NoRngs.build: found build\(\), but the engine calls build\(rngs\): too"):
        check_methods(no_rngs())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: loss.total, r"Classify.loss returned an array float32\[16\]. Return Loss.of"),
        (lambda loss: loss.total.mean(), r"Classify.loss returned a single number \(float32\). Return Loss.of"),
        (lambda loss: "0.5", r"Classify.loss returned a str. Return Loss.of"),
        (lambda loss: None, r"Classify.loss returned None. Return Loss.of"),
        (lambda loss: (loss, {}), r"Classify.loss returned a tuple. Return Loss.of"),
        (lambda loss: Loss("a", "b"), r"metric 'loss' holds a str, allowed are real numbers"),  # pyright: ignore
        (lambda loss: Loss(loss.total * 1j, loss.weight), r"metric 'loss' holds an array complex64\[16\], allowed"),
        (lambda loss: Loss(loss.total, loss.weight, None), r"the metrics are None, allowed is a dict"),  # pyright: ignore
        (lambda loss: Loss(loss.total, loss.weight, {1: Mean.of(loss.total)}), r"metric 1 is not a name"),  # pyright: ignore
        (lambda loss: Loss.of(loss.total.mean()), r"^Loss.of needs at least one value for each example"),
        (lambda loss: Loss.of(loss.total * 1j), r"^Loss.of needs values that are real numbers, found an array complex"),
        (lambda loss: Loss.of(loss.total, "x"), r"^Loss.of needs weights that are real numbers, found a str."),  # pyright: ignore
        (lambda loss: Loss(loss.total[:3], loss.weight), r"total \[3\] and weight \[16\] for a batch of 16"),
        (
            lambda loss: Loss(loss.total, loss.weight, {"loss": Mean.of(loss.total)}),
            r"the engine uses the metric name 'loss' itself",
        ),
        (
            lambda loss: Loss(loss.total, loss.weight, {"acc": loss.total}),
            r"metric 'acc' is an array .*. Return Mean.of",
        ),
    ],
)
def test_invalid_loss_raises_task_error(monkeypatch, result, message):
    plain = zoo.Classify.loss
    monkeypatch.setattr(zoo.Classify, "loss", lambda self, *args: result(plain(self, *args)))
    with pytest.raises(TaskError, match=message):
        zoo.program(zoo.Classify())


def test_missing_key_of_a_batch_is_a_sentence_with_the_entries_of_the_batch():
    class Typo(zoo.Classify):
        def loss(self, model, batch, rng):
            return Loss.of(batch["valdi"])

        def evaluate(self, model, batch):
            return {"x": Mean.of(batch["z"])}

    with pytest.raises(TaskError) as error:
        zoo.program(Typo())
    assert str(error.value).startswith("Typo.loss: there is no 'valdi' (") and "task_test.py:" in str(error.value)
    assert "Did you mean valid? The batch holds valid float32[16], x float32[16, 16], y int32[16]." in str(error.value)
    Typo.loss = zoo.Classify.loss
    with pytest.raises(TaskError, match=r"^Typo.evaluate: there is no 'z' .* The batch holds valid float32\[8\], x"):
        evaluation_step(zoo.program(Typo()).evaluation, spec_of(valid=(), x=(16,)), 8)


def test_loss_that_uses_rng_in_an_evaluation_is_a_sentence():
    class Noisy(zoo.Classify):
        def loss(self, model, batch, rng):
            noise = jax.vmap(lambda key: jax.random.normal(key, (16,)))(rng)
            return super().loss(model, {**batch, "x": batch["x"] + noise}, rng)

    program = zoo.program(Noisy()).evaluation
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), zoo.examples(1))
    with pytest.raises(TaskError, match=r"^Noisy.loss: rng is None in an evaluation.*task_test.py:.*use context.rng"):
        evaluation_step(program, example, 8)

    class Wrong(zoo.Classify):
        def loss(self, model, batch, rng):
            assert (rng is not None and len(rng) == 16) or len(3)  # pyright: ignore
            return super().loss(model, batch, rng)

    with pytest.raises(TypeError, match="has no len"):
        evaluation_step(zoo.program(Wrong()).evaluation, example, 8)


@pytest.mark.parametrize("method", ["build", "loss"])
def test_missing_method_raises_task_error(method):
    class Empty(zoo.Classify):
        pass

    setattr(Empty, method, getattr(Task, method))
    with pytest.raises(TaskError, match=rf"Empty has no {method}\(self"):
        zoo.program(Empty())


def test_default_evaluation_is_the_loss_and_its_metrics():
    program = zoo.program(zoo.Classify())
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), zoo.examples(1))
    _, states, by_row = evaluation_step(program.evaluation, example, 16)
    assert states.names == ("accuracy", "loss")
    assert by_row


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
