"""Several losses: sums with their own denominators, losses that each train one optimizer group, and their errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from engine import Loss, Mean
from engine.base.errors import TaskError
from engine.config.schema import Evaluation, Group, MeshSpec
from engine.loop.evaluation import Evaluator
from engine.training.objective import EVERY, LOSS, Objective, evaluation_metrics
from tests import zoo

SGD: dict[str, Any] = dict(target="optax.sgd", clip_norm=None, batch_size=32)


class TwoTerms(zoo.Classify):
    """Cross-entropy over the valid rows, and half a penalty over the rows of class 1."""

    def loss(self, model, batch, rng):  # pyright: ignore[reportIncompatibleMethodOverride]
        penalty = Loss.of(model(batch["x"], rng) ** 2, batch["y"] == 1, {"rows": Mean.of(batch["y"] == 1)})
        return Loss.sum(class_=super().loss(model, batch, rng), penalty=0.5 * penalty)


class ModelWeights(zoo.Classify):
    """A sum of which one weight depends on the model."""

    def loss(self, model, batch, rng):  # pyright: ignore[reportIncompatibleMethodOverride]
        logits = model(batch["x"], rng)
        return Loss.sum(a=super().loss(model, batch, rng), b=Loss.of(logits[:, 0] ** 2, logits[:, 1] > 0))


def hand_written(program, batch):
    """Returns the value and the gradient of the loss of TwoTerms, written out."""
    params = jax.device_get(program.init().params)

    def value(params):
        logits = program.spec.model.module(params, {}, None)(batch["x"], None)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        penalised = (logits**2).sum(1) * (batch["y"] == 1)
        first = (losses * batch["valid"]).sum() / batch["valid"].sum()
        return first + 0.5 * penalised.sum() / (4 * (batch["y"] == 1).sum())

    return params, *jax.jit(jax.value_and_grad(value))(params)


@pytest.mark.slow
def test_sum_of_losses_divides_each_term_by_its_own_global_weight():
    (batch,) = zoo.batches(1, 32)
    params, value, gradient = hand_written(zoo.program(TwoTerms(), **SGD), batch)
    for accumulate, mesh in ((1, None), (4, None), (2, MeshSpec(data=2, fsdp=4))):
        program = zoo.program(TwoTerms(), accumulate=accumulate, mesh=mesh, learning_rate=1.0, **SGD)
        state, metrics = zoo.run(program, [batch])
        zoo.assert_close(state.params, jax.tree.map(jnp.subtract, params, gradient), 1e-6)
        assert program.metric_names[:5] == ("loss", "accuracy", "class_", "penalty", "rows")
        means = metrics[0, :, 0] / metrics[0, :, 1]
        assert means[0] == pytest.approx(float(value), rel=1e-6)
        assert means[2] + means[3] == pytest.approx(means[0], rel=1e-6)


def test_weights_that_depend_on_the_model_are_summed_over_all_microbatches():
    batches = zoo.batches(2, 32)
    full, expected = zoo.run(zoo.program(ModelWeights(), **SGD), batches)
    parts, metrics = zoo.run(zoo.program(ModelWeights(), accumulate=4, **SGD), batches)
    zoo.assert_close(full.params, parts.params, 1e-6)
    np.testing.assert_allclose(metrics, expected, rtol=1e-5)


def test_sums_nest_and_are_scaled_term_by_term():
    one = Loss.of(jnp.ones(2))
    nested = Loss.sum(
        a=one,
        b=np.float32(2) * Loss.sum(c=one, d=jnp.float32(3) * one),  # pyright: ignore[reportOperatorIssue]
    )
    assert {name: term.total.tolist() for name, term in nested.terms.items()} == {
        "a": [1, 1],
        "b/c": [2, 2],
        "b/d": [6, 6],
    }


def draw(keys):
    return jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)


class Duel(zoo.Classify):
    """The generator makes examples from noise; the critic tells them from real ones."""

    def build(self, rngs):
        class Pair(nnx.Module):
            def __init__(self):
                self.generator = nnx.Linear(4, zoo.SIZE, rngs=rngs)
                self.critic = nnx.Linear(zoo.SIZE, 1, rngs=rngs)

        return Pair()

    def loss(self, model, batch, rng):  # pyright: ignore[reportIncompatibleMethodOverride]
        noise = draw(rng)
        fake, real = model.critic(model.generator(noise))[:, 0], model.critic(batch["x"])[:, 0]
        critic = Loss.sum(real=Loss.of(nnx.softplus(-real), batch["valid"]), fake=Loss.of(nnx.softplus(fake)))
        return {"generator": Loss.of(nnx.softplus(-fake)), "critic": critic}


GROUPS = {"generator": Group(match="^generator"), "critic": Group(match="^critic", learning_rate_scale=3.0)}


@pytest.mark.slow
def test_each_loss_trains_its_group_as_a_hand_written_loop_with_two_optimizers_does():
    batches = zoo.batches(3, 32)
    settings: dict[str, Any] = dict(batch_size=32, target="optax.adam", clip_norm=None, groups=GROUPS)
    program = zoo.program(Duel(), **settings)
    params = jax.device_get(program.init().params)
    optimizers = {"generator": optax.adam(0.01), "critic": optax.adam(0.03)}
    parts: dict[str, Any] = {
        name: {path: x for path, x in params.items() if path.startswith(name)} for name in optimizers
    }
    states = {name: tx.init(parts[name]) for name, tx in optimizers.items()}

    def values(parts, batch, keys):
        model: Any = program.spec.model.module({**parts["generator"], **parts["critic"]}, {}, None)
        fake, real = model.critic(model.generator(draw(keys)))[:, 0], model.critic(batch["x"])[:, 0]
        of_real = (nnx.softplus(-real) * batch["valid"]).sum() / batch["valid"].sum()
        return {"generator": nnx.softplus(-fake).mean(), "critic": of_real + nnx.softplus(fake).mean()}

    @jax.jit
    def hand_written_step(parts, states, batch, step):
        key = jax.random.fold_in(jax.random.key(0), step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(32))
        trained, after = {}, {}
        for name, tx in optimizers.items():
            gradient = jax.grad(lambda parts, name=name: values(parts, batch, keys)[name])(parts)[name]
            updates, after[name] = tx.update(gradient, states[name])
            trained[name] = optax.apply_updates(parts[name], updates)
        return trained, after

    for step, batch in enumerate(batches):
        parts, states = hand_written_step(parts, states, batch, step)
    for accumulate, mesh in ((1, None), (4, MeshSpec(data=2, fsdp=4))):
        found = zoo.program(Duel(), accumulate=accumulate, mesh=mesh, **settings)
        state, metrics = zoo.run(found, batches)
        zoo.assert_close(state.params, {**parts["generator"], **parts["critic"]}, 1e-5)
        means = dict(zip(found.metric_names, metrics[0, :, 0] / metrics[0, :, 1], strict=True))
        assert means["loss"] == pytest.approx(means["generator"] + means["critic/real"] + means["critic/fake"])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"generator": GROUPS["generator"]}, "returned a loss 'critic', but optimizer.groups has no such group"),
        ({**GROUPS, "generator": Group(match="kernel")}, "returned a loss 'critic', but|belong to no group"),
        ({**GROUPS, "critic": Group(match="^critic/kernel")}, "some trained parameters belong to no group"),
        ({"bias": Group(match="bias"), **GROUPS}, "optimizer.groups.bias: .* none of them trains this group"),
    ],
)
def test_loss_without_group_and_group_without_loss_raise_task_error(groups, message):
    with pytest.raises(TaskError, match=message):
        zoo.program(Duel(), groups=groups)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: {}, "returned an empty dict"),
        (lambda loss: {"critic": None}, "returned None for 'critic'"),
        (lambda loss: {"": Loss.sum(a=loss)}, "returned a loss for ''. Use the names of optimizer.groups"),
        (lambda loss: Loss.sum(), "needs at least one term"),
        (lambda loss: Loss.sum(a=loss.total), r"Loss.sum: a is an array float32\[16\]. Use Loss.of"),
        (lambda loss: Loss.sum(loss=loss), "uses the metric name 'loss' itself"),
        (lambda loss: Loss.sum(a=loss, b=loss), "two losses or metrics have the name 'accuracy'"),
        (lambda loss: Loss.sum(a=Loss(loss.total[:3], loss.weight)), r"metric 'a' has total \[3\]"),
    ],
)
def test_invalid_sum_raises_task_error(result, message):
    class Wrong(zoo.Classify):
        def loss(self, model, batch, rng):
            return result(super().loss(model, batch, rng))

    with pytest.raises(TaskError, match=message):
        zoo.program(Wrong())


def test_sum_has_a_value_if_one_term_has_weight():
    """A batch may hold no box, and so no weight for the loss of boxes."""
    objective = Objective({EVERY: ("heat", "box")})
    one, none = jnp.array([3.0, 2.0]), jnp.zeros(2)
    assert objective.complete({"heat": one, "box": none})[LOSS].tolist() == [1.5, 1]
    assert objective.complete({"heat": none, "box": none})[LOSS].tolist() == [0, 0]


def test_evaluation_has_no_sum_if_one_term_is_a_scalar():
    rows, scalar = Loss.of(jnp.ones(3)), Loss(jnp.float32(1), jnp.float32(1))
    assert evaluation_metrics(Loss.sum(a=rows, b=scalar)).keys() == {"a", "b"}
    assert evaluation_metrics(Loss.sum(a=rows, b=rows)).keys() == {"a", "b", LOSS}


def test_evaluation_of_a_sum_has_its_terms_and_their_sum():
    program = zoo.program(TwoTerms())
    evaluation = Evaluator("heldout", Evaluation(), zoo.source(37), program.evaluation, 16)
    found: Any = evaluation.run(program.init())
    _, value, _ = hand_written(program, zoo.examples(37))
    assert found["heldout/loss"] == pytest.approx(float(value), rel=1e-5)
    assert sum(float(found[f"heldout/{name}"]) for name in ("class_", "penalty")) == pytest.approx(
        float(value), rel=1e-5
    )
