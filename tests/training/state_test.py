"""The train state: its arrays, their shardings, and the dict that checkpoints store."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
