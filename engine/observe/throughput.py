"""Rates of a run: examples per second, step time, time waiting for data, FLOP/s, and their share of the peak.

Rates are measured between arrivals, the moments at which a result is known to be complete on the device. Time that the
loop spends on evaluations and hooks is subtracted by the caller and is in no rate. The model FLOPs of a step are
counted once, in a thread: to trace the loss of a large model takes seconds.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from engine.base.host import usable_cores
from engine.base.user_errors import describe
from engine.cluster.shutdown import RunThread
from engine.data.stages import NO_TIMES, STAGES, Times


@dataclass(frozen=True)
class _Arrival:
    step: int
    time_s: float
    wait_s: float
    times: Times


class Throughput:
    """Computes rates between arrivals. Not thread-safe."""

    def __init__(
        self,
        batch_size: int,
        flops_per_step: Callable[[bool], float | None] = lambda wait: None,
        hardware_flops_per_step: float | None = None,
        peak_flops: float | None = None,
    ):
        """
        Args:
            batch_size: examples per step, over all devices.
            flops_per_step: returns the model FLOPs per step, over all devices; None leaves out FLOP/s. Called when a
                rate is computed, with whether to wait until they are counted.
            hardware_flops_per_step: FLOPs that a step executes, over all devices; None leaves out HFU.
            peak_flops: peak FLOP/s of all devices for the data type of the computation; None leaves out MFU and HFU.
        """
        self._batch_size = batch_size
        self._flops_per_step = flops_per_step
        self._hardware_flops_per_step = hardware_flops_per_step
        self._peak_flops = peak_flops
        self._first: _Arrival | None = None  # first arrival of the attempt
        self._begin: _Arrival | None = None  # start of the current interval
        self._latest: _Arrival | None = None
        self._values: dict[str, float] = {}

    def arrived(self, step: int, time_s: float, wait_s: float, times: Times = NO_TIMES) -> None:
        """Records an arrival; the first one starts the measurement.

        Args:
            step: completed updates whose result has arrived.
            time_s: monotonic time of the arrival, minus the paused time so far.
            wait_s: total seconds so far that the training loop has waited for data.
            times: total seconds so far of each stage of reading, added up over the readers.
        """
        self._latest = _Arrival(step, time_s, wait_s, times)
        self._first = self._first or self._latest
        self._begin = self._begin or self._latest

    def restart(self) -> None:
        """Discards all arrivals, after a rollback to an earlier step."""
        self._first = self._begin = self._latest = None

    def values(self) -> dict[str, float]:
        """Returns the rates since the last call and starts the next interval.

        Without a new arrival (several rows in one dispatch) the last rates are returned again. Before the second
        arrival the result is empty. Waits until the model FLOPs are counted.

        Returns:
            `examples_per_s`, `step_time_s`, `data_wait` (fraction of the time, 0 to 1), `data_decode_s` and the like
            (seconds of each stage of reading for a step, added up over the readers), and, if known, `flop_per_s`, and
            `mfu` and `hfu` (model and hardware FLOP/s as fractions of the peak).
        """
        if rates := self._rates(self._begin, wait=True):
            self._begin, self._values = self._latest, rates
        return dict(self._values)

    def total(self) -> dict[str, float]:
        """Returns the same rates over the whole attempt, from the first arrival to the latest; does not wait."""
        return self._rates(self._first, wait=False)

    def _rates(self, begin: _Arrival | None, wait: bool) -> dict[str, float]:
        end = self._latest
        if begin is None or end is None or end.step == begin.step or end.time_s <= begin.time_s:
            return {}
        steps, seconds = end.step - begin.step, end.time_s - begin.time_s
        rates = {
            "examples_per_s": steps * self._batch_size / seconds,
            "step_time_s": seconds / steps,
            "data_wait": (end.wait_s - begin.wait_s) / seconds,
        }
        for name, before, after in zip(STAGES, begin.times, end.times, strict=True):
            if after > before:
                rates[f"data_{name}_s"] = (after - before) / steps
        per_s, peak = steps / seconds, self._peak_flops
        if (flops := self._flops_per_step(wait)) is not None:
            rates["flop_per_s"] = flops * per_s
            if peak is not None:
                rates["mfu"] = flops * per_s / peak
        if self._hardware_flops_per_step is not None and peak is not None:
            rates["hfu"] = self._hardware_flops_per_step * per_s / peak
        return rates


class FlopsCount:
    """Counts the model FLOPs of a step in a thread.

    The rows of metrics wait for it; a run that is asked to stop does not.

    Args:
        count: returns the model FLOPs of a step.
        say: called with a sentence if `count` fails, in the thread that waits.
    """

    def __init__(self, count: Callable[[], float], say: Callable[[str], None]):
        self._count, self._say = count, say
        self._value: float | None = None
        self._error: Exception | SystemExit | None = None  # an error of the author's code, until it is reported
        self._ended = threading.Event()  # set when the count has ended or is abandoned
        # No daemon: the exit of Python would stop such a thread inside JAX, which crashes the process.
        self._thread = RunThread(self._run, "flops-count", daemon=False)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def __call__(self, wait: bool) -> float | None:
        """Returns the FLOPs; None if the count has failed, is abandoned, or has not ended and `wait` is False."""
        if wait:
            self._ended.wait()
            error, self._error = self._error, None
            if error is not None:  # a missing metric must not end the run
                text = describe(error)
                self._say(f"flop_per_s and mfu are left out: tracing the loss for one device failed: {text}")
        return self._value

    def close(self, wait: bool) -> None:
        """Waits for the end of the thread, or abandons the count: no thread waits for it any more.

        A count that is abandoned cannot be interrupted, so its thread ends later.
        """
        if not wait:
            self._ended.set()
        elif self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._value = self._count()
        except (Exception, SystemExit) as error:
            self._error = error
        self._ended.set()


LEAST_WAIT = 0.01  # a smaller share of waiting needs no advice
BUSY = 0.7  # share of the time; readers that are less busy wait for the loop, so more of them would not help


class Reading(NamedTuple):
    """How the readers of a run have spent their time."""

    wait: float
    """Share of the time in which the loop waited for data."""
    seconds: Mapping[str, float]
    """Stage -> seconds, added up over the readers."""
    wall_s: float
    """Seconds in which the loop waited or ran steps."""
    readers: int
    """Number of threads or worker processes."""
    cores: int
    """Number of cores that the process may use."""

    @classmethod
    def of(cls, rates: Mapping[str, float], readers: int) -> "Reading":
        """Returns the reading of a run with these rates, on the cores of this process."""
        seconds = {name: rates.get(f"data_{name}_s", 0.0) for name in STAGES}
        return cls(rates["data_wait"], seconds, rates["step_time_s"], readers, usable_cores())

    def shares_text(self) -> str:
        """Returns the stages of the readers and their shares, the largest first; "" without times."""
        return ", ".join(f"{name} {share:.0%}" for name, share in self._shares())

    def _shares(self) -> list[tuple[str, float]]:
        own = {name: self.seconds.get(name, 0.0) for name in STAGES[:-1]}
        total = sum(own.values())
        shares = [(name, seconds / total) for name, seconds in own.items() if seconds > 0]
        return sorted(shares, key=lambda pair: -pair[1])

    def sentence(self) -> str:
        """Returns the slowest stage and advice; "" if the loop hardly waits for data or nothing was measured."""
        shares = self._shares()
        if self.wait < LEAST_WAIT or not shares or self.wall_s <= 0:
            return ""
        name, share = shares[0]
        busy = min(1.0, sum(self.seconds.get(name, 0.0) for name in STAGES[:-1]) / (self.readers * self.wall_s))
        return (
            f"waits for data {self.wait:.0%} of the time: {name} takes {share:.0%} of the readers' time; "
            f"{self._advice(name, busy)}"
        )

    def _advice(self, name: str, busy: float) -> str:
        if busy < BUSY:
            return f"the readers are busy {busy:.0%} of the time; a larger data.prefetch would help"
        if name == "read" and self.readers >= self.cores:
            return "more data.threads or faster storage would help"
        if self.readers < self.cores:
            return "more workers would help (data.workers)"
        # Threads that hold the GIL look busy, although they use one core together.
        return f"worker processes (data.workers=auto), a cheaper {name} or more cores than {self.cores} would help"
