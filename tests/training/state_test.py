"""The train state: its arrays, their shardings, and the dict that checkpoints store."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from engine.config.schema import Group, MeshSpec
from engine.parallel.memory import HOST_MEMORY
from engine.training.state import TrainState, evaluation_params
from tests import zoo


@pytest.mark.slow
def test_optimizer_state_has_the_sharding_of_its_parameter():
    program = zoo.program(zoo.Classify("decoder"), mesh=MeshSpec(fsdp=4, tensor=2), ema_decay=0.9)
    state: Any = program.init()
    assert state.params["up/kernel"].sharding.spec == P("fsdp", "tensor")
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == state.params["up/kernel"].shape]
    assert len(moments) >= 2
    same = {x.sharding.spec for x in moments if x.shape == (32, 64)}
    assert P("fsdp", "tensor") in same
    assert state.ema["up/kernel"].sharding.spec == P("fsdp", "tensor")
    assert state.step.sharding.is_fully_replicated


def test_abstract_state_matches_the_state():
    program = zoo.program(zoo.Classify("cnn"), mesh=MeshSpec(data=2, fsdp=4), ema_decay=0.9)
    state = program.init()
    assert jax.tree.structure(state) == jax.tree.structure(program.abstract_state)
    for found, abstract in zip(jax.tree.leaves(state), jax.tree.leaves(program.abstract_state), strict=True):
        assert (found.shape, found.dtype, found.sharding) == (abstract.shape, abstract.dtype, abstract.sharding)


@pytest.mark.optimized
def test_initial_parameters_are_equal_on_every_mesh():
    one = zoo.program(zoo.Classify()).init()
    eight = zoo.program(zoo.Classify(), mesh=MeshSpec(fsdp=8)).init()
    zoo.assert_equal(one, eight)


@pytest.mark.optimized
def test_offloaded_optimizer_state_is_created_in_host_memory():
    program = zoo.program(zoo.Classify(), mesh=MeshSpec(fsdp=8), layout={"offload_optimizer": True})
    state = program.init()
    for found, abstract in zip(jax.tree.leaves(state), jax.tree.leaves(program.abstract_state), strict=True):
        assert found.sharding == abstract.sharding
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state)} == {HOST_MEMORY}
    zoo.assert_equal(state, zoo.program(zoo.Classify(), mesh=MeshSpec(fsdp=8)).init())


def test_evaluation_uses_the_average_if_it_exists():
    state = zoo.program(zoo.Classify(), ema_decay=0.9).init()
    params, ema = {"a": jnp.ones(1), "frozen": jnp.full(1, 7.0)}, {"a": jnp.zeros(1)}
    state = dataclasses.replace(state, params=params, ema=ema)
    assert float(evaluation_params(state, True)["a"][0]) == 0
    assert float(evaluation_params(state, True)["frozen"][0]) == 7
    assert float(evaluation_params(state, False)["a"][0]) == 1


@pytest.mark.slow
def test_optimizer_groups_keep_one_state_per_parameter_and_train_alike_on_every_mesh():
    groups = {
        "head": Group(match="^head/", learning_rate_scale=0.1, every=2, clip_norm=0.1),
        "bias": Group(match="bias$", target="optax.sgd", schedule="linear"),
    }
    states = []
    for mesh in (None, MeshSpec(fsdp=8)):
        program = zoo.program(zoo.Classify(), mesh=mesh, groups=groups)
        state, _ = zoo.run(program, zoo.batches(2), k=2)
        assert jax.tree.structure(state) == jax.tree.structure(program.abstract_state)
        sizes = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
        assert sizes == 2 * sum(x.size for path, x in state.params.items() if path.endswith("kernel") or "head" in path)
        states.append(state)
    zoo.assert_close(states[0].params, states[1].params, 1e-6)


def test_seed_determines_parameters_and_random_key():
    task = zoo.Classify()
    states = [zoo.program(task, seed=seed).init() for seed in (0, 1)]
    assert not np.array_equal(states[0].params["head/kernel"], states[1].params["head/kernel"])
    assert not np.array_equal(states[0].rng, states[1].rng)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_to_tree_uses_the_keys_of_the_first_format(ema):
    state = zoo.program(zoo.Classify("cnn"), ema_decay=ema).init()
    tree = state.to_tree()
    names = {"step", "rng", "params", "carried", "opt_state", "recent"} | ({"ema"} if ema else set())
    assert tree.keys() == names
    assert tree["carried"].keys() == {"norm/mean", "norm/var"}
    assert jax.tree.structure(TrainState.from_tree(tree)) == jax.tree.structure(state)
    zoo.assert_equal(TrainState.from_tree(tree), state)


@pytest.mark.parametrize(("name", "field"), [("params", "params"), ("carried", "model_state")])
def test_reading_the_state_as_a_dict_names_the_attribute(name, field):
    state = zoo.program(zoo.Classify()).init()
    with pytest.raises(TypeError, match=rf'write state.{field} instead of state\["{name}"\]'):
        state[name]


SCHEDULE_FREE: dict[str, Any] = dict(
    target="optax.contrib.schedule_free_adamw", arguments={"b1": 0.8}, learning_rate=0.05, clip_norm=None
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mesh": MeshSpec(data=2, fsdp=2), "devices": 4, "layout": {"zero1": True}},
        {"groups": {"head": Group(match="^head/", target="optax.sgd")}},
    ],
    ids=["alone", "ZeRO-1", "group"],
)
def test_averages_of_a_schedule_free_optimizer_are_those_of_optax_alone(options):
    program, batches = zoo.program(zoo.Classify(), **SCHEDULE_FREE, **options), zoo.batches(4)
    begin = jax.device_get(program.init().params)
    state, _ = zoo.run(program, batches)
    model = zoo.program(zoo.Classify()).spec.model

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            found = zoo.Classify().loss(model.module(params, {}, None), batch, None)
            return found.total.sum() / found.weight.sum()

        return jax.grad(loss)(params)

    alone = {"": optax.contrib.schedule_free_adamw(0.05, b1=0.8), "head": optax.sgd(0.05)}
    labels = {path: "head" if "groups" in options and path.startswith("head/") else "" for path in begin}
    params: Any = dict(begin)
    parts = {name: [path for path in begin if labels[path] == name] for name in set(labels.values())}
    states: Any = {name: alone[name].init({path: params[path] for path in parts[name]}) for name in parts}
    for batch in batches:
        grads = gradient(params, batch)
        for name, paths in parts.items():
            part, some = {path: params[path] for path in paths}, {path: grads[path] for path in paths}
            updates, states[name] = alone[name].update(some, states[name], part)
            params |= optax.apply_updates(part, updates)
    average: Any = optax.contrib.schedule_free_eval_params(states[""], {path: params[path] for path in parts[""]})
    found = evaluation_params(state, use_ema=True)
    zoo.assert_close(jax.device_get(found), jax.device_get({**params, **average}), 1e-5)
    assert max(float(abs(params[path] - average[path]).max()) for path in average) > 1e-3
    assert evaluation_params(state, use_ema=False) is state.params
    assert state.to_checkpoint()["ema"].keys() == average.keys() and "ema" not in state.to_tree()
    for path, x in found.items():
        assert x.sharding == state.params[path].sharding


def test_average_of_the_run_comes_before_that_of_the_optimizer_with_a_warning():
    program = zoo.program(zoo.Classify(), **SCHEDULE_FREE, ema_decay=0.5)
    assert "train.ema_decay = 0.5: evaluations and exports use this average of the training weights" in "".join(
        program.warnings
    )
    state = program.abstract_state
    assert state.is_schedule_free and state.to_checkpoint()["ema"] is state.ema
    assert not zoo.program(zoo.Classify()).abstract_state.is_schedule_free


def test_state_of_another_shape_is_split_and_stays_so_in_the_step():
    """The rows and columns of Adafactor, which the compiled step gets and returns in parts."""
    settings: Any = {"target": "optax.adafactor", "arguments": {"min_dim_size_to_factor": 16}}
    program = zoo.program(zoo.Classify("mlp", width=1024), mesh=MeshSpec(fsdp=8), **settings)
    abstract = program.abstract_state
    found = {
        (path, x.shape): x.sharding.spec
        for key, x in jax.tree.leaves_with_path(abstract.opt_state)
        if (path := getattr(key[-1], "key", "")) in abstract.params and x.shape != abstract.params[path].shape
    }
    assert found["hidden/1/kernel", (1024,)] == P("fsdp")
    [batch] = zoo.batches(1)
    state, _ = zoo.run(program, [batch])
    for x, expected in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert x.sharding == expected.sharding
