import json

import jax
import pytest

from engine.planning import calibration, small_work
from engine.planning import machine as machines


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(calibration.PRODUCT, "cpu", 32)
    monkeypatch.setitem(calibration.ELEMENTS, "cpu", 2**10)
    monkeypatch.setitem(calibration.SUMS, "cpu", (2**4, 2**12))
    for name, value in {"REPEATS": 1, "STEPS": 20, "ROWS": 64, "IMAGES": (1, 8, 8, 1)}.items():
        monkeypatch.setattr(small_work, name, value)


@pytest.mark.slow
def test_measured_rates_are_stored_and_read_by_later_plans(small, tmp_path):
    devices = jax.devices()[:2]
    machine = machines.of_devices(devices)
    assert calibration.stored(machine, devices) == machine
    lines = []
    measured = calibration.calibrate(machine, devices, lines.append)
    file = calibration.path(devices)
    assert file.is_relative_to(tmp_path) and str(file) in lines[-1]
    assert min(json.loads(file.read_text()).values()) > 0
    assert measured.source == f"measured, {file}" and measured.measured and not machine.measured
    assert calibration.stored(machine, devices) == measured
    zero = json.dumps({**json.loads(file.read_text()), "bandwidth": 0})
    for damaged in ("{}", "[]", "", "{", zero, "[" * 100_000, '{"bf16": 1e999}'):
        file.write_text(damaged)
        assert calibration.stored(machine, devices, lines.append) == machine
        assert lines[-1].startswith(f"warning: {file}: damaged rates (")


def test_rates_that_cannot_be_stored_are_used_with_a_warning(small, tmp_path):
    (tmp_path / "convoy").touch()  # a file where the folder would be
    devices, lines = jax.devices()[:1], []
    measured = calibration.calibrate(machines.of_devices(devices), devices, lines.append)
    assert measured.source == "measured, not stored" and "the rates are not stored" in lines[-1]
