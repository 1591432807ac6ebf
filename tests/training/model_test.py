"""The classes of NNX variables, and the way from module to dicts and back."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from engine import Task
from engine.config.errors import ConfigError, TaskError
from engine.training.model import cast, describe
from tests import zoo


class Seen(nnx.Variable):
    """A kind of variable that the engine does not know."""


class Counting(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(zoo.SIZE, 4, rngs=rngs)
        self.seen = Seen(jnp.zeros((), jnp.int32))

    def __call__(self, x, rng=None):
        self.seen[...] += len(x)
        return self.linear(x)


class Count(zoo.Classify):
    carried = (Seen,)

    def build(self, rngs):
        return Counting(rngs)


def test_variables_are_classed_by_kind():
    model = describe(zoo.Classify("cnn"))
    assert set(model.params) == {"conv/kernel", "norm/scale", "norm/bias", "head/kernel", "head/bias"}
    assert set(model.model_state) == {"norm/mean", "norm/var"}
    assert model.trained == tuple(model.params)


def test_an_unknown_kind_is_refused_by_name():
    class Unknown(Count):
        carried = ()

    with pytest.raises(TaskError, match=r"seen: variable of kind Seen.*carried = \(Seen,\)"):
        describe(Unknown())


def test_a_kind_that_the_task_names_is_carried():
    program = zoo.program(Count(), accumulate=2)
    state, _ = zoo.run(program, zoo.batches(3))
    assert int(state.model_state["seen"]) == 3 * 16


def test_a_carried_variable_that_the_forward_pass_makes_is_refused_by_name():
    class Late(Counting):
        def __call__(self, x, rng=None):
            self.late = Seen(jnp.ones(()))
            return super().__call__(x)

    class LateCount(Count):
        def build(self, rngs):
            return Late(rngs)

    with pytest.raises(TaskError, match=r"late: made in the forward pass"):
        zoo.program(LateCount()).steps(1)


def test_random_state_is_derived_and_not_stored():
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


def test_dropout_that_drops_nothing_may_be_accumulated():
    class Without(zoo.Classify):
        def build(self, rngs):
            model = super().build(rngs)
            model.extra = nnx.Dropout(0.0, rngs=rngs)
            return model

    assert describe(Without()).shared_dropout == ()
    zoo.program(Without(), accumulate=2)


def test_each_place_that_draws_has_a_key_of_its_own():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)
            self.one, self.two = nnx.Dropout(0.5, rngs=rngs.fork()), nnx.Dropout(0.5, rngs=rngs.fork())

    class Task(zoo.Classify):
        def build(self, rngs):
            return Two(rngs)

    model = describe(Task())
    params, carried = model.init(Task(), 0)
    modules: list[Any] = [model.module(params, carried, jax.random.key(seed)) for seed in (0, 1)]
    x = jnp.ones((1, 100))
    masks = [drop(x) for module in modules for drop in (module.one, module.two)]
    assert len({tuple(mask[0].tolist()) for mask in masks}) == 4


def test_a_module_comes_back_with_the_values_it_was_given():
    task = zoo.Classify()
    model = describe(task)
    params, carried = model.init(task, 0)
    module = model.module(params, carried, None)
    direct = task.build(nnx.Rngs(0))
    x = jnp.ones((2, zoo.SIZE))
    assert jnp.array_equal(module(x), direct(x))


def test_logical_axes_are_read_from_the_layers():
    model = describe(zoo.Classify("decoder"))
    assert model.names == {"up/kernel": ("embed", "mlp"), "down/kernel": ("mlp", "embed")}


def test_a_trainable_filter_that_matches_nothing_is_told():
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


def test_cast_leaves_integers_and_named_entries_alone():
    tree = {"x": jnp.ones(2), "label": jnp.ones(2, jnp.int32), "future": {"xy": jnp.ones(2)}}
    out = cast(tree, jnp.bfloat16, ("future",))
    assert jax.tree.map(lambda x: x.dtype.name, out) == {
        "x": "bfloat16",
        "label": "int32",
        "future": {"xy": "float32"},
    }
