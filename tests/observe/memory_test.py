import jax
import numpy as np

from engine.observe.memory import memory_use


def test_resident_memory_grows_by_an_allocated_array():
    before = memory_use()["host_rss_gib"]
    array = np.ones(2**28, np.uint8)  # 0.25 GiB, and every page is written
    assert 0.2 < memory_use()["host_rss_gib"] - before < 0.3
    assert array[-1] == 1


def test_device_memory_is_reported_only_if_jax_provides_it():
    known = any(device.memory_stats() for device in jax.local_devices())
    assert ("device_peak_gib" in memory_use()) == known
