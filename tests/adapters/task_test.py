"""A Task with adapters: what it trains, on every mesh, and from a checkpoint that has no adapters."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from engine.adapters import adapted
from engine.base.errors import ConfigError
from engine.checkpoint.warm_start import read_weights
from engine.compile.build import build_task
from engine.config.schema import Init, MeshSpec, Target
from engine.loop.start import frozen_note
from engine.training.model import describe
from tests import zoo
from tests.adapters import subjects
from tests.checkpoint.saves import Saves


def test_first_loss_is_that_of_the_plain_task_bitwise():
    plain = zoo.program(subjects.Small(), target="optax.sgd", learning_rate=0.1)
    _, metrics = zoo.run(plain, subjects.BATCHES[:1])
    assert subjects.trained()[1][0] == zoo.losses(metrics)[0]


def test_only_the_matrices_are_trained_and_have_state():
    program, (state, _) = subjects.program(), subjects.trained()
    before = jax.device_get(program.init())
    matrices = subjects.adapter_paths(state.params)
    assert list(program.spec.model.trained) == matrices and len(matrices) == 11
    assert list(state.ema) == matrices
    for path, x in jax.device_get(state.params).items():
        assert np.array_equal(x, before.params[path]) == (path not in matrices), path
    assert frozen_note(program.spec.model).startswith("the run trains ")


def test_a_mesh_with_a_pipeline_and_zero1_and_microbatches_change_nothing():
    (state, losses), (found, found_losses) = subjects.trained(), subjects.trained("many")
    np.testing.assert_allclose(found_losses, losses, rtol=1e-6)
    zoo.assert_close(state.params, found.params, 1e-6)


def test_matrices_are_sharded_like_their_kernel():
    mesh = MeshSpec(fsdp=2, tensor=2)
    params: Any = zoo.program(subjects.task(), mesh=mesh, devices=4).abstract_state.params
    specs = {name: params[f"stack/layers/query/kernel{name}"].sharding.spec for name in ("", "_lora_a", "_lora_b")}
    assert [tuple(spec)[1:] for spec in specs.values()] == [("fsdp", "tensor"), ("fsdp", None), (None, "tensor")]


def test_run_is_resumed_bitwise(tmp_path):
    program = subjects.program()
    state, _ = zoo.run(program, subjects.BATCHES[:2])
    store = Saves(tmp_path)
    store.save(2, state.to_tree())
    store.close()
    restored, step = store.restore_latest(program.abstract_state.to_tree())
    batch = jax.device_put(zoo.batch(subjects.BATCHES[2]), program.spec.batch_sharding)
    found, _ = program.steps(1)(type(state).from_tree(restored), (batch,), program.skip_mask((False,)))
    assert step == 2
    zoo.assert_equal(found, subjects.trained()[0])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint of the plain Task: the folder and the parameters."""
    folder = tmp_path_factory.mktemp("base")
    plain = describe(subjects.Small())
    params, carried = plain.init(subjects.Small(), seed=7)
    store = Saves(folder / "checkpoints")
    store.save(5, {"step": jax.numpy.int32(5), "params": params, "carried": carried})
    store.close()
    return folder, params


def test_warm_start_fills_the_base_and_leaves_the_matrices(base):
    folder, params = base
    program = subjects.program()
    model, state = program.spec.model, program.abstract_state.to_tree()
    found = read_weights(Init(checkpoint=str(folder)), state, model.stacked, model.without_values())
    zoo.assert_equal(dict(found.params), params)
    assert "initialized 9 arrays" in found.message and "random: params/conv/kernel_lora_a, " in found.message
    started = program.init(found.params, found.model_state)
    assert not np.asarray(started.params["head/kernel_lora_b"]).any()


def test_other_parameters_are_trained_on_request():
    trained = describe(subjects.task(match="query", train="^head/")).trained
    matrices = ["stack/layers/query/kernel_lora_a", "stack/layers/query/kernel_lora_b"]
    assert sorted(trained) == ["head/bias", "head/kernel", *matrices]
    assert describe(subjects.task(), "^conv/bias$").trained == ("conv/bias",)


def test_task_keeps_its_name_and_its_methods():
    task, plain = subjects.task(), subjects.Small()
    assert type(task).__name__ == "Small" and vars(task) == vars(plain)
    assert type(task).predict is subjects.Small.predict and type(plain) is subjects.Small


def test_config_names_the_task_within():
    section = dict(target="tests.adapters.subjects.Small")
    several = dict(one=dict(match="query"), two=dict(match="value", rank=2))
    task = build_task(Target(target="engine.adapters.adapted", arguments=dict(task=section, adapters=several)))
    assert isinstance(task.build(nnx.Rngs(0)), subjects.Net)
    assert {path.rpartition("_")[0] for path in describe(task).trained} == {
        "stack/layers/query/kernel_one",
        "stack/layers/value/kernel_two",
    }


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, r"task\.match: is missing"),
        ({"match": ""}, "match is empty"),
        ({"match": "x", "rnk": 1}, r"task\.rnk: unknown\. Did you mean rank"),
        ({"match": "x", "train": "("}, r"task\.train = '\(' is no regular expression"),
        ({"match": "x", "adapters": {"a": {"match": "x"}}}, "both set"),
        ({"adapters": {}}, "is empty"),
        ({"adapters": {"a-b": {"match": "x"}}}, "found 'a-b'"),
        ({"adapters": {"a": {"rank": 1}}}, "task.adapters.a.match: is missing"),
        ({"adapters": {"a": {"match": "x", "rnk": 1}}}, "adapters.a.rnk: unknown. Did you mean rank"),
    ],
)
def test_wrong_settings_are_config_errors(settings, text):
    with pytest.raises(ConfigError, match=text):
        adapted(subjects.Small(), **settings)


def test_something_else_than_a_task_is_an_error():
    with pytest.raises(ConfigError, match=r"task\.task: found"):
        adapted("tests.zoo.Classify", match="kernel")  # pyright: ignore[reportArgumentType]
