"""The classes of NNX variables, and the conversion of a module to dicts and back."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from engine import Loss, Task
from engine.base.errors import ConfigError, TaskError
from engine.compile.collectives import collectives
from engine.config.schema import MeshSpec
from engine.training.model import describe
from tests import zoo


class Seen(nnx.Variable):
    """A variable type that the engine does not know."""


class Counting(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(zoo.SIZE, 4, rngs=rngs)
        self.seen = Seen(jnp.zeros((), jnp.int32))

    def __call__(self, x, rng=None):
        self.seen[...] += len(x)
        return self.linear(x)


class Count(zoo.Classify):
    model_state = (Seen,)

    def build(self, rngs):
        return Counting(rngs)


def test_variables_are_classified_by_type():
    model = describe(zoo.Classify("cnn"))
    assert set(model.params) == {"conv/kernel", "norm/scale", "norm/bias", "head/kernel", "head/bias"}
    assert set(model.model_state) == {"norm/mean", "norm/var"}
    assert model.trained == tuple(model.params)


def test_unknown_variable_type_raises_task_error():
    class Unknown(Count):
        model_state = ()

    with pytest.raises(TaskError, match=r"seen: unknown variable type Seen.*model_state = \(Seen,\)"):
        describe(Unknown())


def test_variable_type_named_by_the_task_is_model_state():
    program = zoo.program(Count(), accumulate=2, approximate_accumulation=True)
    state, _ = zoo.run(program, zoo.batches(3))
    assert int(state.model_state["seen"]) == 3 * 16


def test_variable_created_in_the_forward_pass_raises_task_error():
    class Late(Counting):
        def __call__(self, x, rng=None):
            self.late = Seen(jnp.ones(()))
            return super().__call__(x)

    class LateCount(Count):
        def build(self, rngs):
            return Late(rngs)

    with pytest.raises(TaskError, match=r"late: created in the forward pass"):
        zoo.program(LateCount()).steps(1)


def test_random_state_is_not_stored():
    class WithDropout(zoo.Classify):
        def build(self, rngs):
            model = super().build(rngs)
            model.extra = nnx.Dropout(0.5, rngs=rngs)
            return model

    model = describe(WithDropout())
    assert set(model.rng_state) == {"extra/rngs/key", "extra/rngs/count"}
    assert model.shared_dropout == ("extra",)
    assert not any("rngs" in path for path in zoo.program(WithDropout()).abstract_state.params)
    with pytest.raises(ConfigError, match=r"extra is nnx.Dropout.*engine.layers.Dropout"):
        zoo.program(WithDropout(), accumulate=2)


def test_dropout_of_rate_zero_allows_accumulation():
    class Without(zoo.Classify):
        def build(self, rngs):
            model = super().build(rngs)
            model.extra = nnx.Dropout(0.0, rngs=rngs)
            return model

    assert describe(Without()).shared_dropout == ()
    zoo.program(Without(), accumulate=2)


def test_each_dropout_layer_has_its_own_key():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)
            self.first, self.second = nnx.Dropout(0.5, rngs=rngs.fork()), nnx.Dropout(0.5, rngs=rngs.fork())

    class Task(zoo.Classify):
        def build(self, rngs):
            return Two(rngs)

    model = describe(Task())
    params, model_state = model.init(Task(), 0)
    modules: list[Any] = [model.module(params, model_state, jax.random.key(seed)) for seed in (0, 1)]
    x = jnp.ones((1, 100))
    masks = [drop(x) for module in modules for drop in (module.first, module.second)]
    assert len({tuple(mask[0].tolist()) for mask in masks}) == 4


def test_module_holds_the_given_values():
    task = zoo.Classify()
    model = describe(task)
    params, model_state = model.init(task, 0)
    module = model.module(params, model_state, None)
    direct = task.build(nnx.Rngs(0))
    x = jnp.ones((2, zoo.SIZE))
    assert jnp.array_equal(module(x), direct(x))


def test_logical_axes_are_read_from_the_layers():
    model = describe(zoo.Classify("decoder"))
    assert model.names == {"up/kernel": ("embed", "mlp"), "down/kernel": ("mlp", "embed")}


def test_trainable_filter_without_match_raises_config_error():
    with pytest.raises(
        ConfigError, match=r"'^backbone' matches no parameter. Parameters: head/bias".replace("^", r"\^")
    ):
        describe(zoo.Classify(), "^backbone")


def test_build_must_return_a_module():
    class Wrong(Task):
        def build(self, rngs) -> Any:
            return {"w": jnp.ones(3)}

    with pytest.raises(TaskError, match=r"Wrong.build returned a dict"):
        describe(Wrong())


def test_integer_parameter_cannot_be_trained():
    class Indexed(zoo.Classify):
        def build(self, rngs):
            model = super().build(rngs)
            model.table = nnx.Param(jnp.arange(3))
            return model

    with pytest.raises(TaskError, match=r"^table: an nnx.Param of type int32, which has no gradient."):
        describe(Indexed())
    assert "table" not in describe(Indexed(), "head|hidden").trained


def test_missing_package_of_build_is_one_sentence():
    class Lazy(zoo.Classify):
        def build(self, rngs):
            import not_there_at_all  # pyright: ignore[reportMissingImports]

            return not_there_at_all.Model(rngs)

    with pytest.raises(ConfigError, match=r"task.target: Lazy.build needs the module 'not_there_at_all', which is"):
        describe(Lazy())


SIZE, ROWS = 16, 32


class Convolutions(nnx.Module):
    def __init__(self, rngs):
        sizes = itertools.pairwise((4, 16, 32, 32))
        self.layers = nnx.List(nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in sizes)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x.mean((1, 2))


class Images(Task):
    def build(self, rngs):
        return Convolutions(rngs)

    def loss(self, model, batch, rng):
        return Loss.of(jnp.square(model(batch["x"]) - 1).mean(-1))


def program(mesh=None):
    example = {"x": jax.ShapeDtypeStruct((SIZE, SIZE, 4), np.float32)}
    return zoo.program(Images(), mesh=mesh, batch_size=ROWS, example=example, target="optax.sgd", clip_norm=None)


def test_devices_exchange_kernels_and_no_activations():
    split = program(MeshSpec(fsdp=8))
    found = collectives(split.trace(1).lower().compile().as_text() or "", split.mesh)
    parameters = 4 * sum(math.prod(x.shape) for x in split.abstract_state.params.values())
    assert sum(c.moved for c in found) <= 3 * parameters  # gathered once; XLA:CPU sums gradients in full


@pytest.mark.slow
def test_convolutions_split_over_fsdp_give_the_result_of_one_device():
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(ROWS, SIZE, SIZE, 4)).astype(np.float32)} for _ in range(2)]
    one, split = (zoo.run(program(mesh), batches)[0] for mesh in (None, MeshSpec(data=2, fsdp=4)))
    assert any("fsdp" in str(x.sharding.spec) for x in jax.tree.leaves(split.params))
    zoo.assert_close(one.params, split.params, 1e-6)
