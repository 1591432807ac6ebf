"""Replica check: a differing copy of the state is detected and named, and arrays without copies are reported."""

import dataclasses

import jax
import numpy as np
import pytest

from engine.base.duration import Duration
from engine.config.schema import MeshSpec
from engine.loop.events.replica_check import ReplicaCheck, ReplicaError, coverage
from tests import zoo


def corrupted(array: jax.Array, device: int) -> jax.Array:
    """Returns the array with one bit flipped in the copy of one device."""
    copies = []
    for shard in array.addressable_shards:
        copy = np.array(shard.data)
        if shard.device.id == device:
            copy.view(np.uint32).reshape(-1)[-1] ^= 1
        copies.append(jax.device_put(copy, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, copies)


@pytest.fixture(scope="module")
def four():
    """A program with two copies of a model that is split over two devices, and its state after a step."""
    program = zoo.program(zoo.Classify("decoder"), mesh=MeshSpec(data=2, fsdp=2), devices=4)
    return program, zoo.run(program, zoo.batches(1))[0]


def with_flipped(state, device, path="head/kernel"):
    params = {**state.params, path: corrupted(state.params[path], device)}
    return dataclasses.replace(state, params=params)


@pytest.mark.slow
def test_identical_copies_pass(four):
    program, state = four
    check = ReplicaCheck(program.abstract_state)
    assert check.has_copies
    check.run(4, state)


def test_flipped_bit_error_names_array_devices_and_process(four):
    program, state = four
    path = "up/kernel"
    parts = state.params[path].sharding.devices_indices_map(state.params[path].shape)
    twins = sorted(device.id for device in parts if parts[device] == parts[jax.devices()[2]])
    with pytest.raises(ReplicaError, match=r"step 8: copies of params/up/kernel differ") as error:
        ReplicaCheck(program.abstract_state).run(8, with_flipped(state, 2, path))
    assert f"device {twins[0]} of process 0, device {twins[1]} of process 0 have different values" in str(error.value)
    assert error.value.exit_code == 42


def test_differing_copy_of_several_is_named():
    program = zoo.program(zoo.Classify(), mesh=MeshSpec(data=4), devices=4)
    state = with_flipped(program.init(), 3)
    with pytest.raises(ReplicaError, match="differ: device 3 of process 0 differs from most copies"):
        ReplicaCheck(program.abstract_state).run(4, state)


def test_state_without_copies_has_no_copies():
    assert not ReplicaCheck(zoo.program(zoo.Classify()).abstract_state).has_copies


def test_coverage_reports_the_share_of_the_state_with_copies(four):
    def of(mesh, devices):
        return coverage(
            Duration(1000, "steps"), zoo.program(zoo.Classify(), mesh=mesh, devices=devices).abstract_state.to_tree()
        )

    assert of(None, None) == "replica check: nothing to compare, since this mesh keeps one copy of each array"
    assert of(MeshSpec(data=4), 4) == "replica check: every 1000 steps, 4 copies or more of 100.0% of the state"
    assert of(MeshSpec(fsdp=4), 4).endswith("the others have one copy each")
    assert coverage(None, four[0].abstract_state.to_tree()) == "replica check: off (resilience.replica_check=None)"
