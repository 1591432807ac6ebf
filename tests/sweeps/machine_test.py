import os
import re

import pytest

from engine.base.errors import ConfigError
from engine.base.host import HostMemory
from engine.sweeps import machine
from engine.sweeps.machine import RUN_BYTES, shares


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch, tmp_path):
    """A machine of eight cores without devices and with much memory."""
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "gpus")
    monkeypatch.setattr(machine, "_DEV", tmp_path / "dev")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(10, 18)), raising=False)
    monkeypatch.setattr(machine, "host_memory", lambda: HostMemory(64 * RUN_BYTES, container=False))
    return tmp_path


def visible(found) -> list[str | None]:
    return [share.variables.get("CUDA_VISIBLE_DEVICES") for share in found]


def test_cores_and_memory_are_divided_without_overlap():
    found = shares(3, None)
    assert [sorted(share.cores) for share in found] == [[10, 11], [12, 13, 14], [15, 16, 17]]
    assert {share.memory for share in found} == {64 * RUN_BYTES // 3}
    assert [share.variables for share in found] == [{}, {}, {}]


def test_one_run_per_core_while_the_memory_suffices(monkeypatch):
    assert len(shares(None, None)) == 8
    monkeypatch.setattr(machine, "host_memory", lambda: HostMemory(3 * RUN_BYTES, container=True))
    assert len(shares(None, None)) == 3
    monkeypatch.setattr(machine, "host_memory", lambda: HostMemory(RUN_BYTES // 2, container=True))
    assert len(shares(None, None)) == 1
    monkeypatch.setattr(machine, "host_memory", lambda: None)
    assert [share.memory for share in shares(None, None)] == [None] * 8


def test_each_run_has_a_gpu_of_its_own(plain_machine, monkeypatch):
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:04:00.0"):
        (plain_machine / "gpus" / name).mkdir(parents=True)
    assert visible(shares(None, None)) == ["0", "1", "2", "3"]
    assert visible(shares(2, None)) == ["0,1", "2,3"]
    assert visible(shares(None, 2)) == ["0,1", "2,3"]
    assert visible(shares(3, None)) == ["0", "1", "2"]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert visible(shares(2, None)) == [None, None]


def test_only_visible_gpus_are_divided(plain_machine, monkeypatch):
    (plain_machine / "gpus" / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7f")
    assert visible(shares(None, None)) == ["5", "GPU-7f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(shares(None, None)) == 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible(shares(1, None)) == [None]


def test_more_gpus_than_cores_are_divided_among_the_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert visible(shares(None, None)) == ["0,1", "2,3"]


@pytest.mark.parametrize("name", ["accel{}", "vfio/{}"])
def test_tpu_chips_are_divided(name, plain_machine, monkeypatch):
    (plain_machine / "dev" / "vfio").mkdir(parents=True)
    for n in range(4):
        (plain_machine / "dev" / name.format(n)).touch()
    assert [share.variables for share in shares(2, None)] == [{}, {}]  # without JAX's library for TPUs
    monkeypatch.setattr(machine, "_has_libtpu", lambda: True)
    found = shares(None, 2)
    assert [share.variables["TPU_VISIBLE_CHIPS"] for share in found] == ["0,1", "2,3"]
    assert {share.variables["TPU_CHIPS_PER_PROCESS_BOUNDS"] for share in found} == {"1,2,1"}
    assert {share.variables["TPU_PROCESS_BOUNDS"] for share in found} == {"1,1,1"}
    assert shares(1, None)[0].variables == {}  # the whole host needs no variables
    monkeypatch.setenv("TPU_VISIBLE_CHIPS", "1,3")
    assert [share.variables["TPU_VISIBLE_CHIPS"] for share in shares(None, None)] == ["1", "3"]


@pytest.mark.parametrize(
    ("gpus", "parallel", "devices", "problem"),
    [
        ("", 9, None, "--parallel=9: allowed is 1 to 8, the cores of this machine."),
        ("", 0, None, "--parallel=0: allowed is 1 to 8"),
        ("", None, 1, "--devices-per-trial=1: this machine has no GPU or TPU. Leave the flag out."),
        ("0,1,2,3", 3, 2, "--parallel=3 with 2 devices each: this machine has 4. Use --parallel=2."),
        ("0,1", 4, None, "--parallel=4 with 1 device each: this machine has 2. Use --parallel=2."),
        ("0,1", None, 4, "--devices-per-trial=4: allowed is 1 to 2, the devices of this machine."),
        ("0,1", None, 0, "--devices-per-trial=0: allowed is 1 to 2, the devices of this machine."),
        ("0,1", 1, -1, "--devices-per-trial=-1: allowed is 1 to 2, the devices of this machine."),
    ],
)
def test_more_than_the_machine_has_is_refused(monkeypatch, gpus, parallel, devices, problem):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}"):
        shares(parallel, devices)
