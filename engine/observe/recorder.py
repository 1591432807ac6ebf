"""Turns the device's metrics of each step into rows; the loop never waits for the last two dispatches.

A row holds the metrics of one logging interval, summed over its steps and divided once. An arrival is the moment at
which a dispatch is known to be complete; the loop is at most IN_FLIGHT dispatches ahead. Results of short steps are
read several at a time: one by one they would cost a twentieth of a step of 0.2 ms.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from engine.config.duration import Period
from engine.observe.memory import memory_use
from engine.observe.throughput import Throughput
from engine.observe.writer import MetricWriter
from engine.run import log

if TYPE_CHECKING:
    import jax

IN_FLIGHT = 2  # dispatches that the device may be behind
FOLD = 1024  # readings of a row that are kept singly: a long row costs a save no more than a short one

type Row = dict[str, float]
type Sums = Mapping[str, Sequence[float]]
"""Of a row that is not finished: name of a metric -> total and weight over its steps so far."""


class Recorder:
    """Collects what steps return and makes rows of it.

    Args:
        names: of the metrics, in the order of the arrays.
        last_value: names that are told as of the last step instead of averaged (a learning rate).
        summed: names that are told as a sum (skipped steps).
        writer: takes rows.
        throughput: rates from arrivals.
        period: which steps end a row.
        attempt: of the run, written into each row.
        on_row: called with each row of training, in the writer's thread.
        on_phase: called with "training" and "evaluating", in the writer's thread.
        on_values: called with a first step and the metrics `[steps, names, 2]` from it on as they are read, in the
            loop's thread, whatever the pace of the writer's thread.
        read_every_s: what has arrived is read after so long at the latest, and where a row ends. 0 reads each
            dispatch as it arrives: at the same step in every process, whatever their clocks.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        *,
        last_value: tuple[str, ...],
        summed: tuple[str, ...],
        writer: MetricWriter,
        throughput: Throughput,
        period: Period,
        attempt: int,
        on_row: Callable[[Row], None],
        on_phase: Callable[[str], None],
        on_values: Callable[[int, np.ndarray], None],
        read_every_s: float = 0.0,
    ):
        self._names, self._last_value, self._summed = names, last_value, summed
        self._writer, self._throughput, self._period = writer, throughput, period
        self._attempt, self._on_row, self._on_phase, self._on_values = attempt, on_row, on_phase, on_values
        self._in_flight: deque[tuple[int, jax.Array]] = deque()  # first step of a dispatch, its metrics `[K, names, 2]`
        self._unread: list[tuple[int, jax.Array]] = []  # the same of those that have arrived
        self._read_every_s, self._read_at = read_every_s, 0.0
        self._before = self._no_sums = np.zeros((len(names), 2))  # of this row's earlier steps
        self._values: list[np.ndarray] = []  # of this row's steps that were read, `[steps, names, 2]` each
        self._row_ends = 0  # its last step; 0: not known yet
        self._arrived, self._arrived_at = 0, 0.0  # steps that were read, and the clock of the latest one
        self._wait_s = self._paused_s = 0.0

    def push(self, step: int, metrics: "jax.Array", wait_s: float) -> None:
        """Takes a dispatch; waits only when the device is far behind.

        Args:
            step: its first one.
            metrics: `[K, names, 2]` of its K steps, on the device.
            wait_s: the loop's waiting time for data until now.
        """
        self._in_flight.append((step, metrics))
        self._wait_s = wait_s
        if len(self._in_flight) > IN_FLIGHT:
            self._arrive()

    def _arrive(self) -> None:
        """Waits for the oldest dispatch under way, and reads where it is time to."""
        step, metrics = self._in_flight.popleft()
        metrics.block_until_ready()
        self._unread.append((step, metrics))
        now = time.monotonic()
        if step + len(metrics) >= self._row_ends or now >= self._read_at:
            self._read(now)

    def _read(self, now: float) -> None:
        """Reads what has arrived, and hands over the rows that end in it."""
        step = self._unread[0][0]
        # A copy: the device's own arrays are given back at once, by the thread that makes the next ones.
        values = np.concatenate([np.asarray(metrics) for _, metrics in self._unread])
        self._unread, self._read_at = [], now + self._read_every_s
        self._on_values(step, values)
        self._arrived, self._arrived_at = step + len(values), now - self._paused_s
        if self._arrived >= self._row_ends:
            values = self._end_rows(step, values)
        if len(self._values) >= FOLD:
            self._before, self._values = _total(self._before, self._values), []
        if len(values):
            self._values.append(values)

    def _end_rows(self, step: int, values: np.ndarray) -> np.ndarray:
        """Hands over the rows that end in what was read; returns what is left of its values."""
        if not self._row_ends:
            self._row_ends = self._period.next_after(step)
        while step < self._row_ends <= self._arrived:
            cut, values = values[: self._row_ends - step], values[self._row_ends - step :]
            self._values.append(cut)
            self._end_row()
            step += len(cut)
        return values

    def _end_row(self) -> None:
        end, before, values, rates = self._row_ends, self._before, self._values, self._rates_of_now()
        self._writer.push(lambda: [self._row(end, before, values, rates())])
        self._before, self._values, self._row_ends = self._no_sums, [], self._period.next_after(end)

    def _rates_of_now(self) -> Callable[[], Row]:
        """What makes the rates from the last row to here, in the writer's thread."""
        arrival = (self._arrived, self._arrived_at, self._wait_s)

        def rates() -> Row:
            self._throughput.arrived(*arrival)
            return self._throughput.values()

        return rates

    def unfinished(self) -> Sums:
        """The sums of the row that is being made, for a checkpoint: {} before its first step.

        What is under way does not count (`settle`).
        """
        sums = _total(self._before, self._values)
        begun = sums.any()  # each step has some weight
        return dict(zip(self._names, sums.tolist(), strict=True)) if begun else {}

    def resume(self, sums: Sums) -> None:
        """The first row of what follows began before a checkpoint, which holds its sums; {} where it did not."""
        if sums.keys() == set(self._names):
            self._before = np.array([sums[name] for name in self._names])

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Takes values that are known once (an evaluation, the time to compile) as a row of their own."""
        row = {"step": step, "attempt": self._attempt, "time": time.time(), **values}
        self._writer.push(lambda: [row])

    def phase(self, name: str) -> None:
        """Passes on what the loop does from now on, in order with the rows."""
        self._writer.push(lambda: self._on_phase(name))

    def saved(self) -> None:
        """A checkpoint is on its way: the rows and the log that led to it shall be on the disk, too."""
        self._writer.push(log.sync)
        self._writer.sync()

    def settle(self) -> None:
        """Waits for the device, so that what follows (an evaluation) is not counted as training."""
        while self._in_flight:
            self._arrive()
        if self._unread:
            self._read(time.monotonic())

    def rollback(self) -> None:
        """The loop goes on from an earlier step: the steps of an unfinished row make no row, and rates begin anew."""
        self.settle()
        self._before, self._values, self._row_ends = self._no_sums, [], 0
        self._writer.push(self._throughput.restart)

    def pause(self, seconds: float) -> None:
        """Takes time that the loop spent on something else out of the rates."""
        self._paused_s += seconds

    def rates(self) -> dict[str, float]:
        """The rates over the whole attempt, as far as results were read."""
        return self._throughput.total()

    def close(self) -> None:
        """Waits until all that was pushed is written; steps of an unfinished row make no row."""
        self.settle()
        if self._values:
            rates = self._rates_of_now()

            def without_row() -> None:
                rates()

            self._writer.push(without_row)
        self._writer.flush()

    def _row(self, end: int, before: np.ndarray, values: list[np.ndarray], rates: Row) -> Row:
        sums, last = _total(before, values), values[-1][-1]
        row: Row = {"step": end, "attempt": self._attempt, "batch": end - 1, "time": time.time()}
        for name, (total, weight), (value, _) in zip(self._names, sums.tolist(), last.tolist(), strict=True):
            mean = total / weight if weight else float("nan")
            row[name] = total if name in self._summed else value if name in self._last_value else mean
        row |= rates | memory_use()
        self._on_row(row)
        return row


def _total(before: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    """Adds up step by step in float64, so that no cut of the dispatches, and no checkpoint, rounds differently."""
    return np.add.accumulate(np.concatenate([before[None], *values], dtype=np.float64))[-1]
