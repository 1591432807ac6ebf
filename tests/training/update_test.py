"""The update that a Task defines itself: equal to the engine's where it does the same, guarded, and checked."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import Mean
from engine.base.errors import ConfigError, TaskError
from engine.config.schema import MeshSpec
from engine.metrics import Sum
from engine.parallel.memory import HOST_MEMORY
from tests import zoo


class Own(zoo.Classify):
    """Computes the step of Classify itself."""

    def update(self, state, batch, context):
        def objective(params):
            model = state.model(params)
            loss = self.loss(model, batch, context.rng)
            return loss.total.sum() / loss.weight.sum(), (loss, state.store(model))

        grads, (loss, state) = jax.grad(objective, has_aux=True)(state.params)
        return state.apply_gradients(grads), {"loss": Mean(loss.total, loss.weight), **loss.metrics}


@pytest.mark.slow
def test_own_update_that_does_the_same_gives_the_same_state_and_metrics():
    batches = zoo.batches(3)
    batches.insert(1, {**batches[0], "x": np.full_like(batches[0]["x"], np.nan)})  # the guard skips this update
    for model, mesh, layout in (("cnn", None, {}), ("mlp", MeshSpec(data=2, fsdp=4), {"offload_optimizer": True})):
        settings: dict[str, Any] = dict(ema_decay=0.9, mesh=mesh, layout=layout)
        expected, metrics = zoo.run(zoo.program(zoo.Classify(model, dropout=0.1), **settings), batches)
        program = zoo.program(Own(model, dropout=0.1), **settings)
        found, own = zoo.run(program, batches)
        assert program.metric_names[:2] == ("loss", "accuracy")
        assert own[:, program.metric_names.index("skipped"), 0].tolist() == [0, 1, 0, 0]
        zoo.assert_close(found, expected, 1e-6)
        np.testing.assert_allclose(own, metrics, rtol=1e-5)
        shardings = [[(x.sharding, x.dtype) for x in jax.tree.leaves(state)] for state in (found, expected)]
        assert shardings[0] == shardings[1]
        kinds = {x.sharding.memory_kind for x in jax.tree.leaves(found.opt_state)}
        assert (kinds == {HOST_MEMORY}) == bool(layout)
    bad = jax.device_put(zoo.batch(batches[1]), program.spec.batch_sharding)
    assert set(program.not_finite_gradients(found, bad, 1)) == set(found.params), "with the offloaded optimizer state"


@pytest.mark.slow
def test_state_can_be_carried_by_a_loop_and_a_nonfinite_parameter_skips_the_update():
    class Loop(Own):
        def update(self, state, batch, context):
            def body(state, _):
                state, metrics = Own.update(self, state, batch, context)
                return state, metrics["loss"]

            state, losses = jax.lax.scan(body, state, length=3)
            broken = jnp.where(context.step == 1, jnp.nan, 0)
            params = {path: x + broken for path, x in state.params.items()}
            mean = Mean(losses.total[0], losses.weight[0])
            return dataclasses.replace(state, params=params), {"loss": mean}

    batch = zoo.batches(1)
    program = zoo.program(Loop())
    state, metrics = zoo.run(program, batch * 3)
    assert metrics[:, program.metric_names.index("skipped"), 0].tolist() == [0, 1, 0]
    plain, _ = zoo.run(zoo.program(zoo.Classify()), batch * 6)
    zoo.assert_close(state.params, plain.params, 1e-5)
    placed = jax.device_put(zoo.batch(batch[0]), program.spec.batch_sharding)
    assert program.not_finite_gradients(state, placed, 0) == []
    assert set(program.not_finite_gradients(state, placed, 1)) == set(state.params), "the context has the given step"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, metrics: None, "Own.update returned None. Return the new state and a dict of metrics"),
        (lambda state, metrics: (metrics, state), "Own.update returned a tuple"),
        (lambda state, metrics: (state, {}), "there is no metric 'loss'"),
        (lambda state, metrics: (state, {"loss": 1.0}), "metric 'loss' is a float"),
        (lambda state, metrics: (state, {"loss": Sum(jnp.ones(16))}), "metric 'loss' is a Sum, but the guard divides"),
        (
            lambda state, metrics: (dataclasses.replace(state, params={}), metrics),
            "params/head/bias of the new state is nothing, it was float32",
        ),
    ],
)
def test_invalid_result_raises_task_error(monkeypatch, change, message):
    plain = Own.update
    monkeypatch.setattr(Own, "update", lambda self, *args: change(*plain(self, *args)))
    with pytest.raises(TaskError, match=message):
        zoo.program(Own())


def test_settings_that_split_or_filter_the_batch_raise_config_error():
    with pytest.raises(ConfigError, match=r"train.accumulate = 2: Own.update computes the whole step"):
        zoo.program(Own(), accumulate=2)
    with pytest.raises(ConfigError, match=r"data.on_error=skip: Own.update computes the whole step"):
        zoo.program(Own(), skip_bad=True)
