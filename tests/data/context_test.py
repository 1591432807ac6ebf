"""The context of a Task's methods."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import ArraySource, Loss, Mean
from engine.compile.evaluation_program import EVALUATION
from engine.config.schema import Evaluation, MeshSpec
from engine.data.batches import Batches
from engine.data.context import names_total_steps, wants_context
from engine.loop.evaluation import Evaluator
from tests import zoo


class Mine(zoo.Classify):
    """Logs its context."""

    def loss(self, model, batch, rng, context):  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = super().loss(model, batch, rng)
        ones = jnp.ones(len(batch["y"]))
        same = jax.random.key_data(context.rng) == jax.random.key_data(rng)
        metrics = {
            "at": Mean.of(ones * context.step),
            "epoch": Mean.of(ones * context.epoch),
            "total": Mean.of(ones * context.total_steps),
            "same": Mean.of(same),
        }
        return Loss(loss.total, loss.weight, metrics)


@pytest.mark.slow
def test_loss_that_declares_a_context_knows_the_step_and_its_keys():
    assert wants_context(Mine().loss) and not wants_context(zoo.Classify().loss) and not wants_context(int)
    program = zoo.program(Mine(), accumulate=2)
    _, metrics = zoo.run(program, zoo.batches(3), k=3)
    means = dict(zip(program.metric_names, (metrics[:, :, 0] / metrics[:, :, 1]).T.tolist(), strict=True))
    assert means["at"] == [0, 1, 2]
    assert means["epoch"] == [0, 0.25, 0.5]
    assert means["total"] == [10, 10, 10]
    assert means["same"] == [1, 1, 1]


class Growing(ArraySource):
    """Examples that say when they are used."""

    def transform(self, example, rng, context):
        assert context.rng is rng
        return {"at": np.array([context.step, context.epoch, context.total_steps], np.float32)}


def test_transform_that_declares_a_context_knows_the_step():
    batches = Batches(Growing({"at": np.zeros(8, np.float32)}), 4, seed=0, shuffle=True, total=5)
    found = np.stack([batches[n].examples["at"] for n in range(3)])
    assert found[:, :, 0].tolist() == [[0] * 4, [1] * 4, [2] * 4]
    assert found[1:, :, 1].tolist() == [[0.5, 0.625, 0.75, 0.875], [1, 1.125, 1.25, 1.375]]
    assert (found[:, :, 2] == 5).all()


class Teacher(nnx.Variable):
    """Average weights."""


class Taught(zoo.Classify):
    """A classifier whose weights are averaged in `teacher` after each step."""

    model_state = (Teacher,)

    def build(self, rngs):
        model = super().build(rngs)
        model.teacher = Teacher(jnp.zeros((zoo.SIZE, self.width)))  # pyright: ignore[reportAttributeAccessIssue]
        model.noise = Teacher(jnp.zeros(()))  # pyright: ignore[reportAttributeAccessIssue]
        return model

    def after_step(self, model, context):
        decay = jnp.where(context.step == 0, 0.0, 0.5)
        model.teacher[...] = decay * model.teacher[...] + (1 - decay) * model.hidden[0].kernel[...]
        model.noise[...] = jax.random.uniform(context.rng)
        model.head.bias[...] = jnp.clip(model.head.bias[...], -0.001, 0.001)


@pytest.mark.slow
def test_after_step_runs_once_after_each_update_and_not_after_a_skipped_one():
    batches = zoo.batches(4)
    batches[2] = {**batches[2], "x": np.full_like(batches[2]["x"], np.nan)}  # the guard skips this update
    done = []
    for accumulate, mesh in ((1, None), (2, MeshSpec(data=2, fsdp=4))):
        program = zoo.program(Taught(), accumulate=accumulate, mesh=mesh, ema_decay=0.5)
        state, expected = program.init(), np.zeros((zoo.SIZE, 32), np.float32)
        noise = []
        for step, batch in enumerate(batches):
            placed = jax.device_put(zoo.batch(batch), program.spec.batch_sharding)
            state, _ = program.steps(1)(state, (placed,), program.skip_mask((False,)))
            if step != 2:
                weight = 0.0 if step == 0 else 0.5
                expected = weight * expected + (1 - weight) * np.asarray(state.params["hidden/0/kernel"])
                noise.append(float(state.model_state["noise"]))
            np.testing.assert_allclose(state.model_state["teacher"], expected, rtol=0, atol=1e-7)
            assert float(abs(state.params["head/bias"]).max()) <= 0.0011
        assert len(set(noise)) == 3
        assert state.ema is not None and float(abs(state.ema["head/bias"]).max()) <= 0.0011
        done.append(jax.device_get(state.model_state))
    zoo.assert_close(done[0], done[1], 1e-5)


def test_after_step_that_creates_a_variable_or_changes_a_shape_raises_task_error():
    class New(Taught):
        def after_step(self, model, context):
            model.more = Teacher(jnp.zeros(()))

    class Shape(Taught):
        def after_step(self, model, context):
            model.teacher.set_value(jnp.zeros(3))

    for task, message in ((New(), "more: variables that were created"), (Shape(), r"teacher: found shape \[3\]")):
        with pytest.raises(Exception, match=message):
            zoo.run(zoo.program(task), zoo.batches(1))


class Late(zoo.Classify):
    """Depends on the length of the run only after the update."""

    def after_step(self, model, context):
        model.head.bias[...] *= context.step / context.total_steps


def test_code_that_reads_the_length_of_the_run_is_known():
    assert [zoo.program(task()).reads_total_steps for task in (Mine, Late, Taught, zoo.Classify)] == [True] * 2 + [
        False
    ] * 2

    def nested(example, rng, context):
        return [context.total_steps for _ in range(2)]

    assert names_total_steps(zoo.timed().transform) and names_total_steps(nested)
    assert not names_total_steps(lambda example, rng, context: context.step) and not names_total_steps(int)


class FrozenTeacher(zoo.Classify):
    """Averages the weights in parameters that are not trained, and breaks them at step 1."""

    def build(self, rngs):
        model = super().build(rngs)
        model.teacher = nnx.Param(jnp.zeros(self.width))  # pyright: ignore[reportAttributeAccessIssue]
        model.constant = nnx.Param(jnp.full(3, jnp.inf))  # pyright: ignore[reportAttributeAccessIssue]
        return model

    def after_step(self, model, context):
        model.teacher[...] = jnp.where(context.step == 1, jnp.nan, model.hidden[0].bias[...])


class FrozenUpdate(FrozenTeacher):
    """Does the same in the update."""

    after_step = zoo.Classify.after_step

    def update(self, state, batch, context):
        value = jnp.where(context.step == 1, jnp.nan, state.params["hidden/0/bias"])
        return dataclasses.replace(state, frozen={**state.frozen, "teacher": value}), {"loss": Mean.of(batch["x"])}


@pytest.mark.slow
def test_frozen_parameters_that_the_task_changes_are_checked():
    for task in (FrozenTeacher(), FrozenUpdate()):
        program = zoo.program(task, trainable="hidden|head")
        assert program.spec.changed_frozen == ("teacher",)
        state, metrics = zoo.run(program, zoo.batches(2))
        skipped = metrics[:, program.metric_names.index("skipped"), 0].tolist()
        own = isinstance(task, FrozenUpdate)
        assert (skipped, program.not_finite(state)) == (([0, 1], []) if own else ([0, 0], ["params/teacher"]))


class Drawn(zoo.Classify):
    """Returns the context of an evaluation and numbers that are drawn with its keys."""

    def loss(self, model, batch, rng, context):  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = super().loss(model, batch, None)
        drawn = jax.vmap(jax.random.uniform)(context.rng)
        ones = jnp.ones(len(drawn))
        metrics = {
            "first": Mean.of(drawn * batch["x"][:, 0]),
            "drawn": Mean.of(drawn),
            "at": Mean.of(ones * context.step),
        }
        return Loss(loss.total, loss.weight, {**metrics, "total": Mean.of(ones * context.total_steps)})


@pytest.mark.slow
def test_evaluation_draws_equal_numbers_for_each_example_with_any_batch_size():
    found = []
    for mesh, batch_size in ((None, 8), (MeshSpec(data=2, fsdp=4), 16)):
        program = zoo.program(Drawn(), mesh=mesh)
        evaluation = Evaluator("heldout", Evaluation(), zoo.source(37), program.evaluation, batch_size)
        results = evaluation.run(program.init(), step=3)
        assert results is not None
        found.append(results)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0]["heldout/at"] == 3 and found[0]["heldout/total"] == 10
    key = jax.random.fold_in(jax.random.key(0), EVALUATION)
    drawn = [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(37)]
    assert found[0]["heldout/drawn"] == pytest.approx(np.mean(drawn), rel=1e-5)
    assert found[0]["heldout/first"] == pytest.approx(np.mean(drawn * zoo.examples(37)["x"][:, 0]), rel=1e-4)
