"""Weight decay towards the initial weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from convoy_zoo.models import l2_sp
from engine.config.schema import MeshSpec
from tests import zoo

TARGET = "convoy_zoo.models.l2_sp.adamw"


def train(tx: Any, start: Any, gradient: Any, steps: int = 4) -> np.ndarray:
    params: Any = start
    state = tx.init(start)
    for _ in range(steps):
        change, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, change)
    return np.asarray(params["x"])


def by_path(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_minimises_the_penalised_loss(momentum):
    start = {"x": jnp.array([1.0, -2.0, 3.0])}
    target = jnp.array([0.0, 4.0, 3.0])

    def loss(params: Any) -> jax.Array:
        return ((params["x"] - target) ** 2).sum()

    def penalised(params: Any) -> jax.Array:
        return loss(params) + 0.5 / 2 * ((params["x"] - start["x"]) ** 2).sum()

    found = train(l2_sp.sgd(0.1, momentum=momentum, weight_decay=0.5), start, jax.grad(loss))
    expected = train(optax.sgd(0.1, momentum=momentum), start, jax.grad(penalised))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_adamw_from_zero_is_that_of_optax():
    start = {"x": jnp.zeros(3)}
    gradient = lambda params: {"x": params["x"] - jnp.array([1.0, 2.0, -3.0])}  # noqa: E731
    found = train(l2_sp.adamw(0.1, weight_decay=0.3), start, gradient)
    np.testing.assert_allclose(found, train(optax.adamw(0.1, weight_decay=0.3), start, gradient), rtol=1e-6)


def test_without_a_gradient_the_weights_return():
    tx: Any = l2_sp.adamw(0.5, weight_decay=1.0)
    start, moved = {"x": jnp.array([1.0, 2.0])}, {"x": jnp.array([3.0, 2.0])}
    change, _ = tx.update({"x": jnp.zeros(2)}, tx.init(start), moved)
    np.testing.assert_allclose(moved["x"] + change["x"], [2.0, 2.0])


def test_initial_weights_are_those_of_the_checkpoint_and_sharded_as_moments():
    settings: dict[str, Any] = dict(target=TARGET, arguments={"weight_decay": 0.1})
    program = zoo.program(zoo.Classify(width=8), mesh=MeshSpec(data=2), devices=2, layout={"zero1": True}, **settings)
    specs = {path: x.sharding.spec for path, x in by_path(program.abstract_state.opt_state).items()}
    [first] = [spec for path, spec in specs.items() if ".initial" in path and "hidden/0/kernel" in path]
    [moment] = [spec for path, spec in specs.items() if ".mu" in path and "hidden/0/kernel" in path]
    assert first == moment and "data" in jax.tree.leaves(tuple(first))
    assert not [path for path in specs if ".initial" in path and "bias" in path]  # `optimizer.decay` is matrices
    checkpoint = jax.tree.map(lambda x: x + 1, program.init().params)
    stored = by_path(program.init(params=checkpoint).opt_state)
    [initial] = [x for path, x in stored.items() if ".initial" in path and "head/kernel" in path]
    np.testing.assert_array_equal(initial, checkpoint["head/kernel"])
