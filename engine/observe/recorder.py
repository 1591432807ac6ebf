"""From the device's metrics of each step to rows: the loop hands arrays over and never waits for their values.

Owns: which steps make up a row, and the bound on how far the device may be behind. Does not own: the files
(`writer.py`), rates (`throughput.py`), or the screen (`progress.py`).

Terms. *Row*: the metrics of one logging interval, summed over its steps and divided once. *Arrival*: the moment when
the loop goes on after a dispatch. It is never further ahead of the device than IN_FLIGHT dispatches, so the time from
one arrival to another is the device's. Rows are made in the writer's thread, whose own pace counts for nothing.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.config.duration import Period
from engine.observe.memory import memory_use
from engine.observe.throughput import Throughput
from engine.observe.writer import MetricWriter

IN_FLIGHT = 2  # dispatches that the device may be behind

Row = dict[str, Any]
Sums = Mapping[str, Sequence[float]]
"""Of a row that is not finished: name of a metric -> total and weight over its steps so far."""


@dataclasses.dataclass
class Dispatch:
    """K steps from `step` on: their metrics `[K, names, 2]`, and the loop's clock and waiting time for data then."""

    step: int
    k: int
    metrics: Any
    wait_s: float
    time_s: float


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
        on_values: called with the first step of a dispatch and its metrics `[K, names, 2]` when it has arrived, in
            the loop's thread: at the same step in every process, whatever the pace of the writer's thread.
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
    ):
        self._names, self._last_value, self._summed = names, last_value, summed
        self._writer, self._throughput, self._period = writer, throughput, period
        self._attempt, self._on_row, self._on_phase, self._on_values = attempt, on_row, on_phase, on_values
        self._block: list[Dispatch] = []
        self._in_flight: deque[Dispatch] = deque()
        self._unfinished = np.zeros((len(names), 2))  # sums of the row in which the newest result falls
        self._row_ends = 0  # its last step, once a result of it has arrived
        self._paused_s = 0.0
        self._sums = np.zeros((len(names), 2))  # of the row that is being made; the writer's thread alone touches it

    def push(self, step: int, k: int, metrics: Any, wait_s: float) -> None:
        """Takes the metrics of the K steps that start from `step`; waits only when the device is far behind."""
        dispatch = Dispatch(step, k, metrics, wait_s, 0.0)
        self._in_flight.append(dispatch)
        if len(self._in_flight) > IN_FLIGHT:
            self._arrive()
        dispatch.time_s = time.monotonic() - self._paused_s
        self._block.append(dispatch)
        if self._period.next_after(step) <= step + k:
            block, self._block = self._block, []
            self._writer.push(lambda: self._rows(block))

    def unfinished(self) -> Sums:
        """The sums of the row that is being made, for a checkpoint: {} before its first step.

        What is under way does not count (`settle`).
        """
        begun = self._unfinished.any()  # each step has some weight
        return dict(zip(self._names, self._unfinished.tolist(), strict=True)) if begun else {}

    def go_on(self, sums: Sums) -> None:
        """The first row of what follows began before a checkpoint, which holds its sums; {} where it did not."""
        if sums.keys() == set(self._names):
            before = np.array([sums[name] for name in self._names])
            self._unfinished = before.copy()
            self._writer.push(lambda: self._begin_with(before))

    def _begin_with(self, sums: np.ndarray) -> None:
        self._sums = sums

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Takes values that are known once (an evaluation, the time to compile) as a row of their own."""
        row = {"step": step, "attempt": self._attempt, "time": time.time(), **values}
        self._writer.push(lambda: [row])

    def phase(self, name: str) -> None:
        """Passes on what the loop does from now on, in order with the rows."""
        self._writer.push(lambda: self._on_phase(name))

    def saved(self) -> None:
        """A checkpoint is on its way: the rows that led to it shall be on the disk, too."""
        self._writer.sync()

    def settle(self) -> None:
        """Waits for the device, so that what follows (an evaluation) is not counted as training."""
        while self._in_flight:
            self._arrive()

    def _arrive(self) -> None:
        """Waits for the oldest dispatch under way."""
        dispatch = self._in_flight.popleft()
        dispatch.metrics.block_until_ready()
        values = np.asarray(dispatch.metrics)
        for step, step_values in enumerate(values, dispatch.step):
            if step >= self._row_ends:
                self._row_ends = self._period.next_after(step)
            self._unfinished += step_values
            if step + 1 == self._row_ends:
                self._unfinished[:] = 0
        self._on_values(dispatch.step, values)

    def go_back(self) -> None:
        """The loop goes on from an earlier step: the steps of an unfinished row make no row, and rates begin anew."""
        self.settle()
        self._block = []
        self._unfinished[:] = 0
        self._row_ends = 0
        self._writer.push(self._forget)

    def _forget(self) -> None:
        self._sums = np.zeros_like(self._sums)
        self._throughput.restart()

    def pause(self, seconds: float) -> None:
        """Takes time that the loop spent on something else out of the rates."""
        self._paused_s += seconds

    def rates(self) -> dict[str, float]:
        """The rates over the whole attempt, as far as results were read."""
        return self._throughput.total()

    def close(self) -> None:
        """Waits until all that was pushed is written; steps of an unfinished row make no row."""
        self.settle()
        block, self._block = self._block, []
        if block:
            self._writer.push(lambda: self._rows(block))
        self._writer.flush()

    def _rows(self, block: list[Dispatch]) -> list[Row]:
        """Fetches a block's arrays and returns the rows that end in it."""
        values = np.concatenate([np.asarray(dispatch.metrics) for dispatch in block]).astype(np.float64)
        first, last = block[0].step, block[-1]
        self._throughput.arrived(last.step + last.k, last.time_s, last.wait_s)
        rows, done = [], 0
        while first + done < last.step + last.k:
            due = self._period.next_after(first + done)
            interval = values[done : due - first]
            for step_values in interval:  # one by one, so that no cut of the dispatches rounds differently
                self._sums += step_values
            done += len(interval)
            if first + done == due:
                rows.append(self._row(due, interval[-1]))
                self._sums = np.zeros_like(self._sums)
        return rows

    def _row(self, step: int, last: np.ndarray) -> Row:
        row: Row = {"step": step, "attempt": self._attempt, "batch": step - 1, "time": time.time()}
        for name, (total, weight), (value, _) in zip(self._names, self._sums, last, strict=True):
            mean = float(total / weight) if weight else float("nan")
            row[name] = float(total) if name in self._summed else float(value) if name in self._last_value else mean
        row |= self._throughput.values() | memory_use()
        self._on_row(row)
        return row
