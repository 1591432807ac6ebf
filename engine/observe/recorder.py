"""Turns the metrics of each step, which are arrays on the device, into rows of a logging interval.

The metrics of a row are summed over its steps and divided once. The training loop never waits for the last dispatches:
two, or one if their batches need much memory (`in_flight`). An arrival is the moment at which a dispatch is known to be
complete. Results of short steps are read several at a time: reading them one by one would take 5 % of a step of 0.2 ms.
"""

import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engine.base.duration import Period
from engine.data.prefetch import IN_FLIGHT
from engine.data.stages import NO_TIMES, Times
from engine.metrics.results import Result, scalars
from engine.observe.throughput import Throughput
from engine.observe.writer import MetricWriter
from engine.run import log

if TYPE_CHECKING:
    import jax

    from engine.metrics.pairs import TrainingMetrics

_GIB = 2**30
FOLD = 1024  # readings of a row before they are added up, so that a long row does not slow down a save

type Row = dict[str, float]
type Sums = Mapping[str, Sequence[float]]
"""Sums of an unfinished row: name of a metric -> total and weight over its steps so far."""


class Columns(NamedTuple):
    """The metrics of a step, which become columns of a row."""

    names: tuple[str, ...]
    """Names of the rows of the arrays, in their order."""
    metrics: "TrainingMetrics"
    """The metrics of the Task's loss."""
    last_value: tuple[str, ...]
    """Metrics of which a row has the value of its last step instead of the mean (learning rate)."""
    summed: tuple[str, ...]
    """Metrics of which a row has the sum (skipped steps)."""


class Receivers(NamedTuple):
    """What a recorder calls."""

    on_row: Callable[[Row], None]
    """Called with each row of training, in the thread of the writer."""
    on_phase: Callable[[str], None]
    """Called with "training" and "evaluating", in the thread of the writer."""
    on_values: Callable[[int, np.ndarray], None]
    """Called with the first step of a reading and its metrics `[steps, names, 2]`, in the thread of the training loop,
    independently of the writer."""
    more: Callable[[int, int], Row] = lambda first, last: {}
    """Called with the first and the last step of a row of training, in the thread of the writer; returns values that
    the row has in the files only."""


class Pace(NamedTuple):
    """When results are read."""

    read_every_s: float = 0.0
    """Longest time before arrived results are read; they are also read when a row ends. 0 reads each dispatch when it
    arrives, so that every process reads at the same steps."""
    in_flight: int = IN_FLIGHT
    """Number of dispatches whose results are not waited for."""


