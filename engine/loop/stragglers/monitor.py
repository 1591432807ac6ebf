"""Measures how fast this process works by itself, and names the slowest process of a run of several processes.

The loop only adds up times. A thread publishes the sums in the key-value store, at a rate that does not depend on the
steps. The thread of the primary reads them and asks the judge. No process waits for another one.
"""

import math
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Self

from engine.base.types import Device
from engine.cluster import group
from engine.cluster.kv_store import CoordinationError
from engine.cluster.shutdown import RunThread
from engine.loop.stragglers.base import FeedTimes, Stragglers
from engine.loop.stragglers.device_probe import DeviceProbe, Probed
from engine.loop.stragglers.host_load import HostLoad
from engine.loop.stragglers.judge import Judge, Report, Slowest
from engine.run.goodput import Stopwatch

PROBE_BUDGET: Final = 1e-3  # share of the time that the probe takes at most
THREAD_BUDGET: Final = 5e-3  # share of a core that the thread takes at most
LEAST_PERIOD_S: Final = 0.25  # between two reports of a process
REPORTS_PER_S: Final = 100  # all processes together: the load of the primary does not grow with their number
LATE_S: Final = 1e-3  # a longer wait for data makes a step late
FIRST_PROBE: Final = 8  # steps before the first probe, whose cost is not known
LEDGER_S: Final = 10.0  # between two entries of lost time
TOPIC: Final = "stragglers"


class StragglerMonitor(Stragglers):
    """Measures this process; on the primary, it also names the slowest process. A context manager: its thread.

    Args:
        devices: the local devices.
        drain: waits until the devices have finished all dispatches.
        hooks_s: returns the seconds spent in hooks so far.
        say: called with sentences for the user.
        on_slowest: called with a sentence about the slowest process when that changes; "" for none.
        stopwatch: writes the time lost to it.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        drain: Callable[[], None],
        hooks_s: Callable[[], float],
        say: Callable[[str], None],
        on_slowest: Callable[[str], None],
        stopwatch: Stopwatch,
    ):
        self._drain, self._hooks_s = drain, hooks_s
        self._say, self._on_slowest, self._stopwatch = say, on_slowest, stopwatch
        self._device_probe = DeviceProbe(devices)
        self._judge = Judge(group.count(), devices[0].platform == "cpu")
        self._load = HostLoad()
        self._steps = self._late_steps = self._probes = 0
        self._probed: deque[Probed] = deque()  # probes since the previous report
        self._data_s = self._made_s = self._host_s = 0.0
        self._wait_s = self._feed_made_s = 0.0  # sums of the feed at the latest dispatch
        self._mark = self._probed_at = time.monotonic()  # time from which the host works; time of the latest probe
        self._probed_step, self._next_probe = 0, math.inf
        self._published_steps = 0
        self._reported: Slowest | None = None
        self._written_s: dict[tuple[str, str], float] = {}  # lost seconds in the ledger
        self._write_at = 0.0
        self._stop = threading.Event()
        self._thread = RunThread(self._run, "stragglers", otherwise="Slow processes are not named any more.")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._write_lost()

    def begin(self, step: int) -> None:
        self._wait_s = self._feed_made_s = 0.0
        self._mark = self._probed_at = time.monotonic()
        self._probed_step, self._next_probe = step, _next_multiple(step, FIRST_PROBE)

    def resume(self) -> None:
        self._mark = time.monotonic()

    def before_dispatch(self, step: int, count: int, feed: FeedTimes, arrived_at: float) -> None:
        """Adds up the times of the loop, and runs the probe if it is due."""
        wait_s, made_s = feed.wait_s, feed.made_s
        waited, self._wait_s = wait_s - self._wait_s, wait_s
        self._data_s += waited
        self._made_s += made_s - self._feed_made_s
        self._feed_made_s = made_s
        if waited > LATE_S:
            self._late_steps += count
        self._host_s += time.monotonic() - max(self._mark, arrived_at) - waited
        self._steps += count
        if step >= self._next_probe:
            self._run_probe(step)

    def _run_probe(self, step: int) -> None:
        """Runs the probe on idle devices. Its next step is a multiple of a power of two.

        So processes run it at the same steps, although each adapts the interval to its own measurement.
        """
        self._drain()
        begin = time.monotonic()
        self._probed.append(self._device_probe.measure())
        cost_s = time.monotonic() - begin + self._host_s / self._steps  # the devices also wait for the next dispatch
        step_s = (begin - self._probed_at) / (step - self._probed_step)
        interval = probe_interval(cost_s, step_s)
        self._probed_at, self._probed_step, self._next_probe = begin, step, _next_multiple(step, interval)

    def report(self, step: int) -> None:
        slowest, former = self._judge.slowest, self._reported
        if slowest is not former:
            self._write_lost()
            self._reported = slowest
            self._on_slowest(slowest.text if slowest else "")
            if slowest is not None:
                self._say(f"warning: step {step}: {slowest.text}")
            elif former is not None:
                self._say(
                    f"step {step}: process {former.process} (host {former.host}) does not slow down the run any more"
                )
        elif slowest is not None and time.monotonic() >= self._write_at:
            self._write_lost()

    def _write_lost(self) -> None:
        """Adds the seconds that were lost since the last call to the goodput ledger."""
        self._write_at = time.monotonic() + LEDGER_S
        for (name, cause), seconds in list(self._judge.lost_s.items()):
            new = seconds - self._written_s.get((name, cause), 0.0)
            if new > 0:
                self._written_s[name, cause] = seconds
                self._stopwatch.waited_for(name, cause, new)

    def _run(self) -> None:
        """The thread."""
        period_s = 0.0
        while not self._stop.wait(period_s):
            begin = time.thread_time()
            with suppress(CoordinationError):  # `peer_failure.py` reports the loss of process 0
                self._publish()
                if group.is_primary():
                    self._judge.update({i: Report(*values) for i, values in group.latest(TOPIC).items()})
            cost_s = time.thread_time() - begin
            period_s = max(LEAST_PERIOD_S, group.count() / REPORTS_PER_S, cost_s / THREAD_BUDGET)

    def _publish(self) -> None:
        if self._steps > self._published_steps:
            report = self._make_report()
            self._published_steps = report.steps
            group.publish([round(value, 7) if isinstance(value, float) else value for value in report], TOPIC)

    def _make_report(self) -> Report:
        count, steps = len(self._probed), self._steps  # the loop may add a probe meanwhile
        probed = [self._probed.popleft() for _ in range(count)]
        self._probes += count
        return Report(
            host=socket.gethostname(),
            time_s=time.monotonic(),
            steps=steps,
            data_s=self._data_s,
            made_s=self._made_s,
            late_steps=self._late_steps,
            hooks_s=self._hooks_s(),
            host_s=self._host_s,
            **self._load.read()._asdict(),
            probes=self._probes,
            probe_s=statistics.median([p.seconds for p in probed]) if probed else 0.0,
            device=probed[-1].device if probed else 0,
        )


def probe_interval(cost_s: float, step_s: float) -> int:
    """Returns the steps between two probes: the least power of two that keeps them within PROBE_BUDGET."""
    return 2 ** math.ceil(math.log2(max(1.0, cost_s / (PROBE_BUDGET * step_s))))


def _next_multiple(step: int, interval: int) -> int:
    return (step // interval + 1) * interval
