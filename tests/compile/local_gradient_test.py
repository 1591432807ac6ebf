"""The gradient of a device, computed by two devices: finds a flipped bit, and refuses programs without equal bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import Loss
from engine.base.errors import ConfigError
from engine.compile.local_gradient import GPU_FLAG, LocalGradients, check_supported, find_suspects
from engine.config.schema import MeshSpec
from engine.metrics import Mean
from tests import zoo
from tests.faulty_device import Faulty

MESHES = {"fsdp": MeshSpec(fsdp=4), "both": MeshSpec(data=2, fsdp=2)}


def checked(task, mesh="fsdp", **settings):
    """Returns the suspects of a task before its first step."""
    program = zoo.program(task, mesh=MESHES[mesh], devices=4, **settings)
    check_supported(program)
    batch = zoo.batch({**zoo.examples(16), "valid": np.ones(16, np.float32)})
    return LocalGradients(program).suspects(program.init(), jax.device_put(batch, program.spec.batch_sharding))


@pytest.mark.slow
def test_healthy_devices_give_the_bits_of_their_neighbours():
    assert checked(zoo.Classify("decoder"), "both") == {}


def test_flipped_bit_in_a_product_of_one_device_is_found_and_the_device_is_named():
    found = checked(Faulty())
    assert "head/kernel" in found and set(map(tuple, found.values())) == {(2,)}


def test_two_devices_cannot_tell_which_one_is_wrong():
    votes = np.zeros((2, 2, 1, 2), np.uint32)
    votes[0, 1] = 7
    assert find_suspects(("a",), votes) == {"a": [0, 1]}


@pytest.mark.parametrize(
    ("wrong", "suspects"),
    [
        ({}, {}),
        ({(0, 2): 7}, {"b": [2]}),  # the device itself, once
        ({(1, 2): 7}, {"b": [3]}),  # its neighbour, once
        ({(0, 3): 7, (1, 2): 7, (2, 1): 7}, {"b": [3]}),  # all that device 3 computes
        ({(0, 2): 7, (1, 2): 8}, {"b": [0, 2, 3]}),  # three different values
    ],
)
def test_third_device_decides(wrong, suspects):
    """Keys of `wrong` are (computation, device whose rows they are)."""
    votes = np.zeros((3, 4, 2, 2), np.uint32)
    for (computation, device), value in wrong.items():
        votes[computation, device, 1] = value
    assert find_suspects(("a", "b"), votes) == suspects


class Batchwise(zoo.Classify):
    """Its loss is one number per batch."""

    def loss(self, model, batch, rng):
        found = super().loss(model, batch, rng)
        return Loss(found.total.sum(), found.weight.sum())


class Updates(zoo.Classify):
    """Has an update of its own."""

    def update(self, state, batch, context):
        def total(params):
            return self.loss(state.model(params), batch, context.rng).total.sum()

        value, grads = jax.value_and_grad(total)(state.params)
        return state.apply_gradients(grads), {"loss": Mean(value, jnp.float32(1))}


@pytest.mark.parametrize(
    ("task", "mesh", "words"),
    [
        (zoo.Classify("decoder"), MeshSpec(data=2, tensor=2), "mesh.tensor = 2 splits the layers of Classify"),
        (Updates(), MeshSpec(data=4), "Updates has an update of its own"),
        (Batchwise(), MeshSpec(data=4), "the loss of Batchwise is one number per batch or calls Python"),
    ],
)
def test_program_without_equal_bits_is_refused(task, mesh, words):
    with pytest.raises(ConfigError, match=f"^resilience.gradient_check: {words}"):
        check_supported(zoo.program(task, mesh=mesh, devices=4))


@pytest.mark.parametrize(
    ("platform", "flags", "words"),
    [
        ("gpu", "", "two GPUs give the same bits only with deterministic operations. Set XLA_FLAGS=--xla_gpu"),
        ("gpu", "--xla_gpu_deterministic_ops=false", "two GPUs give the same bits only"),
        ("tpu", "", "found devices of the platform tpu, on which equal bits have not been shown"),
    ],
)
def test_platform_without_equal_bits_is_refused(platform, flags, words, monkeypatch):
    program = zoo.program(zoo.Classify(), mesh=MeshSpec(data=4), devices=4)
    monkeypatch.setattr(type(program.spec.layout), "platform", platform)
    with pytest.raises(ConfigError, match=words):
        check_supported(program, flags)
    monkeypatch.setattr(type(program.spec.layout), "platform", "gpu")
    check_supported(program, f"--xla_a=1 {GPU_FLAG}")