class Recorder:
    """Collects the metrics of steps and builds rows.

    Args:
        columns: the metrics of a step.
        receivers: what is called with rows, phases and readings.
        pace: when results are read.
        writer: writes the rows.
        throughput: computes rates from arrivals.
        period: the steps at which a row ends.
        attempt: number of the attempt, written into each row.
    """

    def __init__(
        self,
        columns: Columns,
        receivers: Receivers,
        pace: Pace,
        *,
        writer: MetricWriter,
        throughput: Throughput,
        period: Period,
        attempt: int,
    ):
        names = columns.names
        self._columns, self._receivers, self._pace = columns, receivers, pace
        self._writer, self._throughput, self._period, self._attempt = writer, throughput, period, attempt
        self._in_flight: deque[tuple[int, jax.Array]] = deque()  # first step of a dispatch, its metrics `[K, names, 2]`
        self._unread: list[tuple[int, jax.Array]] = []  # dispatches that have arrived, likewise
        self._read_at = 0.0
        self._sums = self._no_sums = np.zeros((len(names), 2))  # sums over earlier steps of the current row
        self._values: list[np.ndarray] = []  # readings that are not in the sums yet, `[steps, names, 2]` each
        self._row_ends = 0  # last step of the current row; 0: unknown
        self._arrived, self._arrived_at = 0, 0.0  # steps that were read, and the time of the latest reading
        self._wait_s = self._paused_s = 0.0
        self._times = NO_TIMES
        self.latest_arrival = 0.0
        """Monotonic time of the latest arrival."""

    def push(self, step: int, metrics: "jax.Array", wait_s: float, times: Times = NO_TIMES) -> None:
        """Adds a dispatch; waits only if more than `in_flight` dispatches are incomplete.

        Args:
            step: first step of the dispatch.
            metrics: metrics of its K steps on the device, `[K, names, 2]`.
            wait_s: total time so far that the training loop has waited for data.
            times: total time so far of each stage of reading, added up over the readers.
        """
        self._in_flight.append((step, metrics))
        self._wait_s, self._times = wait_s, times
        if len(self._in_flight) > self._pace.in_flight:
            self._arrive()

    def _arrive(self) -> None:
        """Waits for the oldest dispatch in flight, and reads the arrived results if a row ends or time is up."""
        step, metrics = self._in_flight.popleft()
        metrics.block_until_ready()
        self._unread.append((step, metrics))
        self.latest_arrival = now = time.monotonic()
        if step + len(metrics) >= self._row_ends or now >= self._read_at:
            self._read(now)

    def _read(self, now: float) -> None:
        """Reads the arrived results, and pushes the rows that end with them."""
        step = self._unread[0][0]
        # A copy, so that the arrays of the device are freed at once, by the thread that allocates the next ones.
        values = np.concatenate([np.asarray(metrics) for _, metrics in self._unread])
        self._unread, self._read_at = [], now + self._pace.read_every_s
        self._receivers.on_values(step, values)
        self._arrived, self._arrived_at = step + len(values), now - self._paused_s
        if self._arrived >= self._row_ends:
            values = self._end_rows(step, values)
        if len(self._values) >= FOLD:
            self._sums, self._values = _total(self._sums, self._values), []
        if len(values):
            self._values.append(values)

    def _end_rows(self, step: int, values: np.ndarray) -> np.ndarray:
        """Pushes the rows that end within these values; returns the values of the steps after them."""
        if not self._row_ends:
            self._row_ends = self._period.next_after(step)
        while step < self._row_ends <= self._arrived:
            last, values = values[: self._row_ends - step], values[self._row_ends - step :]
            self._values.append(last)
            self._push_row()
            step += len(last)
        return values

    def _push_row(self) -> None:
        end, sums, values, rates = self._row_ends, self._sums, self._values, self._rates_until_now()
        self._writer.push(lambda: [self._row(end, sums, values, rates())])
        self._sums, self._values, self._row_ends = self._no_sums, [], self._period.next_after(end)

    def _rates_until_now(self) -> Callable[[], Row]:
        """Returns a function for the thread of the writer, which computes the rates from the last row until now."""
        arrival = (self._arrived, self._arrived_at, self._wait_s, self._times)

        def rates() -> Row:
            self._throughput.arrived(*arrival)
            return self._throughput.values()

        return rates

    def unfinished(self) -> Sums:
        """Returns the sums of the current row, for a checkpoint; {} before its first step.

        Dispatches in flight are not included; call `settle` first.
        """
        sums = _total(self._sums, self._values)
        started = sums.any()  # every step has some weight
        return dict(zip(self._columns.names, sums.tolist(), strict=True)) if started else {}

    def resume(self, sums: Sums) -> None:
        """Continues the row that a checkpoint interrupted, from its saved sums; {} starts a new row."""
        # The last values are no part of the row. An earlier engine had fewer of them, and of the rows of some metrics.
        last = dict.fromkeys((*self._columns.last_value, *self._columns.metrics.added), (0.0, 0.0))
        if {*sums, *last} == set(self._columns.names):
            self._sums = np.array([{**last, **sums}[name] for name in self._columns.names])

    def note(self, step: int, values: Mapping[str, Result]) -> None:
        """Writes values that are measured once (an evaluation, the time to compile) as a separate row."""
        row = {"step": step, "attempt": self._attempt, "time": time.time(), **values}
        self._writer.push(lambda: [row])

    def phase(self, name: str) -> None:
        """Reports the phase that starts now through `on_phase`, in order with the rows."""
        self.call(lambda: self._receivers.on_phase(name))

    def call(self, report: Callable[[], None]) -> None:
        """Calls a function in the thread of the writer, in order with the rows."""
        self._writer.push(report)

    def saved(self) -> None:
        """Syncs the rows and the log to the disk. Called when a save has started, so that it does not outlive them."""
        self._writer.push(log.sync)
        self._writer.sync()

    def drain(self) -> None:
        """Waits for all dispatches, without reading them: processes need not call it at the same steps."""
        for _, metrics in self._in_flight:
            metrics.block_until_ready()

    def settle(self) -> None:
        """Waits for all dispatches and reads them, so that a following evaluation is not counted as training."""
        while self._in_flight:
            self._arrive()
        if self._unread:
            self._read(time.monotonic())

    def end_row(self) -> None:
        """Ends the unfinished row at the latest step, since the run ends here before the row does."""
        self.settle()
        if self._values:
            self._row_ends = self._arrived
            self._push_row()

    def rollback(self) -> None:
        """Drops the unfinished row and restarts the rates, since the loop continues from an earlier step."""
        self.settle()
        self._sums, self._values, self._row_ends = self._no_sums, [], 0
        self._writer.push(self._throughput.restart)

    def pause(self, seconds: float) -> None:
        """Excludes time that the loop spent on something else from the rates."""
        self._paused_s += seconds

    def rates(self) -> dict[str, float]:
        """Returns the rates over the whole attempt, as far as results were read."""
        return self._throughput.total()

    def close(self) -> None:
        """Waits until everything that was pushed is written. An unfinished row is dropped."""
        self.settle()
        if self._values:
            rates = self._rates_until_now()

            def without_row() -> None:
                rates()

            self._writer.push(without_row)
        self._writer.flush()

    def _row(self, end: int, sums: np.ndarray, values: list[np.ndarray], rates: Row) -> Mapping[str, Result]:
        columns, totals, last = self._columns, _total(sums, values), values[-1][-1]
        row: Row = {"step": end, "attempt": self._attempt, "batch": end - 1, "time": time.time()}
        for name, (total, weight), (value, _) in zip(columns.names, totals.tolist(), last.tolist(), strict=True):
            mean = total / weight if weight else float("nan")
            if not columns.metrics.is_part(name):
                row[name] = total if name in columns.summed else value if name in columns.last_value else mean
        results = columns.metrics.results(columns.names, totals)
        row |= scalars(results) | rates | memory_use()
        self._receivers.on_row(row)
        return {**row, **results, **self._receivers.more(self._period.start(end) + 1, end)}


def _total(sums: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    """Adds step by step in float64, so that the result does not depend on dispatch boundaries or checkpoints."""
    return np.add.accumulate(np.concatenate([sums[None], *values], dtype=np.float64))[-1]


def memory_use() -> dict[str, float]:
    """Returns `host_rss_gib`, the resident memory now, and `device_peak_gib`, the highest peak of a local device.

    Takes microseconds and does not wait for a device. JAX does not report the memory of CPU devices.
    """
    import jax

    use = {"host_rss_gib": _resident_bytes() / _GIB}
    stats = (device.memory_stats() or {} for device in jax.local_devices())
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if peaks:
        use["device_peak_gib"] = max(peaks) / _GIB
    return use


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # not Linux: the peak, since the current value is not available
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
