"""Limits of the memory and counts of killed processes, from the files of Linux."""

import gc
import os
import sys
import time

import pytest

from engine.base import host
from engine.base.errors import ConfigError
from engine.base.host import HostMemory, collect_as_usual, collect_rarely

GIB = 2**30
UNLIMITED = str(2**63 - 4096)  # of a control group of version 1


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 8 GiB of memory and 2 GiB of swap space; `write(path, text)` adds a file below /sys/fs/cgroup."""
    monkeypatch.setattr(host, "_MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(host, "_VM_STATISTICS", tmp_path / "vmstat")
    monkeypatch.setattr(host, "_OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host, "_CGROUP_ROOT", tmp_path / "fs")
    (tmp_path / "meminfo").write_text(f"MemTotal: {8 << 20} kB\nSwapTotal: {2 << 20} kB\nHugePages_Total: 0\n")

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def test_limit_of_a_machine_includes_its_swap_space(machine):
    assert host.host_memory() == HostMemory(10 * GIB, container=False)
    assert str(host.host_memory()) == "10.0 GiB (this machine)"


@pytest.mark.parametrize(
    ("mine", "files", "gib"),
    [
        ("0::/\n", {"memory.max": f"{4 * GIB}"}, 6),
        ("0::/\n", {"memory.max": f"{4 * GIB}", "memory.swap.max": "0"}, 4),
        ("0::/job/a\n", {"job/a/memory.max": "max", "job/memory.max": f"{GIB}", "job/memory.swap.max": "max"}, 3),
        ("0::/of/the/host\n", {"memory.max": f"{4 * GIB}", "memory.swap.max": "0"}, 4),
        ("4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": f"{4 * GIB}"}, 6),
        ("4:memory:/job\n", {"memory/job/memory.memsw.limit_in_bytes": f"{3 * GIB}"}, 3),
        ("4:cpu,memory:/of/the/host\n", {"memory/memory.limit_in_bytes": f"{4 * GIB}"}, 6),
    ],
)
def test_limit_of_a_control_group(machine, mine, files, gib):
    machine("cgroup", mine)
    for name, text in files.items():
        machine(f"fs/{name}", f"{text}\n")
    assert host.host_memory() == HostMemory(gib * GIB, container=True)
    assert str(host.host_memory()) == f"{gib}.0 GiB (the limit of this container)"


@pytest.mark.parametrize("text", ["max", UNLIMITED, "another format", ""])
def test_control_group_without_a_limit_leaves_that_of_the_machine(machine, text):
    machine("cgroup", "4:memory:/job\n0::/job\n")
    machine("fs/memory/job/memory.limit_in_bytes", text)
    machine("fs/job/memory.max", text)
    assert host.host_memory() == HostMemory(10 * GIB, container=False)


def test_system_that_states_no_memory_has_no_limit(machine, tmp_path):
    (tmp_path / "meminfo").unlink()
    assert host.host_memory() is None


@pytest.mark.parametrize(
    ("mine", "file", "text"),
    [
        ("0::/\n", "memory.events", "low 0\noom 4\noom_kill 3\n"),
        ("0::/job/a\n", "job/a/memory.events", "oom 4\noom_kill 3\n"),
        ("5:cpu,memory:/job\n0::/\n", "memory/job/memory.oom_control", "under_oom 0\noom_kill 3\n"),
    ],
)
def test_oom_kills_are_read_from_the_control_group(machine, mine, file, text):
    assert host.oom_kills() == 0
    machine("cgroup", mine)
    machine("vmstat", "nr_free 1\noom_kill 2\n")
    assert host.oom_kills() == 2, "of the machine, where the group has no count"
    machine(f"fs/{file}", text)
    assert host.oom_kills() == 3
    machine(f"fs/{file}", "another format")
    assert host.oom_kills() == 2


def test_numbers_of_this_machine_are_plausible():
    found = host.host_memory()
    assert found is None or found.bytes > 2**27
    assert host.oom_kills() >= 0


def test_free_share_is_the_smallest_of_the_machine_and_its_control_groups(machine, tmp_path):
    assert host.free_share() == 1  # the system does not state it
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 800 kB\n")
    assert host.free_share() == 0.8
    machine("cgroup", "0::/job\n")
    for name, text in {
        "memory.max": "1000",
        "memory.current": "900",
        "memory.stat": "anon 500\ninactive_file 150",
    }.items():
        machine(f"fs/job/{name}", text)
    assert host.free_share() == 0.25
    machine("cgroup", "4:memory:/job\n")
    machine("fs/memory/job/memory.limit_in_bytes", "1000")
    machine("fs/memory/job/memory.usage_in_bytes", "2000")
    assert host.free_share() == 0


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_usable_cores_are_those_of_the_affinity():
    assert host.usable_cores() == len(os.sched_getaffinity(0))


@linux
def test_idle_seconds_grow_at_most_as_fast_as_the_cores():
    before, begin = host.idle_seconds(), time.monotonic()
    assert before is not None and before >= 0
    after = host.idle_seconds()
    assert after is not None
    # The time of waiting for storage, which is a part of it, may decrease (man 5 proc).
    assert -1 <= after - before <= host.usable_cores() * (time.monotonic() - begin + 1)


def test_idle_seconds_of_the_usable_cores_are_added_up(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "_STATISTICS", tmp_path / "stat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 10}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    (tmp_path / "stat").write_text("cpu 9 9 9 9 9\ncpu0 1 1 1 500 200 3\ncpu1 1 1 1 9000 1 0\ncpu10 1 1 1 40 60 0\n")
    assert host.idle_seconds() == 8.0


def test_idle_seconds_are_unknown_without_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "_STATISTICS", tmp_path / "missing")
    assert host.idle_seconds() is None


def test_limit_of_virtual_memory_that_is_too_low_for_jax_is_refused(monkeypatch):
    host.check_virtual_memory()  # without a limit, or with the one under which these tests run
    monkeypatch.setattr(host, "usable_cores", lambda: 64)
    monkeypatch.setattr(host, "virtual_memory_limit", lambda: 4 * GIB)
    host.check_virtual_memory()
    monkeypatch.setattr(host, "virtual_memory_limit", lambda: 3 * GIB)
    with pytest.raises(
        ConfigError, match=r"^ulimit -v: the limit .* is 3\.0 GiB, and JAX needs 3\.6 GiB with 64 cores"
    ):
        host.check_virtual_memory()


def test_garbage_is_collected_rarely_until_the_run_has_started():
    before = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        collect_as_usual()  # without `collect_rarely`
        assert gc.get_threshold() == (700, 10, 10)
        collect_rarely()
        collect_rarely()
        assert gc.get_threshold()[0] > 7000
        collect_as_usual()
        assert gc.get_threshold() == (700, 10, 10)
    finally:
        gc.set_threshold(*before)
