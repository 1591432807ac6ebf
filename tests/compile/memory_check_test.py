"""Estimates of the memory of a run: what fits passes, what hardly fits gives a warning, what cannot fit is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from engine.base.errors import ConfigError
from engine.base.host import HostMemory
from engine.compile import memory_check
from engine.compile.memory_check import ROW_BYTES, BatchMemory, check_memory, evaluation_batches, training_batches
from engine.config.schema import Data, MeshSpec, Train
from engine.parallel.memory import HOST_MEMORY
from engine.parallel.mesh import make_mesh
from tests import runs

EXAMPLE = {"image": jax.ShapeDtypeStruct((1000,), jnp.uint8), "label": jax.ShapeDtypeStruct((), jnp.int32)}
ROW = 1004  # bytes of an example
ROWS = 80
MESH = make_mesh(MeshSpec(data=2, fsdp=4))


def batches(**changes):
    return BatchMemory(
        **{"field": "f", "size": ROWS, "example": EXAMPLE, "on_host": 3, "on_device": 2, "advice": "g"} | changes
    )


def array(shape, *axes, memory=None):
    sharding = NamedSharding(MESH, PartitionSpec(*axes), memory_kind=memory)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


STATE = {
    "split": array((4096, 8), "fsdp"),
    "whole": array((100,)),
    "offloaded": array((64, 4), "fsdp", memory=HOST_MEMORY),
}
SPLIT, WHOLE, OFFLOADED = 4096 * 8 * 4, 100 * 4, 64 * 4 * 4  # bytes of the arrays


@pytest.fixture
def check(monkeypatch):
    """`check(limit, ...)` checks the sizes on a host, or on devices, with a limit in bytes."""

    def run(limit, batches, state, device=False):
        host = HostMemory(limit, container=True)
        monkeypatch.setattr(memory_check, "host_memory", lambda: HostMemory(2**60, container=False) if device else host)
        monkeypatch.setattr(memory_check, "device_memory_limit", lambda mesh: limit)
        monkeypatch.setattr(memory_check, "_on_cpu", lambda mesh: not device)
        return check_memory(batches, MESH, state)

    return run


def boundary(check, needed, *arguments, **settings):
    """Checks that a limit of exactly `needed` bytes is the lowest that is not refused, and that it gives a warning."""
    with pytest.raises(ConfigError) as error:
        check(needed - 1, *arguments, **settings)
    assert len(check(needed, *arguments, **settings)) == 1
    assert check(math.ceil(needed / memory_check.WARN_SHARE), *arguments, **settings) == []
    return str(error.value)


def test_host_of_cpu_devices_holds_batches_and_each_copy_of_the_state(check):
    needed = ROWS * (3 * ROW + ROW_BYTES) + 2 * SPLIT + 8 * WHOLE + 2 * OFFLOADED
    boundary(check, needed, batches(), STATE)


def test_device_holds_its_rows_and_its_part_of_the_state_without_the_offloaded(check):
    text = boundary(check, 2 * ROWS // 8 * ROW + SPLIT // 4 + WHOLE, batches(), STATE, device=True)
    assert "memory of each device" in text


def test_host_of_other_devices_holds_batches_and_the_offloaded_state(check, monkeypatch):
    monkeypatch.setattr(memory_check, "_on_cpu", lambda mesh: False)
    monkeypatch.setattr(memory_check, "device_memory_limit", lambda mesh: None)
    needed = ROWS * (3 * ROW + ROW_BYTES) + 2 * OFFLOADED
    for limit, refused in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(memory_check, "host_memory", lambda limit=limit: HostMemory(limit, container=False))
        if refused:
            with pytest.raises(ConfigError):
                check_memory(batches(), MESH, STATE)
        else:
            assert len(check_memory(batches(), MESH, STATE)) == 1


def test_error_names_the_largest_part_the_numbers_and_what_to_change(check):
    with pytest.raises(ConfigError) as error:
        check(2**30, dataclasses.replace(batches(), size=8_000_000, on_host=1), {})
    assert str(error.value) == (
        "f: the run needs at least 7.6 GiB of host memory (7.6 GiB for 1 batch of 8,000,000 rows of 1,004 bytes, "
        "0.0 GiB for parameters, optimizer state and model state). There are 1.0 GiB (the limit of this container). "
        "Use g."
    )
    with pytest.raises(ConfigError, match=r"^task: .* Use a smaller model, or split its state") as error:
        check(2**30, batches(), {"large": array((2**30,), "fsdp")})


def test_nothing_is_refused_where_no_limit_is_known(monkeypatch):
    monkeypatch.setattr(memory_check, "host_memory", lambda: None)
    assert check_memory(batches(size=8 * 2**40), MESH, STATE) == []


def test_training_counts_the_batches_of_a_dispatch_and_those_read_ahead():
    def counts(total=1000, k=1, **data):
        settings = {f"data__{name}": value for name, value in data.items()}
        config = runs.config(train__steps_per_dispatch=k, **settings)
        found = training_batches(config.train, config.data, EXAMPLE, total)
        return found.on_host, found.on_device

    assert counts() == (3, 1)
    assert counts(k=8) == (24, 8)
    assert counts(prefetch=10, k=2) == (22, 2)
    assert counts(prefetch=0, threads=5) == (6, 1)
    assert counts(prefetch=0, workers=7) == (8, 1)
    assert counts(total=4, k=8, prefetch=100) == (4, 4), "no more than the run has"
    advice = training_batches(Train(steps_per_dispatch=8), Data(), EXAMPLE, 10).advice
    assert advice == "a smaller train.global_batch_size or train.steps_per_dispatch (here 8) or data.prefetch (here 2)"


def test_evaluation_counts_no_more_batches_than_it_has():
    found = evaluation_batches("held", Data(prefetch=5), EXAMPLE, batch_size=10, examples=1000)
    assert (found.field, found.on_host, found.on_device) == ("evaluations.held.batch_size", 6, 1)
    assert evaluation_batches("held", Data(prefetch=5), EXAMPLE, batch_size=10**9, examples=37).on_host == 1
