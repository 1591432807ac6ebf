"""Targets with arguments for matrices: Muon orthogonalises each hidden matrix of a stack by itself."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from engine import Loss, Mean, layers
from engine.base.duration import Duration, RunSize
from engine.base.errors import ConfigError
from engine.config.schema import Group, Optimizer
from engine.training.optimizer import build_optimizer
from engine.training.optimizer_parts import REFUSED, scale, takes_matrices
from engine.training.roles import Roles
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


class Renamed(zoo.Classify):
    """An attention below `head`, an output layer named `fc`, and tables and tokens as plain parameters."""

    def build(self, rngs):
        class Renamed(nnx.Module):
            def __init__(self):
                self.tokens = nnx.Embed(8, 32, rngs=rngs)
                self.class_token, self.bias_table = nnx.Param(jnp.ones((1, 32))), nnx.Param(jnp.ones((9, 32)))
                self.embed = nnx.Param(rngs.params.normal((32, 32)))
                self.head = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
                self.fc = nnx.Linear(32, 4, rngs=rngs)

            def __call__(self, x, rng=None):
                whole = jnp.clip(x * 2 + 4, 0, 7).astype(jnp.int32)
                x = self.tokens(whole) + self.class_token + self.bias_table[whole]
                return self.fc(self.head(x @ self.embed).mean(1))

        return Renamed()


class Own(zoo.Classify):
    """A Task with a whole step of its own."""

    def update(self, state, batch, context):
        def loss(params):
            return self.loss(state.model(params), batch, context.rng)

        grads, result = jax.grad(lambda params: (loss(params).total.sum(), loss(params)), has_aux=True)(state.params)
        return state.apply_gradients(grads), {"loss": Mean(result.total, result.weight)}


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


PARAMS = {"a/kernel": (3, 4, 6), "a/scale": (3, 4), "b/kernel": (4, 5), "head/kernel": (4, 4)}
ROLES = Roles(
    {"a/kernel": "matrix", "a/scale": "norm", "b/kernel": "matrix", "head/kernel": "head"},
    {},
    {"a/kernel": ((1,), (2,)), "b/kernel": ((0,), (1,))},
    is_traced=True,
)


def random(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in PARAMS.items()}


def follow(tx: Any, steps: int = 4) -> list[dict[str, jax.Array]]:
    """Returns the parameters after each of some updates."""
    params, found = random(0), []
    state = tx.init(params)
    for step in range(steps):
        grads = random(step + 1)
        updates, state = tx.update(grads, state, params, grad_norm=optax.tree.norm(grads))
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


@pytest.mark.parametrize("arguments", [{}, {"nesterov": False, "adam_b1": 0.8, "consistent_rms": 0.2}], ids=str)
def test_update_is_that_of_optax_alone(arguments):
    config = dataclasses.replace(MUON, clip_norm=None, decay="all", arguments={"weight_decay": 0.1, **arguments})
    numbers: Any = ROLES.numbers(random(0))
    alone = optax.contrib.muon(0.1, weight_decay=0.1, muon_weight_dimension_numbers=numbers, **arguments)
    for found, wanted in zip(
        follow(build_optimizer(config, SIZE, random(0), {}, ROLES).tx),
        follow(optax.with_extra_args_support(alone)),
        strict=True,
    ):
        zoo.assert_equal(found, wanted)


def test_adam_of_muon_is_adam_with_nesterov_momentum_unless_that_is_off():
    for nesterov in (True, False):
        config = dataclasses.replace(MUON, clip_norm=None, decay="none", arguments={"nesterov": nesterov})
        optimizer = build_optimizer(config, SIZE, random(0), {}, ROLES)
        wanted = follow(optax.with_extra_args_support(optax.adam(0.1, nesterov=nesterov)))
        for found, adam in zip(follow(optimizer.tx), wanted, strict=True):
            np.testing.assert_allclose(found["head/kernel"], adam["head/kernel"], rtol=1e-6)
        named = "Adam with Nesterov momentum updates" if nesterov else "; Adam updates"
        assert named in optimizer.messages[0]


def test_each_parameter_moves_by_the_learning_rate_that_the_log_names():
    """The first update of Adam without Nesterov momentum is the sign of the gradient times the learning rate."""
    config = Optimizer(
        target=MUON.target, schedule="linear", learning_rate=0.1, warmup=Duration.parse("4 steps"), clip_norm=None,
        arguments={"adam_learning_rate": 0.003, "nesterov": False, "adam_b1": 0.0, "adam_b2": 0.0},
        groups={"b": Group(match="^head/", learning_rate_scale=2.0)},
    )  # fmt: skip
    optimizer = build_optimizer(config, SIZE, random(0), {}, ROLES)
    names = ["learning_rate", "learning_rate/b", "adam_learning_rate", "adam_learning_rate/b"]
    assert list(optimizer.rate_names) == names
    state, params, peaks = optimizer.tx.init(random(0)), random(0), (0.1, 0.2, 0.003, 0.006)
    numbers = optimizer.with_numbers(jnp.asarray(optimizer.numbers))
    for step, share in enumerate((0, 0.25, 0.5, 0.75, 1, 5 / 6)):
        rates = numbers.rates(state, jnp.int32(step))
        np.testing.assert_allclose([rates[name] for name in names], np.array(peaks) * share, rtol=1e-5)
        grads: Any = random(step)
        updates: Any
        updates, state = numbers.tx.update(grads, state, params, grad_norm=jnp.float32(1))
        for path, name in (("a/scale", "adam_learning_rate"), ("head/kernel", "adam_learning_rate/b")):
            np.testing.assert_allclose(updates[path], -rates[name] * np.sign(grads[path]), rtol=1e-5)
    earlier = build_optimizer(config, SIZE, random(0), {})  # its Adam had a constant rate, which the log now names
    assert float(earlier.rates(earlier.tx.init(random(0)), 0)["adam_learning_rate"]) == pytest.approx(0.003)
    updates = earlier.tx.update(random(0), earlier.tx.init(random(0)), random(0), grad_norm=jnp.float32(1))[0]
    np.testing.assert_allclose(updates["head/kernel"], -0.003 * np.sign(random(0)["head/kernel"]), rtol=1e-5)


@pytest.mark.slow
def test_updates_of_muon_are_orthogonal_for_each_layer():
    shapes = {"a/kernel": (LAYERS, 4, 4), "a/scale": (LAYERS, 4), "head/kernel": (4, 4)}
    names = {"a/kernel": ("layers", "embed", "mlp"), "a/scale": ("layers", "norm")}
    rng = np.random.default_rng(0)
    grads = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}
    params = jax.tree.map(jnp.zeros_like, grads)
    tx = build_optimizer(MUON, SIZE, params, names).tx
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
    assert takes_matrices(MUON) and not takes_matrices(Optimizer())
    own = dataclasses.replace(MUON, arguments={"muon_weight_dimension_numbers": None})
    assert not takes_matrices(own)


@pytest.mark.parametrize("target", REFUSED)
def test_optimizer_whose_update_needs_more_is_refused_by_name(target):
    with pytest.raises(ConfigError, match=f"{target} {REFUSED[target]}, which a train step does not pass"):
        build_optimizer(Optimizer(target=target), SIZE, PARAMS_OF_ONE)


PARAMS_OF_ONE: Any = {"kernel": jnp.ones((2, 2))}


def test_updates_are_multiplied_by_a_factor_or_by_one_for_each_layer():
    found: Any
    found, _ = scale({"a": np.array(0.5, np.float32), "b": np.array([[1], [2]], np.float32)}).update(
        {"a": jnp.ones(2), "b": jnp.ones((2, 3))}, optax.EmptyState()
    )
    assert found["a"].tolist() == [0.5, 0.5] and found["b"].tolist() == [[1] * 3, [2] * 3]


def test_optimizer_with_norms_of_arrays_warns_about_stacked_layers():
    names = {"a/kernel": ("layers", None, None)}
    config = Optimizer(target="optax.lamb", groups={"b": Group(match="^b/", target="optax.adafactor")})
    [message] = build_optimizer(config, SIZE, random(0), names).messages
    assert message.startswith(
        "warning: optax.lamb computes norms of whole arrays: the layers of a/kernel have one norm "
    )
    assert build_optimizer(Optimizer(), SIZE, random(0), names).messages == ()
