"""The monitor adds up the times of the loop, publishes them, and reports the slowest process from the main thread."""

import json
import time
from types import SimpleNamespace

import jax
import pytest

from engine.cluster import group, kv_store
from engine.loop.stragglers import judge, monitor
from engine.loop.stragglers.host_load import HostLoad, Load
from engine.loop.stragglers.judge import Report
from engine.loop.stragglers.monitor import PROBE_BUDGET, TOPIC, StragglerMonitor, probe_interval
from engine.run import goodput
from engine.run.goodput import Stopwatch


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """An empty store, and a thread that does not wait."""
    monkeypatch.setattr(kv_store, "_single", kv_store._InMemoryStore())
    for name, value in {"LEAST_PERIOD_S": 1e-3, "REPORTS_PER_S": 1e9, "THREAD_BUDGET": 1e9}.items():
        monkeypatch.setattr(monitor, name, value)


def until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(1e-3)


class Loop:
    """A training loop without devices, and the reports of another process whose data is late."""

    def __init__(self, path):
        self.said, self.sentences, self.drained = [], [], 0
        self.monitor = StragglerMonitor(
            jax.local_devices(),
            drain=self._drain,
            hooks_s=lambda: 0.5,
            say=self.said.append,
            on_slowest=self.sentences.append,
            stopwatch=Stopwatch(path),
        )
        self.step, self.wait_s = 0, 0.0
        self.other = Report("b", 0.0, 0, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0)

    def _drain(self) -> None:
        self.drained += 1

    @property
    def made_s(self) -> float:
        return self.wait_s

    def dispatch(self, wait_s: float = 0.0) -> None:
        self.wait_s += wait_s
        self.monitor.before_dispatch(self.step, 1, self, monitor.time.monotonic())
        self.monitor.resume()
        self.step += 1

    def dispatch_until(self, condition, late_s: float) -> None:
        """Dispatches steps, in each of which the data of the other process is late."""
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end
            self.dispatch()
            other = self.other
            self.other = other._replace(
                time_s=other.time_s + 0.1,
                steps=self.step,
                data_s=other.data_s + late_s,
                made_s=other.made_s + late_s,
                late_steps=other.late_steps + int(late_s > 0),
            )
            kv_store.put(f"group/latest/{TOPIC}/1", json.dumps(self.other))
            self.monitor.report(self.step)
            time.sleep(2e-3)


def test_waits_late_steps_and_host_time_are_published():
    loop = Loop(None)
    loop.monitor.begin(0)
    with loop.monitor:
        for wait_s in (0.0, 0.02, 0.03, 1e-4):
            loop.dispatch(wait_s)
        until(lambda: group.latest(TOPIC) and Report(*group.latest(TOPIC)[0]).steps == 4)
    report = Report(*group.latest(TOPIC)[0])
    assert (report.data_s, report.made_s) == (pytest.approx(0.0501), pytest.approx(0.0501))
    assert (report.late_steps, report.hooks_s, report.probes) == (2, 0.5, 0)


def test_probe_runs_on_drained_devices_once_its_step_is_reached():
    loop = Loop(None)
    loop.monitor.begin(0)
    for _ in range(monitor.FIRST_PROBE):
        loop.dispatch()
    assert loop.drained == 0
    loop.dispatch()
    assert loop.drained == 1


def test_slow_process_is_reported_with_the_step_until_it_is_fast_again(monkeypatch, tmp_path):
    """The clock and the load of this process are fixed, so that it is not slow itself on a busy machine."""
    monkeypatch.setattr(group, "count", lambda: 2)
    monkeypatch.setattr(HostLoad, "read", lambda self: Load(0.0, 0.0, 0.0))
    loop = Loop(tmp_path / "goodput.jsonl")
    clock = SimpleNamespace(monotonic=lambda: 0.1 * loop.step, thread_time=time.thread_time)
    monkeypatch.setattr(monitor, "time", clock)
    loop.monitor.begin(0)
    with loop.monitor:
        loop.dispatch_until(lambda: loop.step == 5, 0.0)
        loop.dispatch_until(lambda: loop.sentences, 0.04)
        loop.dispatch_until(lambda: len(loop.sentences) == 2, 0.0)
    assert [sentence.partition(":")[0] for sentence in loop.sentences] == ["process 1 (host b) is the slowest", ""]
    named, over = loop.said
    assert named.startswith("warning: step ")
    assert named.endswith(loop.sentences[0])
    assert over.endswith(": process 1 (host b) does not slow down the run any more")
    entries = goodput.read(tmp_path / "goodput.jsonl", (goodput.SLOW,))
    assert {(entry.get("process"), entry.get("cause")) for entry in entries} == {("process 1 (host b)", judge.DATA)}
    assert sum(entry["seconds"] for entry in entries) > 0


@pytest.mark.parametrize("cost_s", [1e-5, 3e-4, 2e-3, 0.1])
@pytest.mark.parametrize("step_s", [2e-4, 0.05, 30.0])
def test_probes_take_at_most_their_share_of_the_time_at_steps_that_processes_have_in_common(cost_s, step_s):
    interval = probe_interval(cost_s, step_s)
    assert interval == 1 or cost_s / (interval * step_s) <= PROBE_BUDGET
    assert interval & (interval - 1) == 0  # a power of two
