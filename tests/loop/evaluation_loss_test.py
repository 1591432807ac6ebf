import re
from typing import Any

import jax
import pytest

from engine import Loss, Mean
from engine.config.schema import Evaluation
from engine.loop.evaluation import Evaluator
from engine.metrics.results import scalars
from tests import zoo

ROWS = 13


class Accuracy(zoo.Classify):
    """A Task whose evaluation returns no loss."""

    def evaluate(self, model, batch):
        return {"accuracy": zoo.Classify.loss(self, model, batch, None).metrics["accuracy"]}


class Refuses(Accuracy):
    def evaluate(self, model, batch):
        return {**super().evaluate(model, batch), "loss": None}


class Sum(Accuracy):
    def loss(self, model, batch, rng) -> Any:
        loss = super().loss(model, batch, rng)
        return Loss.sum(near=Loss(loss.total, loss.weight), far=2 * Loss(loss.total, loss.weight))


class Compares(Accuracy):
    def loss(self, model, batch, rng):
        loss = super().loss(model, batch, rng)
        return Loss(loss.total - loss.total.mean(), loss.weight)


class Adds(Accuracy):
    def loss(self, model, batch, rng):
        loss = super().loss(model, batch, rng)
        return Loss(loss.total.sum(), loss.weight.sum())


class Draws(Accuracy):
    def loss(self, model, batch, rng):
        return Loss.of(jax.vmap(jax.random.uniform)(rng))


def measured(task, batch_size=8):
    """Returns the numbers of an evaluation of initial weights, and its warnings."""
    program = zoo.program(task)
    evaluation = Evaluator("heldout", Evaluation(), zoo.source(ROWS, seed=5), program.evaluation, batch_size)
    return scalars(evaluation.run(program.init()) or {}), evaluation.warnings


@pytest.fixture(scope="module")
def default() -> dict[str, float]:
    """The results of the default `evaluate`."""
    return measured(zoo.Classify())[0]


def test_evaluate_without_a_loss_keeps_it(default):
    found, warnings = measured(Accuracy())
    assert found == pytest.approx(default)
    assert warnings == []


def test_terms_of_a_sum_are_kept_with_it(default):
    found, warnings = measured(Sum())
    near = default["heldout/loss"]
    assert found["heldout/near"] == pytest.approx(near)
    assert (found["heldout/far"], found["heldout/loss"]) == (pytest.approx(2 * near), pytest.approx(3 * near))
    assert warnings == []


def test_none_leaves_out_the_loss(default):
    assert measured(Refuses()) == ({"heldout/accuracy": default["heldout/accuracy"]}, [])


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (Compares(), r"Compares.loss of a row may depend on other rows of its batch \(.*evaluation_loss_test.py:\d+"),
        (Adds(), "Adds.loss returns one number for a batch"),
        (Draws(), "Draws.loss fails where rng is None: "),
    ],
)
def test_loss_that_cannot_be_measured_is_left_out_with_a_warning(task, problem):
    found, warnings = measured(task)
    assert list(found) == ["heldout/accuracy"]
    [text] = warnings
    assert text.startswith("evaluations.heldout: the loss is not measured, since ")
    assert re.search(problem, text)


def test_loss_that_compares_rows_is_measured_without_padding():
    found, warnings = measured(Compares(), ROWS)
    assert found["heldout/loss"] == pytest.approx(0, abs=1e-6)
    assert warnings == []


def test_own_loss_of_evaluate_is_not_replaced():
    class Own(zoo.Classify):
        def evaluate(self, model, batch):
            return {"loss": Mean.of(batch["x"].mean(-1) * 0 + 7)}

    assert measured(Own()) == ({"heldout/loss": 7.0}, [])
