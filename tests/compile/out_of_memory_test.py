"""Out-of-memory errors of a device and of the host, with advice on how to shrink the run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.compile.out_of_memory import OutOfMemory, out_of_memory_reported, smaller
from engine.config.schema import MeshSpec, Train

PETABYTES = (1 << 25, 1 << 25)  # more than any machine can allocate


def error_text(function, **settings):
    with pytest.raises(OutOfMemory) as error, out_of_memory_reported(Train(**settings), MeshSpec()):
        function()
    return str(error.value)


def test_device_out_of_memory_error_has_advice():
    text = error_text(lambda: jax.block_until_ready(jnp.zeros(PETABYTES)), global_batch_size=48)
    assert text.startswith("a device is out of memory (Out of memory allocating 4503599627370496 bytes).")
    assert "train.accumulate=2, which splits the same batch into more microbatches" in text
    assert "a smaller train.global_batch_size than 48" in text


def test_host_out_of_memory_error_names_the_line():
    text = error_text(lambda: np.empty(PETABYTES))
    assert text.startswith("this machine is out of memory (out_of_memory_test.py:")
    assert "Unable to allocate" in text and "train.global_batch_size" in text


@pytest.mark.parametrize(
    "words",
    [
        "RESOURCE_EXHAUSTED: Failed to allocate request for 2.00GiB",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.",
        "INTERNAL: Error dispatching computation: Out of memory allocating 4000 bytes.",
    ],
)
def test_out_of_memory_texts_of_each_platform_are_recognized(words):
    def fail():
        raise jax.errors.JaxRuntimeError(f"{words}\n\nAllocations: ...")

    assert "Allocations" not in error_text(fail)


def test_other_device_errors_are_unchanged():
    with pytest.raises(jax.errors.JaxRuntimeError, match="cannot open"), out_of_memory_reported(Train(), MeshSpec()):
        raise jax.errors.JaxRuntimeError("INTERNAL: cannot open the library")


def test_advice_omits_settings_that_the_config_has():
    before = smaller(Train(global_batch_size=48), MeshSpec())
    assert any("mesh.fsdp=-1" in way and "8 devices" in way for way in before)
    train = Train(global_batch_size=48, accumulate=16, remat="full", precision="bfloat16")
    after = smaller(train, MeshSpec(fsdp=8))
    assert after == ["a smaller train.global_batch_size than 48, or a smaller model"]
    one = dataclasses.replace(train, global_batch_size=1, accumulate=1)
    assert smaller(one, MeshSpec(fsdp=8))[-1] == "a smaller model"
