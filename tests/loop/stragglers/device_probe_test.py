"""The probe measures the local devices and finds the slowest."""

import jax

from engine.loop.stragglers.device_probe import DeviceProbe, Probed, slowest


def test_probe_measures_all_local_devices():
    probe = DeviceProbe(jax.local_devices())
    measured = probe.measure()
    assert measured.seconds > 0
    assert measured.device in {device.id for device in jax.local_devices()}


def test_first_long_wait_is_that_for_the_slowest_device():
    assert slowest([(1.0, 4), (1.1, 5), (3.0, 6), (3.01, 7)]) == Probed(3.01, 6)
    assert slowest([(3.0, 4), (3.01, 5)]) == Probed(3.01, 4)
