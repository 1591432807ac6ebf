"""Errors of the checks of a Task, and its default evaluation."""

import jax
import jax.numpy as jnp
import pytest

from engine import Loss, Mean, Task
from engine.config.errors import TaskError
from engine.training.task import check_examples
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


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: loss.total, r"Classify.loss returned a \w+. Return Loss.of"),
        (lambda loss: Loss(loss.total[:3], loss.weight), r"total \[3\] and weight \[16\] for a batch of 16"),
        (
            lambda loss: Loss(loss.total, loss.weight, {"loss": Mean.of(loss.total)}),
            r"the engine uses the metric name 'loss' itself",
        ),
        (lambda loss: Loss(loss.total, loss.weight, {"acc": loss.total}), r"metric 'acc' is a \w+. Return Mean.of"),
    ],
)
def test_invalid_loss_raises_task_error(monkeypatch, result, message):
    plain = zoo.Classify.loss
    monkeypatch.setattr(zoo.Classify, "loss", lambda self, *args: result(plain(self, *args)))
    with pytest.raises(TaskError, match=message):
        zoo.program(zoo.Classify())


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
    _, names, by_row = program.evaluation.evaluation(example, 16)
    assert names == ("accuracy", "loss")
    assert by_row
