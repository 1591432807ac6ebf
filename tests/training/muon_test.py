"""Muon orthogonalises each hidden matrix of a stack by itself, and leaves the other parameters to Adam."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from engine import Loss, layers
from engine.base.duration import RunSize
from engine.config.schema import Group, Optimizer
from engine.training import muon
from engine.training.optimizer import MUON_ARGUMENT, build_optimizer, is_muon
from tests import zoo

WIDTH, LAYERS = 8, 2
SIZE = RunSize(1, 1, 10)
MUON = Optimizer(target="optax.contrib.muon", schedule="constant", learning_rate=0.1, arguments={"weight_decay": 0.1})


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = layers.RMSNorm(WIDTH)
        self.up = layers.Dense(WIDTH, 2 * WIDTH, axes=("embed", "mlp"), bias=True, rngs=rngs)
        self.down = layers.Dense(2 * WIDTH, WIDTH, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x, rng=None):
        return x + self.down(nnx.silu(self.up(self.norm(x))))


class Net(nnx.Module):
    """The same layers as a stack or as a list, between an embedding and a head without logical axes."""

    def __init__(self, stacked: bool, rngs: nnx.Rngs):
        self.inner: Any
        self.list: Any
        self.embed = nnx.Embed(4, WIDTH, rngs=rngs)
        self.inner = layers.Stack(Layer, LAYERS, rngs=rngs) if stacked else None
        self.list = None if stacked else nnx.List([Layer(rngs) for _ in range(LAYERS)])
        self.head = nnx.Linear(WIDTH, 4, rngs=rngs)

    def __call__(self, y):
        x = self.embed(y)
        for layer in self.list or [self.inner]:
            x = layer(x)
        return self.head(x)


@dataclasses.dataclass
class Copy(zoo.Classify):
    stacked: bool = True

    def build(self, rngs):
        return Net(self.stacked, rngs)

    def loss(self, model, batch, rng):
        return Loss.of(optax.softmax_cross_entropy_with_integer_labels(model(batch["y"]), batch["y"]))


def unstack(params: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of the list for those of the stack."""
    found = {}
    for path, x in params.items():
        if path.startswith("inner/layers/"):
            found |= {f"list/{i}/{path.removeprefix('inner/layers/')}": x[i] for i in range(LAYERS)}
        else:
            found[path] = x
    return found


def program(stacked: bool):
    arguments = {"weight_decay": 0.1, "ns_steps": 2}  # few steps compile quickly
    return zoo.program(
        Copy(stacked=stacked), target=MUON.target, learning_rate=0.1, arguments=arguments, clip_norm=None
    )


@pytest.mark.slow
def test_training_a_stack_with_muon_equals_training_its_layers():
    stacked, plain = program(True), program(False)
    begin = stacked.init()
    ends = []
    for subject, state in ((plain, plain.init(unstack(jax.device_get(begin.params)))), (stacked, begin)):
        for examples in zoo.batches(3):
            placed = jax.device_put(zoo.batch(examples), subject.spec.batch_sharding)
            state, _ = subject.steps(1)(state, (placed,), subject.skip_mask((False,)))
        ends.append(jax.device_get(state.params))
    zoo.assert_close(unstack(ends[1]), ends[0], 1e-5)


def test_hidden_matrices_are_orthogonalised_and_all_else_is_for_adam():
    model = program(True).spec.model
    numbers = muon.dimension_numbers(model.params, model.names)
    hidden = {path: tuple(found) for path, found in numbers.items() if found is not None}
    assert hidden == {"inner/layers/up/kernel": (1, 2), "inner/layers/down/kernel": (1, 2)}
    expert, embed = jnp.ones((3, 2, 4, 4)), jnp.ones((9, 4))
    names = {"moe/up": ("layers", "expert", "embed", "mlp"), "tokens/table": ("vocab", "embed")}
    numbers = muon.dimension_numbers({"moe/up": expert, "tokens/table": embed, "body/kernel": embed}, names)
    assert numbers == {"moe/up": (2, 3), "tokens/table": None, "body/kernel": (0, 1)}
    assert muon.message(model.params, model.names).startswith(
        "Muon orthogonalises inner/layers/down/kernel, inner/layers/up/kernel; Adam updates embed/embedding, head/"
    )


@pytest.mark.slow
def test_updates_of_muon_are_orthogonal_for_each_layer():
    shapes = {"a/kernel": (LAYERS, 4, 4), "a/scale": (LAYERS, 4), "head/kernel": (4, 4)}
    names = {"a/kernel": ("layers", "embed", "mlp"), "a/scale": ("layers", "norm")}
    rng = np.random.default_rng(0)
    grads = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}
    params = jax.tree.map(jnp.zeros_like, grads)
    optimizer = build_optimizer(MUON, SIZE, params, names)
    tx = optimizer.tx
    assert optimizer.messages[0].startswith("Muon orthogonalises a/kernel; Adam updates a/scale, head/kernel")
    updates: Any = tx.update(grads, tx.init(params), params, grad_norm=optax.tree.norm(grads))[0]
    for matrix in updates["a/kernel"]:
        values = np.linalg.svd(np.asarray(matrix) / 0.1, compute_uv=False)
        assert values.min() > 0.5 and values.max() < 1.5
    for path in ("a/scale", "head/kernel"):  # the first update of Adam is a multiple of the sign of the gradient
        found = np.asarray(updates[path])
        np.testing.assert_allclose(found, -np.abs(found).mean() * np.sign(grads[path]), rtol=1e-3)


def test_decay_setting_and_groups_apply_to_muon():
    params = {"a/kernel": jnp.ones((2, 2)), "b/kernel": jnp.ones((2, 2)), "b/bias": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for decay, expected in (("matrices", 1 - 0.1 * 0.1), ("none", 1.0)):
        config = dataclasses.replace(MUON, decay=decay, groups={"b": Group(match="^b/", learning_rate_scale=2.0)})
        tx = build_optimizer(config, SIZE, params).tx
        updates: Any = tx.update(zeros, tx.init(params), params, grad_norm=jnp.float32(0))[0]
        np.testing.assert_allclose(1 + updates["a/kernel"], expected, rtol=1e-6)
        np.testing.assert_allclose(1 + updates["b/kernel"], 1 - 2 * (1 - expected), rtol=1e-6)
        np.testing.assert_allclose(updates["b/bias"], 0)
    assert is_muon(MUON) and not is_muon(Optimizer())
    assert not is_muon(dataclasses.replace(MUON, arguments={MUON_ARGUMENT: None}))
