"""CPU time, run delay and throttling are read from the kernel's files, in every version of control groups."""

import os
import subprocess
import sys
import threading
import time

import pytest

from engine.loop.stragglers.host_load import HostLoad, cpu_statistics, throttled_s


def test_throttled_time_of_both_versions_of_control_groups_is_in_seconds():
    assert throttled_s("usage_usec 90\nnr_throttled 3\nthrottled_usec 2500000\n") == 2.5
    assert throttled_s("nr_periods 9\nnr_throttled 3\nthrottled_time 2500000000\n") == 2.5
    assert throttled_s("usage_usec 90\n") == 0


@pytest.mark.parametrize(
    ("membership", "files", "found"),
    [
        ("0::/pod/box\n", ["pod/box/cpu.stat", "pod/cpu.stat"], ["pod/box/cpu.stat", "pod/cpu.stat"]),
        ("0::/\n", ["cpu.stat"], ["cpu.stat"]),
        ("0::/path/of/the/host\n", ["cpu.stat"], ["cpu.stat"]),
        ("5:memory:/m\n2:cpu,cpuacct:/docker/1\n", ["cpu/docker/1/cpu.stat", "m/cpu.stat"], ["cpu/docker/1/cpu.stat"]),
        ("", [], []),
    ],
    ids=["nested groups", "the root of a container", "a path outside the container", "version 1", "none"],
)
def test_limits_of_all_enclosing_groups_are_read(membership, files, found, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert cpu_statistics(membership, tmp_path) == [tmp_path / name for name in found]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts run delays on Linux only")
def test_run_delay_of_every_thread_is_counted_and_never_decreases():
    """Two threads of this process and a program share one core, so each of them waits."""
    core, load = max(os.sched_getaffinity(0)), HostLoad()
    stop, before, readings = threading.Event(), os.sched_getaffinity(0), [load.read()]

    def compute() -> None:
        os.sched_setaffinity(0, {core})  # of this thread
        while not stop.is_set():
            sum(range(1000))

    spin = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as neighbour:
        threads = [threading.Thread(target=compute) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            end = time.monotonic() + 30
            while readings[-1].delay_s - readings[0].delay_s < 0.05:
                assert time.monotonic() < end
                time.sleep(0.05)
                readings.append(load.read())
        finally:
            stop.set()
            neighbour.kill()
            for thread in threads:
                thread.join()
    readings.append(load.read())
    assert os.sched_getaffinity(0) == before
    assert readings == sorted(readings, key=lambda reading: reading.delay_s)
    assert readings[-1].cpu_s > readings[0].cpu_s
