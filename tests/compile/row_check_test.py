"""Methods of a Task that mix rows are found at the start, and those that do not are allowed."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import engine
from engine import Loss, Mean
from engine.base.errors import ConfigError, TaskError
from engine.compile import row_check
from engine.compile.row_check import check_evaluation, check_loss, check_predictions
from engine.config.schema import MeshSpec, Train
from tests import runs, zoo
from tests.contrasting import Contrast

SOURCE = zoo.source(10)
SKIPS = "data.on_error=skip", "the filler of a bad example"


def contrast(logits):
    """Returns the loss of the rows `[rows]` with all other rows as negatives."""
    return -jnp.diagonal(jax.nn.log_softmax(logits @ logits.T))


class Negatives(zoo.Classify):
    def loss(self, model, batch, rng):
        return Loss.of(contrast(model(batch["x"], rng)))

    def predict(self, model, batch):
        return {"rank": contrast(model(batch["x"]))}


class ZeroHead(zoo.Classify):
    """At the start of a run every row has the loss 0, whatever the other rows."""

    def build(self, rngs):
        model: Any = super().build(rngs)
        model.head.kernel.set_value(jnp.zeros_like(model.head.kernel.get_value()))
        return model

    def loss(self, model, batch, rng):
        logits = model(batch["x"], rng)
        return Loss.of((logits - logits.mean(0)) ** 2)


class Statistics(zoo.Classify):
    def loss(self, model, batch, rng):
        values = super().loss(model, batch, rng).total
        return Loss.of(values / (1 + jax.lax.stop_gradient(values.std())))


class Noise(zoo.Classify):
    def loss(self, model, batch, rng):
        noise = 0 if rng is None else jax.random.normal(rng[0], batch["x"].shape)
        return super().loss(model, {**batch, "x": batch["x"] + noise}, rng)


class Position(zoo.Classify):
    def loss(self, model, batch, rng):
        loss = super().loss(model, batch, rng)
        return Loss.of(loss.total * (1 + jnp.arange(len(batch["y"]))))


class Halves(zoo.Classify):
    """The partner of a row is half a batch away, as in SimCLR."""

    def loss(self, model, batch, rng):
        logits = model(batch["x"], rng)
        return Loss.of(jnp.square(logits - jnp.roll(logits, len(logits) // 2, 0)).mean(-1))


class Share(zoo.Classify):
    """The mask of the batch decides how much a row counts."""

    def loss(self, model, batch, rng, context: Any = None):
        loss = super().loss(model, batch, rng)
        return Loss.of(loss.total * context.mask / context.mask.sum())


class Scaled(zoo.Classify):
    """The number of rows decides how much a row counts, as in the loss of many VAEs."""

    def loss(self, model, batch, rng):
        return Loss.of(super().loss(model, batch, rng).total * len(batch["y"]) / 1000)


class Unscaled(zoo.Classify):
    """A sum with a weight that does not grow with the rows."""

    def loss(self, model, batch, rng):
        return Loss(super().loss(model, batch, rng).total.sum(), jnp.float32(1))


class MixedMetric(zoo.Classify):
    def loss(self, model, batch, rng):
        loss = super().loss(model, batch, rng)
        return dataclasses.replace(loss, metrics={"gap": Mean.of(loss.total - loss.total.max())})


class Total(zoo.Classify):
    def loss(self, model, batch, rng):
        loss = super().loss(model, batch, rng)
        return Loss(loss.total.sum(), loss.weight.sum())


class Averaged(zoo.Classify):
    def loss(self, model, batch, rng):
        return Loss(model(batch["x"]).mean(), jnp.float32(1))


class Indexed(zoo.Classify):
    """An idiom that the trace does not prove: the rows are named by their numbers."""

    def loss(self, model, batch, rng):
        logits = jax.nn.log_softmax(model(batch["x"], rng))
        return Loss.of(-logits[jnp.arange(len(logits)), batch["y"]])


class Stabilized(zoo.Classify):
    """A number over all rows that cancels out."""

    def loss(self, model, batch, rng):
        logits = model(batch["x"], rng)
        largest = jax.lax.stop_gradient(logits.max())
        return Loss.of(jnp.log(jnp.exp(logits - largest).sum(-1)) + largest)


@functools.cache
def program(task: type, mesh: MeshSpec | None = None):
    return zoo.program(task(), mesh=mesh).evaluation


def check(task, source=SOURCE, **train):
    settings: dict[str, Any] = dict(accumulate=2, global_batch_size=16, **train)
    return check_loss(program(task), source, Train(**settings))


@pytest.mark.parametrize(
    "task", [Negatives, ZeroHead, Statistics, Noise, Position, Share, Scaled, Unscaled, MixedMetric]
)
def test_loss_that_mixes_rows_is_refused_with_microbatches(task):
    name = "gap" if task is MixedMetric else "loss"
    with pytest.raises(ConfigError, match=rf"train.accumulate = 2: in {task.__name__}.loss, '{name}' of a row depends"):
        check(task)
    check(task, approximate_accumulation=True)


@pytest.mark.parametrize("task", [zoo.Classify, Total, Averaged, Indexed, Stabilized, Contrast])
def test_loss_that_keeps_rows_apart_is_allowed_with_microbatches(task):
    assert check(task) == []


def test_rows_whose_partner_is_half_a_batch_away_are_found():
    with pytest.raises(ConfigError, match=r"Halves\.loss"):
        check(Halves, zoo.source(16))


def test_message_names_the_line_and_what_to_do():
    with pytest.raises(ConfigError) as error:
        check(Negatives)
    text = str(error.value)
    assert "(dot_general (" in text and "row_check_test.py:" in text and " in contrast)" in text
    assert "Use accumulate=1, or define encode(self, model, batch, rng) and loss_of(self, encoded, batch, mask)" in text
    assert "train.approximate_accumulation=True accepts the difference" in text


def test_most_losses_are_proved_without_running_them(monkeypatch):
    monkeypatch.setattr(row_check, "TOLERANCE", -1.0)  # every comparison of values would fail
    assert check(zoo.Classify) == []
    with pytest.raises(ConfigError):
        check(Indexed)


@pytest.mark.slow
def test_rows_are_told_apart_on_a_mesh():
    settings = Train(accumulate=2, global_batch_size=32)
    with pytest.raises(ConfigError, match=r"Negatives\.loss"):
        check_loss(program(Negatives, MeshSpec(data=2, fsdp=2, tensor=2)), SOURCE, settings)
    assert check_loss(program(Indexed, MeshSpec(data=2, fsdp=2, tensor=2)), SOURCE, settings) == []


def test_encode_that_mixes_rows_is_refused():
    class Centred(Contrast):
        def encode(self, model, batch, rng):
            found: Any = super().encode(model, batch, rng)
            return {**found, "left": found["left"] - found["left"].mean(0)}

    with pytest.raises(TaskError, match=r"Centred.encode: 'left' of a row .* Move what compares rows"):
        check(Centred)
    settings = Train(accumulate=1, global_batch_size=16)
    [warning] = check_loss(program(Centred), SOURCE, settings, SKIPS)
    assert warning.startswith("data.on_error=skip: in Centred.encode, 'left' of a row") and "Define" not in warning
    with pytest.raises(TaskError, match=r"Centred.encode: 'left' of a row .* Move what compares rows"):
        check_evaluation(program(Centred), SOURCE, 16, "evaluations.test", "6 rows are added")


def test_rows_that_loss_of_does_not_mask_are_found():
    class Unmasked(Contrast):
        def loss_of(self, encoded, batch, mask):
            values = contrast(encoded["left"])  # padding and fillers are negatives
            return Loss.of(values, mask)

    text = r"Unmasked.loss_of: 'loss' depends on rows for which mask is False, and in evaluations.test 6 rows are added"
    with pytest.raises(TaskError, match=text):
        check_evaluation(program(Unmasked), SOURCE, 16, "evaluations.test", "6 rows are added")
    settings = Train(accumulate=1, global_batch_size=16)
    with pytest.raises(
        TaskError, match=r"Unmasked.loss_of: .* and data.on_error=skip: the filler of a bad example has weight 0"
    ):
        check_loss(program(Unmasked), SOURCE, settings, SKIPS)
    assert check_loss(program(Contrast), SOURCE, settings, SKIPS) == []
    assert check_loss(program(Unmasked), SOURCE, settings) == []


def test_skipped_examples_of_a_loss_that_mixes_rows_are_reported():
    settings = Train(accumulate=1, global_batch_size=16)
    [warning] = check_loss(program(Negatives), SOURCE, settings, SKIPS)
    assert check_loss(program(Scaled), SOURCE, settings, SKIPS) == []  # the number of rows does not change
    assert warning.startswith("data.on_error=skip: in Negatives.loss, 'loss' of a row depends on other rows")
    assert check_loss(program(zoo.Classify), SOURCE, settings, SKIPS) == []


def test_evaluations_and_predictions_with_padding_are_refused_if_they_mix_rows():
    with pytest.raises(TaskError, match=r"evaluations.test: in Negatives.loss, 'loss' of .* and 6 rows are added"):
        check_evaluation(program(Negatives), SOURCE, 16, "evaluations.test", "6 rows are added")
    with pytest.raises(TaskError, match=r"Negatives.predict: 'rank' of a row depends on other rows"):
        check_predictions(program(Negatives), SOURCE, 16, "6 rows are added")
    check_evaluation(program(Noise), SOURCE, 16, "evaluations.test", "6 rows are added")  # no noise there
    check_evaluation(program(Contrast), SOURCE, 16, "evaluations.test", "6 rows are added")  # its mask leaves them out


class Accepted(Negatives):
    mixes_rows = True


def run(task, tmp_path, batch_size=None, **settings):
    """Trains on 32 examples for two steps, and evaluates 8 others."""
    sizes = dict(train__global_batch_size=16, evaluations__heldout__batch_size=batch_size)
    config = runs.config(**{"train__total": "2 steps", **sizes, **settings})
    return engine.train(
        config, task=task, data=zoo.source(32), evaluation_data={"heldout": zoo.source(8)}, workdir=tmp_path
    )


@pytest.mark.slow
def test_a_run_is_refused_before_it_starts(tmp_path):
    with pytest.raises(TaskError, match="the last batch is padded with 8 rows"):
        run(Negatives(), tmp_path)
    with pytest.raises(ConfigError, match=r"train.accumulate = auto: in Negatives\.loss"):
        run(Negatives(), tmp_path, batch_size=8, train__accumulate="auto", train__memory_gib=1)


@pytest.mark.slow
def test_an_evaluation_does_not_depend_on_padding(tmp_path):
    exact = run(Accepted(), tmp_path / "exact", batch_size=8).metrics["heldout/loss"]
    assert run(Accepted(), tmp_path / "real", batch_size=64).metrics["heldout/loss"] == pytest.approx(exact, rel=1e-6)
    log = (tmp_path / "exact/log.txt").read_text
    assert "batch_size has changed" not in log()
    run(Accepted(), tmp_path / "exact", batch_size=64)
    assert "evaluations.heldout.batch_size has changed, and Accepted compares the rows" in log()
    with pytest.raises(ConfigError, match=r"train.accumulate = 2: in Accepted\.loss"):
        run(Accepted(), tmp_path / "exact", batch_size=64, train__accumulate=2)
    masked = run(Contrast(), tmp_path / "masked", batch_size=64).metrics["heldout/loss"]
    assert run(Contrast(), tmp_path / "whole", batch_size=8).metrics["heldout/loss"] == pytest.approx(masked, rel=1e-6)
