"""Memory that does not suffice, of a device and of the host: told with what makes the run smaller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.config.schema import MeshSpec, Train
from engine.resilience.out_of_memory import OutOfMemory, out_of_memory_reported, smaller

PETABYTES = (1 << 25, 1 << 25)  # more than any machine can promise


def told(function, **settings):
    with pytest.raises(OutOfMemory) as error, out_of_memory_reported(Train(**settings), MeshSpec()):
        function()
    return str(error.value)


def test_a_devices_lack_of_memory_comes_with_advice():
    text = told(lambda: jax.block_until_ready(jnp.zeros(PETABYTES)), global_batch_size=48)
    assert text.startswith("a device's memory does not suffice (Out of memory allocating 4503599627370496 bytes).")
    assert "train.accumulate=2, which takes the same batch in more parts" in text
    assert "a smaller train.global_batch_size than 48" in text


def test_the_hosts_lack_of_memory_names_the_line():
    text = told(lambda: np.empty(PETABYTES))
    assert text.startswith("this machine's memory does not suffice (out_of_memory_test.py:")
    assert "Unable to allocate" in text and "train.global_batch_size" in text


@pytest.mark.parametrize(
    "words",
    [
        "RESOURCE_EXHAUSTED: Failed to allocate request for 2.00GiB",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.",
        "INTERNAL: Error dispatching computation: Out of memory allocating 4000 bytes.",
    ],
)
def test_each_platform_has_its_words(words):
    def fail():
        raise jax.errors.JaxRuntimeError(f"{words}\n\nAllocations: ...")

    assert "Allocations" not in told(fail)


def test_another_error_of_a_device_is_left_as_it_is():
    with pytest.raises(jax.errors.JaxRuntimeError, match="cannot open"), out_of_memory_reported(Train(), MeshSpec()):
        raise jax.errors.JaxRuntimeError("INTERNAL: cannot open the library")


def test_settings_that_the_config_has_are_not_advised():
    before = smaller(Train(global_batch_size=48), MeshSpec())
    assert any("mesh.fsdp=-1" in way and "8 devices" in way for way in before)
    train = Train(global_batch_size=48, accumulate=16, remat="full", precision="bfloat16")
    after = smaller(train, MeshSpec(fsdp=8))
    assert after == ["a smaller train.global_batch_size than 48, or a smaller model"]
